"""Vectors of the nodes of many graphs at once; by kernels where Triton is there.

Axes: b graphs, s nodes (the most of any graph), m votes (likewise), v voters, d feature width, k rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s2uniseg_d2.core.ops.kernels import runs_as_kernel

# A vote shorter than this share of its ballots has no direction.
SHORTEST = 1e-9


@runs_as_kernel("vector_kernels")
def add_rows(rows: Tensor, slot: Tensor, count: int, most: int) -> Tensor:
    """Return sums of rows.

    Args:
        rows: ``(b, s, d)`` float64.
        slot: ``(b, s)`` int64 sum of each row, -1 for none.
        count: number of sums.
        most: no sum of entries, nor of their sizes, is larger.

    Returns:
        ``(b, count, d)`` float64; kernels keep 62 bits below ``most``, whatever the order in which the device adds.
    """
    b, s, d = rows.shape
    index = torch.where(slot >= 0, slot, count)[..., None].expand(b, s, d)
    return rows.new_zeros(b, count + 1, d).scatter_add_(1, index, rows)[:, :count]


@runs_as_kernel("vector_kernels")
def mean_rows(sums: Tensor, sizes: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``(b, s, d)`` sums of tokens over their numbers ``(b, s)`` in ``dtype``; zero for none."""
    return (sums / sizes.clamp_min(1)[..., None]).to(dtype)


@runs_as_kernel("vector_kernels")
def queue_rows(sums: Tensor, sizes: Tensor, place: Tensor, queries: Tensor, by_size: bool) -> None:
    """Write the rows that have a place to it.

    Args:
        sums: ``(b, s, d)`` float64.
        sizes: ``(b, s)`` int64 tokens of each.
        place: ``(b, s)`` int64, -1 for none.
        queries: ``(b, m, d)`` float64, written in place.
        by_size: whether sums are divided by their tokens.
    """
    graph, node = (place >= 0).nonzero().T
    rows = sums[graph, node]
    queries[graph, place[graph, node]] = rows / sizes[graph, node, None] if by_size else rows


@runs_as_kernel("vector_kernels")
def exponentiate(logits: Tensor, weights: Tensor | None) -> Tensor:
    """Turn logits into ballots in place, as a softmax does but for the division, and return the sums to divide by.

    Args:
        logits: ``(b, m, v)`` float64.
        weights: ``(b, v)`` float64 of the voters, 0 for padding; None where all are alike.

    Returns:
        ``(b, m)`` float64.
    """
    if weights is not None:
        logits.masked_fill_(weights[:, None] == 0, -torch.inf)
    logits.sub_(logits.amax(dim=2, keepdim=True)).exp_()
    if weights is not None:
        logits.mul_(weights[:, None])
    return logits.sum(dim=2)


@runs_as_kernel("vector_kernels")
def store_votes(votes: Tensor, totals: Tensor, place: Tensor, vectors: Tensor, rows: Tensor | None) -> None:
    """Write the directions of votes to the rows of their nodes; a vote that cancels becomes zero.

    Args:
        votes: ``(b, m, d)`` float64 sums of ballots.
        totals: ``(b, m)`` float64 of the ballots.
        place: ``(b, s)`` int64 place of each node's vote, -1 for none.
        vectors: ``(b, s, d)`` or ``(k, d)`` float, written in place.
        rows: ``(b, s)`` int64 row of each node in ``(k, d)``; None for ``(b, s, d)``.
    """
    graph, node = (place >= 0).nonzero().T
    chosen = votes[graph, place[graph, node]]
    length = torch.linalg.vector_norm(chosen, dim=1, keepdim=True)
    total = totals[graph, place[graph, node], None]
    direction = torch.where(length > SHORTEST * total, chosen / length, 0).to(vectors.dtype)
    vectors[(graph, node) if rows is None else rows[graph, node]] = direction


@runs_as_kernel("vector_kernels")
def store_rows(vectors: Tensor, rows: Tensor, chosen: Tensor, level: int, levels: Tensor) -> None:
    """Write the vectors of one level that have a row to it, and the level.

    Args:
        vectors: ``(b, s, d)`` float64.
        rows: ``(b, s)`` int64, -1 for none.
        chosen: ``(k, d)`` float, takes the vectors.
        level: a number.
        levels: ``(k,)`` int64, takes the number.
    """
    kept = rows >= 0
    chosen[rows[kept]] = vectors[kept].to(chosen.dtype)
    levels[rows[kept]] = level


@runs_as_kernel("vector_kernels")
def take_rows(vectors: Tensor, index: Tensor) -> Tensor:
    """Return the rows ``index`` ``(b, n)`` int64 of ``(b, s, d)`` vectors."""
    return torch.gather(vectors, 1, index[..., None].expand(-1, -1, vectors.shape[2]))


@runs_as_kernel("vector_kernels")
def normalise_tokens(features: Tensor, valid: Tensor, side: int) -> Tensor:
    """Return the first token of each block as a unit row, zero in the padding.

    Args:
        features: ``(b, d, h, w)`` float; finite and without zero vectors where they are valid.
        valid: ``(b, h, w)`` bool.
        side: tokens along a side of a block.

    Returns:
        ``(b, t, d)`` float64, row by row of the grid of blocks.
    """
    tokens = torch.where(valid[:, None], features, 0)[:, :, ::side, ::side].flatten(2).mT.contiguous().double()
    # Scaled by the largest entry first: squares of float64 features may overflow.
    peaks = tokens.abs().amax(dim=2, keepdim=True)
    tokens /= torch.where(peaks > 0, peaks, 1)
    length = torch.linalg.vector_norm(tokens, dim=2, keepdim=True)
    return tokens.div_(torch.where(length > 0, length, 1))
