"""Operations on sets of binary masks: cropping to a local view, boxes, emptiness.

Axes: n masks, h and w rows and columns of the output grid, H4 and W4 those of the global view's grid.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
    if masks.dim() != 3 or masks.dtype != torch.bool:
        raise ValueError(f"masks must be bool of shape (n, H4, W4), got {masks.dtype} of shape {tuple(masks.shape)}")
    if min(size) < 1:
        raise ValueError(f"size must be positive, got {tuple(size)}")
    rows, columns = masks.shape[-2:]
    x0, y0, x1, y1 = _check_box(box, height=rows * stride, width=columns * stride)
    if flip:
        x0, x1 = x1, x0
    row, row_next, row_share, row_inside = _sample_axis(y0 / stride, y1 / stride, size[0], rows, masks.device)
    column, column_next, column_share, column_inside = _sample_axis(
        x0 / stride, x1 / stride, size[1], columns, masks.device
    )
    # bilinear sampling on an axis-parallel grid is linear along the rows, then along the columns
    by_row = torch.lerp(masks[:, row].float(), masks[:, row_next].float(), row_share[:, None])
    sampled = torch.lerp(by_row[:, :, column], by_row[:, :, column_next], column_share)
    return (sampled >= 0.5) & row_inside[:, None] & column_inside


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
    start: float, end: float, count: int, length: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where ``count`` cell centres between ``start`` and ``end`` (in cells, end may lie before start) fall.

    Returns:
        Lower and upper neighbour of each, the upper's share, and whether the centre lies within [0, ``length``].
    """
    steps = (torch.arange(count, dtype=torch.float32, device=device) + 0.5) / count
    position = start + steps * (end - start)
    inside = (position >= 0) & (position <= length)
    # a cell's value stands at its centre
    position = (position - 0.5).clamp(0, length - 1)
    lower = position.floor().long()
    return lower, (lower + 1).clamp(max=length - 1), position - lower, inside
