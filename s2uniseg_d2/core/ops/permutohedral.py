"""Gaussian filtering of scattered points in several dimensions, exactly and on the permutohedral lattice.

Axes: n points, d dimensions, v lattice vertices, c channels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]


def gaussian_sum(points: Tensor, values: Tensor, *, chunk: int = 1024) -> Tensor:
    """Sum the values of all points, weighted by exp(-distance^2 / 2), for every point.

    Costs n^2 c operations and a table of ``chunk`` x n numbers at a time. Exact up to rounding, which in float32 is
    about 1e-3 of a weight for points that spread over a hundred standard deviations.

    Args:
        points: ``(n, d)`` positions, each dimension divided by its standard deviation.
        values: ``(n, c)``.
        chunk: points handled together.

    Returns:
        ``(n, c)``; a point's own value counts with weight 1.

    Raises:
        ValueError: if there is not one row of values per point.
    """
    if points.dim() != 2 or values.dim() != 2 or len(points) != len(values):
        raise ValueError(
            f"points (n, d) and values (n, c) must have one row each per point, got {tuple(points.shape)} and "
            f"{tuple(values.shape)}"
        )
    if not len(points):
        return values
    centred = points - points.mean(dim=0)
    half = centred.square().sum(dim=1) / 2
    parts = zip(torch.split(centred, chunk), torch.split(half, chunk), strict=True)
    return torch.cat([(part @ centred.T - own[:, None] - half).clamp_(max=0).exp_() @ values for part, own in parts])


class PermutohedralLattice:
    """Approximates :func:`gaussian_sum` up to a factor, in time linear in the number of points.

    Source: Adams, Baek, Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", Eurographics 2010.
    Values are spread over the corners of the simplex around each point, blurred along the d + 1 directions of the
    lattice, and read back. Only vertices beside a point exist, so what would pass through empty space is lost.

    Args:
        points: ``(n, d)`` positions, each dimension divided by its standard deviation, n and d at least 1.

    Raises:
        ValueError: if ``points`` is no such table, or spread too wide to number the vertices.
    """

    def __init__(self, points: Tensor) -> None:
        if points.dim() != 2 or 0 in points.shape:
            raise ValueError(f"points must be (n, d) with n and d at least 1, got shape {tuple(points.shape)}")
        corners, weights = _simplices(points.detach().cpu().numpy().astype(np.float64))
        count, dimensions = points.shape
        keys = corners.reshape(-1, dimensions + 1)[:, :dimensions]
        code = _Code(keys)
        codes, first, vertex = np.unique(code(keys), return_index=True, return_inverse=True)
        vertices = keys[first]
        neighbours = []
        for direction in range(dimensions + 1):
            step = np.full(dimensions, 1, dtype=np.int64)
            if direction < dimensions:
                step[direction] = -dimensions
            neighbours.append([code.find(codes, vertices + sign * step) for sign in (1, -1)])
        device = points.device
        self._vertex = torch.from_numpy(vertex.reshape(count, dimensions + 1)).to(device)
        self._weight = torch.from_numpy(weights.astype(np.float32)).to(device)
        self._neighbours = torch.from_numpy(np.array(neighbours)).to(device)
        self._count = len(vertices)

    def __call__(self, values: Tensor) -> Tensor:
        """Filter ``(n, c)`` float32 values; a point's own value is among those it gets back.

        Raises:
            ValueError: if there is not one row of values per point.
        """
        if values.dim() != 2 or len(values) != len(self._vertex):
            raise ValueError(f"values must be ({len(self._vertex)}, c), got shape {tuple(values.shape)}")
        # the last row stands for the vertices that do not exist, and stays 0
        grid = values.new_zeros((self._count + 1, values.shape[1]))
        for corner in range(self._vertex.shape[1]):
            grid.index_add_(0, self._vertex[:, corner], values * self._weight[:, corner, None])
        for ahead, behind in self._neighbours:
            blurred = grid[:-1] + (grid[ahead] + grid[behind]) / 2
            grid = torch.cat([blurred, grid[-1:]])
        result = torch.zeros_like(values)
        for corner in range(self._vertex.shape[1]):
            result += grid[self._vertex[:, corner]] * self._weight[:, corner, None]
        return result


class _Code:
    """One integer for every lattice vertex near the points, for searching."""

    def __init__(self, keys: Ints) -> None:
        reach = keys.shape[1] + 1  # a neighbour is at most this far
        self._low = keys.min(axis=0) - reach
        spans = [int(span) for span in keys.max(axis=0) + reach - self._low + 1]
        if math.prod(spans) >= 1 << 62:
            raise ValueError(f"points must be spread less widely: their lattice spans {spans} steps")
        self._strides = np.cumprod([1, *spans[:-1]], dtype=np.int64)

    def __call__(self, keys: Ints) -> Ints:
        coded: Ints = (keys - self._low) @ self._strides
        return coded

    def find(self, codes: Ints, keys: Ints) -> Ints:
        """Place of every key among sorted codes, and their number for what is not there."""
        wanted = self(keys)
        place = np.searchsorted(codes, wanted)
        there = codes[np.minimum(place, len(codes) - 1)] == wanted
        return np.where(there, place, len(codes)).astype(np.int64)


def _simplices(points: NDArray[np.float64]) -> tuple[Ints, NDArray[Any]]:
    """Vertices ``(n, d + 1, d + 1)`` of the simplex around every point, and its weights there ``(n, d + 1)``."""
    count, d = points.shape
    axes = np.arange(1, d + 1)
    # the blur's variance along the lattice is that of a Gaussian of standard deviation 1 at this scale
    scaled = points * (math.sqrt(2 / 3) * (d + 1) / np.sqrt(axes * (axes + 1)))
    elevated = np.zeros((count, d + 1))
    elevated[:, :d] = np.cumsum(scaled[:, ::-1], axis=1)[:, ::-1]
    elevated[:, 1:] -= axes * scaled
    nearest = np.rint(elevated / (d + 1)).astype(np.int64)
    rest = elevated - nearest * (d + 1)
    order = np.argsort(-rest, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(d + 1), order.shape), axis=1)
    # back onto the plane of sum 0
    rank += nearest.sum(axis=1, keepdims=True)
    nearest += (rank < 0).astype(np.int64) - (rank > d).astype(np.int64)
    rank = rank % (d + 1)
    offset = (elevated - nearest * (d + 1)) / (d + 1)
    ordered = np.empty_like(offset)
    np.put_along_axis(ordered, rank, offset, axis=1)  # from the largest to the smallest
    weights = np.empty((count, d + 1))
    weights[:, 1:] = -np.diff(ordered, axis=1)[:, ::-1]
    weights[:, 0] = 1 - weights[:, 1:].sum(axis=1)
    remainder = np.arange(d + 1)[:, None]
    vertices = nearest[:, None] * (d + 1) + remainder - (d + 1) * (rank[:, None] > d - remainder)
    return vertices.astype(np.int64), weights
