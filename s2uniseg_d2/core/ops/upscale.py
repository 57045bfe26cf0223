"""Masks of the token grid at the pixels of the picture.

Axes: n masks, h and w rows and columns of the token grid, H and W those of the picture.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2uniseg_d2.core.ops.guided_filter import GuidedFilter

UPSCALE_METHODS = ("nearest", "bilinear", "edges")
# float32 values held at a time, besides the result
_CHUNK_VALUES = 2**20


class _Axis(NamedTuple):
    """Where the pixels of one axis lie on the grid: the two cells around each, and the second one's share."""

    lower: Tensor
    upper: Tensor
    share: Tensor

    def part(self, start: int, end: int) -> _Axis:
        return _Axis(self.lower[start:end], self.upper[start:end], self.share[start:end])


def masks_to_pixels(
    masks: Tensor,
    valid: tuple[float, float],
    size: tuple[int, int],
    method: str = "nearest",
    image: Tensor | NDArray[np.uint8] | None = None,
    *,
    radius_cells: float = 0.5,
    eps: float = 1e-3,
) -> Tensor:
    """The masks at the picture's pixels.

    The paper is silent on this step. "nearest" gives each pixel its cell's value, and is what the rest of the system
    computes with. "bilinear" interpolates the 0/1 cells between their centres and keeps what is above one half, which
    rounds the staircase off. "edges" lets a guided filter (He et al. 2010) pull the interpolated border to the colour
    edges of the picture and keeps what is above one half. A mask that "nearest" shows is never lost: where "edges"
    leaves nothing, "bilinear" decides, and where that leaves nothing, as with one cell in a picture hardly finer than
    the grid, "nearest".

    Memory beyond the result does not grow with the number of masks.

    Args:
        masks: ``(n, h, w)`` bool; n may be 0.
        valid: rows and columns of the grid that hold the picture, from the top left; not whole where the picture
            ends inside a cell: a side of 90 pixels at stride 4 is 22.5 cells.
        size: rows and columns ``(H, W)`` of the picture.
        method: "nearest", "bilinear" or "edges".
        image: ``(H, W, 3)`` uint8, the picture; only "edges" needs it.
        radius_cells: "edges": half a window's side, in cells. A border is known to about half a cell, and a wider
            window looks beyond what the cells left open.
        eps: "edges": ridge of the filter, see :class:`GuidedFilter`; 1e-3 is the variance of a step of 16 grey levels.

    Returns:
        ``(n, H, W)`` bool on the masks' device.

    Raises:
        ValueError: an argument has a wrong type or shape, or is outside its range.
    """
    _check(masks, valid, size, method)
    if method == "nearest":
        return maps_to_pixels(masks, valid, size)
    rows, columns = (_place(v, s, masks.device) for v, s in zip(valid, size, strict=True))
    if method == "bilinear":
        smooth = torch.empty(len(masks), *size, dtype=torch.bool, device=masks.device)
        step = max(1, _CHUNK_VALUES // (size[0] * size[1]))
        for start in range(0, len(masks), step):
            smooth[start : start + step] = _interpolate(masks[start : start + step], rows, columns) > 0.5
        return _keep_all(smooth, masks, valid)
    refined = _refine(masks, valid, size, image, radius_cells, eps)
    lost = _empty(refined)
    refined[lost] = masks_to_pixels(masks[lost], valid, size, "bilinear")
    return refined


def maps_to_pixels(maps: Tensor, valid: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """Maps ``(..., h, w)`` of any type at the picture's pixels, ``(..., H, W)``: each pixel has its cell's value.

    Args:
        maps: values on the token grid.
        valid: rows and columns of the grid that hold the picture, as in :func:`masks_to_pixels`.
        size: rows and columns of the picture.
    """
    rows, columns = (cells_of_pixels(v, s).to(maps.device) for v, s in zip(valid, size, strict=True))
    # columns first: the rows of the larger result are then copied whole
    return maps.index_select(-1, columns).index_select(-2, rows)


def cells_of_pixels(valid: float, size: int) -> Tensor:
    """Which cell of an axis each of ``size`` pixels falls into, ``(size,)`` int64 on the CPU.

    Args:
        valid: cells of the axis that hold the picture.
        size: pixels of the picture.
    """
    return _centres(valid, size).long().clamp(max=math.ceil(valid) - 1)


def _check(masks: Tensor, valid: tuple[float, float], size: tuple[int, int], method: str) -> None:
    if masks.dim() != 3 or masks.dtype != torch.bool:
        raise ValueError(f"masks must be bool of shape (n, h, w), got {masks.dtype} of shape {tuple(masks.shape)}")
    grid = tuple(masks.shape[-2:])
    if not all(0 < v <= cells for v, cells in zip(valid, grid, strict=True)):
        raise ValueError(f"valid must lie in (0, {grid[0]}] x (0, {grid[1]}], the grid, got {tuple(valid)}")
    if min(size) < 1:
        raise ValueError(f"size must be positive, got {tuple(size)}")
    if method not in UPSCALE_METHODS:
        raise ValueError(f"method must be one of {UPSCALE_METHODS}, got {method!r}")


def _centres(valid: float, size: int) -> Tensor:
    """Pixel centres in cells, in float64: which cell a pixel falls into must not depend on rounding."""
    return (torch.arange(size, dtype=torch.float64) + 0.5) * (valid / size)


def _place(valid: float, size: int, device: torch.device) -> _Axis:
    last = math.ceil(valid) - 1  # cells beyond it are padding
    position = (_centres(valid, size) - 0.5).clamp(0, last)
    lower = position.long()
    return _Axis(lower.to(device), (lower + 1).clamp(max=last).to(device), (position - lower).to(device, torch.float32))


def _interpolate(masks: Tensor, rows: _Axis, columns: _Axis) -> Tensor:
    values = masks.float()
    for dim, axis in ((2, columns), (1, rows)):
        share = axis.share if dim == 2 else axis.share[:, None]
        values = torch.lerp(values.index_select(dim, axis.lower), values.index_select(dim, axis.upper), share)
    return values


def _keep_all(result: Tensor, masks: Tensor, valid: tuple[float, float]) -> Tensor:
    lost = _empty(result)
    result[lost] = maps_to_pixels(masks[lost], valid, (result.shape[1], result.shape[2]))
    return result


def _empty(pixels: Tensor) -> Tensor:
    # as bytes: torch is some twenty times slower at "any" over bools
    return (pixels.flatten(1).view(torch.uint8).amax(dim=1) == 0).nonzero()[:, 0]


def _refine(
    masks: Tensor,
    valid: tuple[float, float],
    size: tuple[int, int],
    image: Tensor | NDArray[np.uint8] | None,
    radius_cells: float,
    eps: float,
) -> Tensor:
    """Guided filter of the interpolated masks, each within the rectangle that it can reach."""
    picture = image.cpu().numpy() if isinstance(image, Tensor) else image
    if picture is None or picture.dtype != np.uint8 or picture.shape != (*size, 3):
        got = "None" if picture is None else f"{picture.dtype} {tuple(picture.shape)}"
        raise ValueError(f"image must be uint8 of shape {(*size, 3)} for method 'edges', got {got}")
    if not 0 < radius_cells < float("inf"):
        raise ValueError(f"radius_cells must be positive and finite, got {radius_cells}")
    cells_px = (size[0] / valid[0], size[1] / valid[1])
    radius_px = max(1, round(radius_cells * max(cells_px)))
    guided = GuidedFilter(picture, radius_px=radius_px, eps=eps)
    rows, columns = (_place(v, s, torch.device("cpu")) for v, s in zip(valid, size, strict=True))
    result = torch.zeros(len(masks), *size, dtype=torch.bool)
    for i, mask in enumerate(masks.cpu()):
        reach = [_reach(mask.any(dim=1 - axis), cells_px[axis], size[axis], 2 * radius_px) for axis in range(2)]
        (top, bottom), (left, right) = reach
        if bottom <= top or right <= left:
            continue
        soft = _interpolate(mask[None], rows.part(top, bottom), columns.part(left, right))[0].numpy()
        sharp = guided(soft, top=top, left=left) > 0.5
        result[i, top:bottom, left:right] = torch.from_numpy(sharp)
    return result.to(masks.device)


def _reach(occupied: Tensor, cell_px: float, size: int, margin_px: int) -> tuple[int, int]:
    """First pixel that the interpolated cells or a margin around them touch, and the one after the last."""
    cells = occupied.nonzero()[:, 0].tolist()
    if not cells:
        return 0, 0
    first = math.floor((cells[0] - 0.5) * cell_px) - margin_px
    last = math.ceil((cells[-1] + 1.5) * cell_px) + margin_px
    return max(0, first), min(size, last)
