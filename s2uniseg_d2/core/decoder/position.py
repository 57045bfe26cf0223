"""Sine position encoding of a grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_position(shape: tuple[int, int], dim: int, like: Tensor, *, temperature: float = 10000.0) -> Tensor:
    """Position code of every cell of one grid, row-major, as ``(h * w, dim)`` numbers in [-1, 1].

    Source: DETR (arXiv 2005.12872), the normalised two-dimensional form that Mask2Former uses. The first half of the
    channels codes y, the second half x. Inside a half, channels 2k and 2k + 1 are sine and cosine of one frequency.

    Args:
        shape: rows and columns of the grid.
        dim: channels.
        like: any tensor on the device where the code is wanted; the code is float64 if it is, else float32.
        temperature: ratio between the highest and the lowest frequency.

    Raises:
        ValueError: if ``dim`` is not a positive multiple of 4.
    """
    if dim < 4 or dim % 4:
        raise ValueError(f"dim must be a positive multiple of 4 (sine and cosine of y and x), got {dim}")
    h, w = shape
    # half precision cannot tell neighbouring cells of a large grid apart
    dtype = torch.promote_types(like.dtype, torch.float32)
    frequencies = torch.arange(dim // 4, device=like.device, dtype=dtype)
    periods = temperature ** (frequencies * (4.0 / dim))
    y = _waves(h, periods)[:, None].expand(h, w, dim // 2)
    x = _waves(w, periods)[None, :].expand(h, w, dim // 2)
    return torch.cat([y, x], dim=-1).reshape(h * w, dim)


def _waves(length: int, periods: Tensor) -> Tensor:
    """Interleaved sines and cosines of the angles of one axis, ``(length, 2 * frequencies)``."""
    # cells count from 1, so the last one stands at the full turn
    steps = torch.arange(1, length + 1, device=periods.device, dtype=periods.dtype)
    angles = (steps * (2.0 * math.pi / (length + 1e-6)))[:, None] / periods
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
