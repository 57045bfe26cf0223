"""Spherical k-means: groups of unit vectors by their direction."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

_CHUNK_ROWS = 2**14


class Clusters(NamedTuple):
    """Groups of n vectors.

    Attributes:
        labels: ``(n,)`` int64 group of every vector.
        centres: ``(k, d)`` float32 unit rows.
        cohesion: weighted mean cosine of the vectors to their centres.
    """

    labels: Tensor
    centres: Tensor
    cohesion: float


def spherical_kmeans(
    rows: Tensor, count: int, *, weights: Tensor | None = None, seed: int = 0, restarts: int = 3, iterations: int = 100
) -> Clusters:
    """Find ``count`` directions that the weighted vectors lie closest to in mean cosine.

    Source: Dhillon and Modha, "Concept decompositions for large sparse text data using clustering", 2001, with seeds
    drawn as k-means++ draws them (Arthur and Vassilvitskii, 2007). The best of ``restarts`` runs is kept. With fewer
    vectors than ``count`` there are as many groups as vectors. Cost: n times count times d per iteration.

    Args:
        rows: ``(n, d)`` float, on any device; lengths do not matter, a row of zeros joins some group.
        count: number of groups, at least 1.
        weights: ``(n,)`` how much each vector counts, at least 0 and not all 0; None counts each once.
        seed: of all draws.
        restarts: runs from different seeds, at least 1.
        iterations: most steps of a run, at least 1; it ends when no vector changes its group.

    Raises:
        ValueError: if there is no vector, shapes do not fit, or an argument is out of range.
    """
    if rows.dim() != 2 or not rows.numel() or not rows.is_floating_point():
        raise ValueError(f"rows must be float of shape (n, d), not empty, got {rows.dtype} {tuple(rows.shape)}")
    for name, value in (("count", count), ("restarts", restarts), ("iterations", iterations)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    weights = torch.ones(len(rows), device=rows.device) if weights is None else weights
    if weights.shape != rows.shape[:1] or not bool((weights >= 0).all()) or not bool((weights > 0).any()):
        raise ValueError(f"weights must be (n,) with n = {len(rows)}, at least 0 and not all 0, got {weights}")
    rows, weights = functional.normalize(rows.float(), dim=1), weights.double() / weights.double().sum()
    generator = torch.Generator().manual_seed(seed)
    runs = [_run(rows, weights, min(count, len(rows)), generator, iterations) for _ in range(restarts)]
    return max(runs, key=lambda run: run.cohesion)


def _run(rows: Tensor, weights: Tensor, count: int, generator: torch.Generator, iterations: int) -> Clusters:
    centres = rows[_draw_seeds(rows, weights, count, generator)]
    labels, cosines = _assign(rows, centres)
    for _ in range(iterations):
        total = torch.zeros(count, rows.shape[1], dtype=torch.float64, device=rows.device)
        for start in range(0, len(rows), _CHUNK_ROWS):
            part = slice(start, start + _CHUNK_ROWS)
            total.index_add_(0, labels[part], rows[part].double() * weights[part, None])
        held = torch.linalg.vector_norm(total, dim=1) > 1e-12
        # a group that lost its vectors keeps its place
        centres = torch.where(held[:, None], functional.normalize(total, dim=1).float(), centres)
        previous, (labels, cosines) = labels, _assign(rows, centres)
        if torch.equal(previous, labels):
            break
    return Clusters(labels, centres, float((cosines.double() * weights).sum()))


def _assign(rows: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    best = [(part @ centres.T).max(dim=1) for part in torch.split(rows, _CHUNK_ROWS)]
    return torch.cat([found.indices for found in best]), torch.cat([found.values for found in best])


def _draw_seeds(rows: Tensor, weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices of different rows, each drawn by weight times distance to those drawn before."""
    distance = torch.ones_like(weights)
    free = torch.ones_like(weights)
    drawn: list[int] = []
    for _ in range(count):
        for chance in (weights * distance * free, weights * free, free):
            total = float(chance.sum())
            if total > 1e-12:
                break
        point = float(torch.rand((), dtype=torch.float64, generator=generator)) * total
        sums = chance.cumsum(dim=0)
        index = int(
            torch.searchsorted(sums, torch.tensor([point], dtype=sums.dtype, device=sums.device), right=True)[0]
        )
        # rounding may carry the point past the last row that has a chance
        if index >= len(rows) or not float(chance[index]) > 0:
            index = int(chance.argmax())
        drawn.append(index)
        free[index] = 0
        distance = torch.minimum(distance, (1 - rows @ rows[index]).double().clamp_min(0))
    return torch.tensor(drawn, device=rows.device)
