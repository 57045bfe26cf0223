"""Operations on sets of binary masks: cropping to a local view, boxes, emptiness.

Axes: n masks, h and w rows and columns of the output grid, H4 and W4 those of the global view's grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from s2uniseg_d2.core.ops.transfer import to_device

# Numbers that a temporary tensor may hold: 64 MiB of float32, and on the CPU 1 MiB, which stays in the cache.
TEMPORARY = 2**24
CACHED = 2**18


def crop_masks(masks: Tensor, box: Tensor, flip: bool, size: tuple[int, int], stride: int = 4) -> Tensor:
    """The masks as a local view sees them, on the local view's own grid.

    Source: "Cropped Bipartite Matching" of the paper. The paper is silent on the resampling: each mask is read
    bilinearly at the centre of every cell of the local view's grid, mapped through the box and the flip, and counts
    as present from 0.5 on (a tie is present). The outermost cells reach to the rim of the global view, and beyond
    the rim there is nothing.

    Args:
        masks: ``(n, H4, W4)`` bool, cell (i, j) of which covers ``stride`` x ``stride`` pixels of the global view.
        box: ``(4,)`` XYXY of the local view in pixels of the global view; best on the CPU, its numbers are read.
        flip: whether the local view is mirrored left to right.
        size: rows and columns ``(h, w)`` of the local view's grid.
        stride: pixels of the global view per cell of ``masks``.

    Returns:
        ``(n, h, w)`` bool; masks that leave nothing inside the box stay, as empty ones (see ``nonempty``).

    Raises:
        ValueError: if ``masks`` are not bool maps, ``size`` is not positive, or the box is not finite, has no area or
            lies outside the global view.
    """
    _check_masks(masks, size)
    n = torch.arange(len(masks))
    return crop_masks_to_views(masks, box[None], [flip], torch.stack([n, torch.zeros_like(n)]), size, stride)


def crop_masks_to_views(
    masks: Tensor,
    boxes: Tensor,
    flips: Sequence[bool],
    pairs: Tensor,
    size: tuple[int, int],
    stride: int = 4,
    extents: Sequence[tuple[int, int]] | None = None,
) -> Tensor:
    """Some masks as some local views see them, each pair as :func:`crop_masks` does, with as few calls as for one.

    Args:
        masks: ``(n, H4, W4)`` bool.
        boxes: ``(v, 4)`` XYXY of the local views in pixels of the global view; best on the CPU, their numbers are read.
        flips: whether each local view is mirrored left to right.
        pairs: ``(2, p)`` int64 the mask and the view of each result; best on the CPU, from where it is moved.
        size: rows and columns ``(h, w)`` of the local views' grid.
        stride: pixels of the global view per cell of ``masks``.
        extents: rows and columns of cells that each local view's global view has, the rest of ``masks`` being padding;
            None: all.

    Returns:
        ``(p, h, w)`` bool.

    Raises:
        ValueError: as :func:`crop_masks`.
    """
    _check_masks(masks, size)
    if extents is None:
        extents = [(masks.shape[1], masks.shape[2])] * len(boxes)
    corners = [
        _check_box(box, height=rows * stride, width=columns * stride)
        for box, (rows, columns) in zip(boxes, extents, strict=True)
    ]
    down = [(y0 / stride, y1 / stride) for _, y0, _, y1 in corners]
    along = [
        (x1 / stride, x0 / stride) if flip else (x0 / stride, x1 / stride)
        for (x0, _, x1, _), flip in zip(corners, flips, strict=True)
    ]
    row, row_next, row_share, row_inside = _sample_axis(down, size[0], [rows for rows, _ in extents])
    column, column_next, column_share, column_inside = _sample_axis(along, size[1], [columns for _, columns in extents])
    # what each view reads of a mask: whole numbers, shares, and what lies within the global view
    places = to_device(torch.cat([row, row_next, column, column_next], dim=1), masks.device)
    shares = to_device(torch.cat([row_share, column_share], dim=1), masks.device)
    inside = to_device(row_inside[:, :, None] & column_inside[:, None], masks.device)
    most = CACHED if masks.device.type == "cpu" else TEMPORARY
    parts = torch.split(to_device(pairs, masks.device), max(1, most // (size[0] * max(masks.shape[2], 1))), dim=1)
    crops = [_sample(masks, mask, places[view], shares[view], size) & inside[view] for mask, view in parts]
    return torch.cat(crops)


def _sample(masks: Tensor, mask: Tensor, places: Tensor, shares: Tensor, size: tuple[int, int]) -> Tensor:
    """Where the chosen masks, read bilinearly, are 0.5 or more."""
    row, row_next, column, column_next = torch.split(places, [size[0], size[0], size[1], size[1]], dim=1)
    row_share, column_share = torch.split(shares, list(size), dim=1)
    # bilinear sampling on an axis-parallel grid is linear along the rows, then along the columns
    by_row = torch.lerp(masks[mask[:, None], row].float(), masks[mask[:, None], row_next].float(), row_share[..., None])
    left, right = (by_row.gather(2, x[:, None].expand(-1, size[0], -1)) for x in (column, column_next))
    sampled: Tensor = torch.lerp(left, right, column_share[:, None])
    return sampled >= 0.5


def nonempty(masks: Tensor) -> Tensor:
    """Which of ``(n, h, w)`` masks hold at least one cell, ``(n,)`` bool."""
    return masks.flatten(1).any(dim=1)


def mask_boxes(masks: Tensor) -> Tensor:
    """The tight box of every mask, ``(n, 4)`` float32 XYXY in cells; all zeros for an empty mask.

    Right and bottom are exclusive: a mask of the single cell (0, 0) has the box (0, 0, 1, 1).

    Args:
        masks: ``(n, h, w)`` bool.
    """
    if masks.numel() == 0:
        return torch.zeros(len(masks), 4, device=masks.device)
    left, right = _extent(masks.any(dim=1))
    top, bottom = _extent(masks.any(dim=2))
    return torch.stack([left, top, right, bottom], dim=1).float() * nonempty(masks)[:, None]


def _extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First occupied position and the one after the last, along dim 1 of ``(n, length)`` bool."""
    # arg-max takes the first maximum, but is not defined for bool
    first = occupied.int().argmax(dim=1)
    last = occupied.shape[1] - occupied.flip(1).int().argmax(dim=1)
    return first, last


def _check_masks(masks: Tensor, size: tuple[int, int]) -> None:
    if masks.dim() != 3 or masks.dtype != torch.bool:
        raise ValueError(f"masks must be bool of shape (n, H4, W4), got {masks.dtype} of shape {tuple(masks.shape)}")
    if min(size) < 1:
        raise ValueError(f"size must be positive, got {tuple(size)}")


def _check_box(box: Tensor, *, height: int, width: int) -> tuple[float, float, float, float]:
    numbers = [float(value) for value in box.flatten().tolist()]
    if len(numbers) != 4 or not all(math.isfinite(value) for value in numbers):
        raise ValueError(f"box must hold four finite numbers XYXY, got {tuple(numbers)}")
    x0, y0, x1, y1 = numbers
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"box must have x0 < x1 and y0 < y1, got {tuple(numbers)}")
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise ValueError(f"box must overlap the global view of {width} x {height} pixels, got {tuple(numbers)}")
    return x0, y0, x1, y1


def _sample_axis(
    ends: Sequence[tuple[float, float]], count: int, lengths: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where ``count`` cell centres between both ends of each view (in cells, in either order) fall, ``(v, count)``.

    Returns:
        Lower and upper neighbour of each, the upper's share, and whether the centre lies within [0, its length].
    """
    start, end = torch.tensor(ends, dtype=torch.float64).view(-1, 2, 1).unbind(1)
    length = torch.tensor(lengths)[:, None]
    steps = (torch.arange(count, dtype=torch.float32) + 0.5) / count
    position = start.float() + steps * (end - start).float()
    inside = (position >= 0) & (position <= length)
    # a cell's value stands at its centre
    position = torch.minimum((position - 0.5).clamp_min(0), length - 1.0)
    lower = position.floor().long()
    return lower, torch.minimum(lower + 1, length - 1), position - lower, inside
