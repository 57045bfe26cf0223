"""Bounds on the spatial similarity (Eq. 2) from the second moments of the tokens, without visiting them again.

With C = Σ_k w_k F_k F_kᵀ and D = U_i − U_j, Eq. 2 is one minus m = Σ_k w_k |D·F_k|, and as |D·F_k| ≤ ‖D‖

    D·C·D / ‖D‖ ≤ m ≤ sqrt(D·C·D).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from s2uniseg_d2.core.labelers.rounding import gamma

# Steps of subspace iteration; more of them tighten the coarse bounds, which hold after any number.
COARSE_STEPS = 4
# Columns of C that are computed at a time, from the diagonal on.
BLOCK = 192


class Moments(NamedTuple):
    """C in float64, symmetric, and a bound on the spectral norm of its error."""

    matrix: Tensor
    error: float


class Spread(NamedTuple):
    """Bounds on D·C·D: with r = ‖D·basis‖, r² − below·‖D‖² ≤ D·C·D ≤ r² + above·‖D‖² for every vector D.

    Attributes:
        basis: ``(d, n)`` float32.
        below: see above, at least 0.
        above: see above, at least 0.
        slack: bound on the rounding error of r, computed in float32 from U_i·basis and U_j·basis.
    """

    basis: Tensor
    below: float
    above: float
    slack: float


def measure_moments(rows: Tensor, weights: Tensor, chunk: int) -> Moments:
    """Return C.

    Args:
        rows: ``(k, d)`` float32 rounded unit rows F.
        weights: ``(k,)`` float32, sum to 1.
        chunk: rows whose products are added in float32; chunks are added in float64. Cost: k·d² operations and a bit.
    """
    width = rows.shape[1]
    total = torch.zeros(width, width, dtype=torch.float64, device=rows.device)
    for start in range(0, rows.shape[0], chunk):
        part = rows[start : start + chunk]
        weighted = part * weights[start : start + chunk, None]
        for first in range(0, width, BLOCK):
            # C is symmetric: the blocks below the diagonal are left out.
            total[first : first + BLOCK, first:] += part[:, first : first + BLOCK].T @ weighted[:, first:]
    # The spectral norm of the error is at most its Frobenius norm, and Σ_k w_k ‖F_k‖² = 1.
    return Moments(total.triu() + total.triu(1).T, 1.5 * gamma(min(chunk, rows.shape[0]) + 12))


def bound_spread(moments: Moments, rounding: float) -> Spread:
    """Return the tight bounds, from all of C by its Cholesky factor; ``basis`` is ``(d, d)``.

    Args:
        moments: C.
        rounding: of an inner product of two vectors no longer than 1, the entries of U and their errors included.
    """
    shifted = moments.matrix.clone()
    shifted.diagonal().add_(moments.error)
    basis = torch.linalg.cholesky(shifted)
    return Spread(basis.float(), 2 * moments.error, 0.0, _projection_slack(basis, rounding))


def bound_spread_coarsely(moments: Moments, start: Tensor, rounding: float) -> Spread:
    """Return cheap bounds, from the leading directions of C and the most that the others can add.

    For orthonormal Q and a = D·Q, D·C·D differs from a·QᵀCQ·aᵀ by a cross term of at most ‖(I − QQᵀ)CQ‖·‖D‖² and by a
    rest between 0 and μ·(‖D‖² − ‖a‖²), with μ the largest eigenvalue of (I − QQᵀ)C(I − QQᵀ).

    Args:
        moments: C.
        start: ``(d, n)`` float64, n ≤ d, directions to start from; any will do.
        rounding: as for :func:`bound_spread`.
    """
    matrix = moments.matrix
    q = torch.linalg.qr(start).Q
    for _ in range(COARSE_STEPS):
        q = torch.linalg.qr(matrix @ q).Q
    values, vectors = torch.linalg.eigh(q.T @ matrix @ q)
    q = q @ vectors
    cross = matrix @ q - q * values
    rest = matrix - (q * values) @ q.T - cross @ q.T - q @ cross.T
    mu = _bound_spectral_norm(rest)
    basis = q * (values - mu).clamp_min(0).sqrt()
    outside = float(torch.linalg.matrix_norm(cross)) + moments.error
    return Spread(basis.float(), outside, mu + outside, _projection_slack(basis, rounding))


def _projection_slack(basis: Tensor, rounding: float) -> float:
    # Two projections of vectors no longer than 1, and the norm of their difference.
    return (2 * float(torch.linalg.matrix_norm(basis)) + 1) * rounding


def _bound_spectral_norm(matrix: Tensor) -> float:
    """Return a number not below any eigenvalue's size of a symmetric float64 matrix: ‖X²‖ to the power 1/2."""
    single = matrix.float()
    norm = float(torch.linalg.matrix_norm(matrix))
    error = gamma(matrix.shape[0] + 4) * norm**2
    return float((torch.linalg.matrix_norm((single @ single).double()) + error) ** 0.5)
