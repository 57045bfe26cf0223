"""What the votes of Eq. 5 are made of: products in parts, whose error is small, and how far off a vote may be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from s2uniseg_d2.core.labelers.rounding import gamma
from s2uniseg_d2.core.labelers.rows import SHORTEST
from s2uniseg_d2.core.ops.products import multiply

# Parts of a float32 sum of products, added up afterwards: the fewer terms in a row, the smaller the certain error.
PARTS = 4


def sum_products(rows: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Return Σ_p rows_p others_pᵀ in float32.

    Args:
        rows: ``(n, d_p)`` parts of the width of one side.
        others: ``(m, d_p)`` the same parts of the other.
    """
    total = multiply(rows[0], others[0].T)
    for some, columns in zip(rows[1:], others[1:], strict=True):
        total += multiply(some, columns.T)
    return total


def vote_in_parts(ballots: Tensor, rows: Tensor, size: int) -> Tensor:
    """Return ballots @ rows in float32 as the sum over parts of ``size`` voters.

    Args:
        ballots: ``(n, k)``.
        rows: ``(k, d)`` the voters.
        size: voters of a part.
    """
    vote = multiply(ballots[:, :size], rows[:size])
    for start in range(size, rows.shape[0], size):
        vote += multiply(ballots[:, start : start + size], rows[start : start + size])
    return vote


def vote_error(ballot: Tensor, terms: float, summed: int, length: Tensor) -> Tensor:
    """Bound how far off the direction of a vote may be; 2 if anything.

    Ballots b_k(1 + ε_k) turn the vote v = Σ b_k F_k / Σ b_k by Σ b_k ε_k (F_k − v) alone, and the mean distance of rows
    F_k no longer than 1 from v is at most sqrt(1 − ‖v‖²): where voters agree, errors of their ballots hardly matter.

    Args:
        ballot: bound on every |ε_k|.
        terms: bound on the error of v for the ballots that there are.
        summed: ballots that were added up in float32 at a time; 0 for float64.
        length: of v.
    """
    least = (length * (1 - gamma(summed + 2)) - terms).clamp_min(0)
    error = ballot / (1 - 2 * ballot).clamp_min(0.1) * (1 - least.square()).clamp_min(0).sqrt() + terms
    return torch.where(ballot < 0.1, direction_error(error, least), 2.0)


def direction_error(error: Tensor, length: Tensor) -> Tensor:
    """How far off a vector's direction may be when the vector, of that length, is off by ``error``; 2 if anything."""
    relative = error / length.clamp_min(SHORTEST)
    # Unit vectors at a relative distance below 0.1 are at most 1.1 times that far apart.
    return torch.where(relative < 0.1, 1.1 * relative, 2.0)


def slices(count: int, size: int) -> list[slice]:
    """Slices of ``size``, the last of which may be shorter."""
    return [slice(start, start + size) for start in range(0, count, size)]


def even_slices(count: int, most: int) -> list[slice]:
    """Slices of about the same size: a small last one would read all voters for little."""
    return slices(count, -(-count // max(1, -(-count // most))) or 1)
