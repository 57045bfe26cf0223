"""Bounds on the spatial similarity (Eq. 2) from the second moments of the tokens, without visiting them again.

With C = Σ_k w_k F_k F_kᵀ and D = U_i − U_j, Eq. 2 is one minus m = Σ_k w_k |D·F_k|, and as |D·F_k| ≤ ‖D‖

    D·C·D / ‖D‖ ≤ m ≤ sqrt(D·C·D).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from s2uniseg_d2.core.labelers.rounding import gamma
from s2uniseg_d2.core.ops.products import multiply

# Steps of subspace iteration; more of them tighten the coarse bounds, which hold after any number.
COARSE_STEPS = 2
# First guess of what the directions outside the coarse basis add at most, over the lower quartile of the values inside.
ABOVE_GUESS = 1.75
SMALLEST_GUESS = 1e-9
# A guess that is refuted is raised by this factor.
GUESS_GROWTH = 1.5
# More than rounding can hide in float64 products and factors of matrices with norms of about 1 and some thousand rows.
HIDDEN = 1e-11
# Columns of C that are computed at a time, from the diagonal on.
BLOCK = 256


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
    total = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
    # Equal weights, the usual case, are applied once at the end.
    common = float(weights[0]) if bool((weights == weights[0]).all()) else None
    # Reused by every chunk: fresh memory for each costs more than the copy.
    columns = torch.empty(rows.shape[1] * min(chunk, rows.shape[0]), device=rows.device)
    for start in range(0, rows.shape[0], chunk):
        part = rows[start : start + chunk]
        turned = columns[: part.numel()].view(part.T.shape).copy_(part.T)
        if common is None:
            turned *= weights[start : start + chunk].sqrt()
        for first in range(0, rows.shape[1], BLOCK):
            # C is symmetric: the blocks below the diagonal are left out.
            total[first : first + BLOCK, first:] += multiply(turned[first : first + BLOCK], turned[first:].T)
    matrix = total.triu() + total.triu(1).T
    if common is not None:
        matrix *= common
    # The spectral norm of the error is at most its Frobenius norm, and Σ_k w_k ‖F_k‖² = 1.
    return Moments(matrix, 1.5 * gamma(min(chunk, rows.shape[0]) + 14))


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

    Orthonormal Q from a few steps of subspace iteration splits C into QᵀCQ = Λ with smallest entry θ, the cross term
    X = (I − QQᵀ)CQ and a rest without negative eigenvalues. With B = Q (Λ − θ)^½, what C exceeds B Bᵀ by is θ on the
    span of Q, the cross term and the rest: its lowest eigenvalue is at least that of [[θ, −x], [−x, 0]] with x = ‖X‖.
    Its highest is guessed and proved: a Cholesky factorisation that runs to its end shows that a matrix has no
    negative eigenvalue beyond its rounding (Rump, BIT 46, 2006).

    Args:
        moments: C.
        start: ``(d, n)`` float64, n ≤ d, directions to start from; any will do.
        rounding: as for :func:`bound_spread`.
    """
    matrix = moments.matrix
    q = torch.linalg.qr(start).Q
    for _ in range(COARSE_STEPS):
        q = torch.linalg.qr(matrix @ q).Q
    image = matrix @ q
    values, vectors = torch.linalg.eigh(q.T @ image)
    q, image = q @ vectors, image @ vectors
    least = float(values[0].clamp_min(0))
    cross = image - q * values
    overlap = float(torch.linalg.eigvalsh(cross.T @ cross)[-1].clamp_min(0)) + HIDDEN
    basis = q * (values - least).clamp_min(0).sqrt()
    below = ((least**2 + 4 * overlap) ** 0.5 - least) / 2 + HIDDEN
    above = _bound_top_eigenvalue(matrix - basis @ basis.T, ABOVE_GUESS * float(values[len(values) // 4]))
    return Spread(basis.float(), below + moments.error, above + moments.error, _projection_slack(basis, rounding))


def _projection_slack(basis: Tensor, rounding: float) -> float:
    # Two projections of vectors no longer than 1, and the norm of their difference.
    return (2 * float(torch.linalg.matrix_norm(basis)) + 1) * rounding


def _bound_top_eigenvalue(matrix: Tensor, guess: float) -> float:
    """Return a number not below the largest eigenvalue of a symmetric float64 matrix of trace at most about 1."""
    bound = max(guess, 0.0) + SMALLEST_GUESS
    # No eigenvalue exceeds the trace.
    while bound < 2:
        shifted = -matrix
        shifted.diagonal().add_(bound)
        if int(torch.linalg.cholesky_ex(shifted).info) == 0:
            # Rounding hides (n + 1) units of the trace at most.
            return bound + HIDDEN * (1 + matrix.shape[0] * bound)
        bound *= GUESS_GROWTH
    return 2.0
