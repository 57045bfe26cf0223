"""Bounds on the spatial similarity (Eq. 2) from the second moments of the tokens, without visiting them again.

With C = Σ_k w_k F_k F_kᵀ and D = U_i − U_j, Eq. 2 is one minus m = Σ_k w_k |D·F_k|, and as |D·F_k| ≤ ‖D‖

    D·C·D / ‖D‖ ≤ m ≤ sqrt(D·C·D).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from s2uniseg_d2.core.labelers.rounding import UNIT, gamma
from s2uniseg_d2.core.labelers.rows import subtract_rows
from s2uniseg_d2.core.ops.products import multiply

# Steps of subspace iteration; more of them tighten the coarse bounds, which hold after any number.
COARSE_STEPS = 2
# First guess of what the directions outside the coarse basis add at most, over the lower quartile of the values inside.
ABOVE_GUESS = 1.75
SMALLEST_GUESS = 1e-9
# A guess that is refuted is raised by this factor.
GUESS_GROWTH = 1.5
# More than rounding can hide in float64 products of matrices with norms of about 1 and some thousand rows.
HIDDEN = 1e-11
# Columns of C that are computed at a time, from the diagonal on.
BLOCK = 128
EDGE_CHUNK = 512


class Moments(NamedTuple):
    """C in float64, symmetric, and a bound on the spectral norm of its error."""

    matrix: Tensor
    error: float


class TightSpread(NamedTuple):
    """Bounds on D·C·D from C itself.

    Attributes:
        matrix: ``(d, d)`` float32, C rounded.
        norm: not below the Frobenius norm of ``matrix``.
        error: bound on the spectral norm of the error of ``matrix``.
        rounding: of an inner product, in float32, of two vectors no longer than 1, the errors of U included.
    """

    matrix: Tensor
    norm: float
    error: float
    rounding: float

    def bound(self, means: Tensor, ends: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
        """Return what D·C·D with D = means[i] − means[j] lies between, ``(e,)`` float64 each.

        Args:
            means: ``(n, d)`` float32, of length 1 at most.
            ends: ``(2, e)`` int64 pairs of rows of ``means``.
            gap: ``(e,)`` float64, not below ‖D‖.
        """
        # The products of the nodes with C serve all their edges; with fewer edges than nodes the differences are fewer.
        echo = multiply(means, self.matrix) if means.shape[0] <= ends.shape[1] else None
        square = torch.empty_like(gap)
        for start in range(0, ends.shape[1], EDGE_CHUNK):
            part = ends[:, start : start + EDGE_CHUNK]
            apart = subtract_rows(means, part)
            other = multiply(apart, self.matrix) if echo is None else subtract_rows(echo, part)
            square[start : start + EDGE_CHUNK] = torch.linalg.vecdot(apart, other)
        # The errors of both sides of the last product reach it times the length of the other one.
        slack = self.norm * self.rounding * gap * (2.1 + gap) + self.error * gap.square()
        return (square - slack).clamp_min_(0), square.clamp_min(0).add_(slack)


class CoarseSpread(NamedTuple):
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

    def bound(self, means: Tensor, ends: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`TightSpread.bound`."""
        projections = multiply(means, self.basis)
        reach = torch.empty_like(gap)
        for start in range(0, ends.shape[1], EDGE_CHUNK):
            part = slice(start, start + EDGE_CHUNK)
            reach[part] = torch.linalg.vector_norm(subtract_rows(projections, ends[:, part]), dim=1)
        squared_gap = gap.square()
        least = (reach - self.slack).clamp_min_(0).square_() - self.below * squared_gap
        return least.clamp_min_(0), (reach + self.slack).square_() + self.above * squared_gap


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
    for start in range(0, rows.shape[0], chunk):
        part = rows[start : start + chunk]
        if common is None:
            part = part * weights[start : start + chunk, None].sqrt()
        for first in range(0, rows.shape[1], BLOCK):
            # C is symmetric: the blocks below the diagonal are left out. PyTorch's product takes parts as they lie.
            total[first : first + BLOCK, first:] += part[:, first : first + BLOCK].T @ part[:, first:]
    for first in range(0, rows.shape[1], BLOCK):
        last = first + BLOCK
        total[last:, first:last] = total[first:last, last:].T
        # A product need not round (i, j) as it does (j, i).
        corner = total[first:last, first:last]
        total[first:last, first:last] = corner.triu() + corner.triu(1).T
    if common is not None:
        total *= common
    # The spectral norm of the error is at most its Frobenius norm, and Σ_k w_k ‖F_k‖² = 1.
    return Moments(total, 1.5 * gamma(min(chunk, rows.shape[0]) + 14))


def bound_spread(moments: Moments, rounding: float) -> TightSpread:
    """Return the tight bounds.

    Args:
        moments: C.
        rounding: of an inner product, in float32, of two vectors no longer than 1, the errors of U included.
    """
    matrix = moments.matrix.float()
    # Rounding C changes no entry by more than a unit of it.
    norm = 1.001 * float(torch.linalg.matrix_norm(moments.matrix))
    return TightSpread(matrix, norm, moments.error + 1.01 * UNIT * norm, rounding)


def bound_spread_coarsely(moments: Moments, start: Tensor, rounding: float) -> CoarseSpread:
    """Return cheap bounds, from the leading directions of C and the most that the others can add.

    Orthonormal Q from a few steps of subspace iteration splits C into QᵀCQ = Λ with smallest entry θ, the cross term
    X = (I − QQᵀ)CQ and a rest without negative eigenvalues. With B = Q (Λ − θ)^½, what C exceeds B Bᵀ by is θ on the
    span of Q, the cross term and the rest: its lowest eigenvalue is at least that of [[θ, −x], [−x, 0]] with x = ‖X‖.
    Its highest is guessed and proved: a Cholesky factorisation that runs to its end shows that a matrix has no
    negative eigenvalue beyond its rounding (Rump, BIT 46, 2006).

    Args:
        moments: C.
        start: ``(d, n)`` float32, n ≤ d, directions to start from; any will do.
        rounding: as for :func:`bound_spread`.
    """
    matrix = moments.matrix
    # Any directions will do, so that float32 finds them.
    single, q = matrix.float(), start
    for _ in range(COARSE_STEPS):
        q = torch.linalg.qr(single @ q).Q
    q = torch.linalg.qr(q.double()).Q  # float64 from here on, up to the factorisation that is the proof
    image = matrix @ q
    values, vectors = torch.linalg.eigh(q.T @ image)
    q, image = q @ vectors, image @ vectors
    least = float(values[0].clamp_min(0))
    cross = image - q * values
    overlap = float(torch.linalg.eigvalsh(cross.T @ cross)[-1].clamp_min(0)) + HIDDEN
    basis = q * (values - least).clamp_min(0).sqrt()
    below = ((least**2 + 4 * overlap) ** 0.5 - least) / 2 + HIDDEN
    outside = torch.addmm(matrix, basis, basis.T, beta=-1)  # B Bᵀ − C
    above = _bound_top_eigenvalue(outside, ABOVE_GUESS * float(values[len(values) // 4]))
    return CoarseSpread(basis.float(), below + moments.error, above + moments.error, _projection_slack(basis, rounding))


def _projection_slack(basis: Tensor, rounding: float) -> float:
    # Two projections of vectors no longer than 1, and the norm of their difference.
    return (2 * float(torch.linalg.matrix_norm(basis)) + 1) * rounding


def _bound_top_eigenvalue(negated: Tensor, guess: float) -> float:
    """Return a number not below the largest eigenvalue of a symmetric matrix whose trace is about 1 at most.

    Args:
        negated: the negative of the matrix, ``(d, d)`` float64.
        guess: the first number that is tried.
    """
    single, norm = negated.float(), float(torch.linalg.matrix_norm(negated))
    bound = max(guess, 0.0) + SMALLEST_GUESS
    # No eigenvalue exceeds the trace.
    while bound < 2:
        shifted = single.clone()
        shifted.diagonal().add_(bound)
        if int(torch.linalg.cholesky_ex(shifted).info) == 0:
            # A factorisation hides γ of the trace at most, and the float32 matrix a unit of each entry.
            hidden = 1.1 * gamma(len(single) + 2) * float(shifted.diagonal().double().sum())
            return bound + hidden + 2 * UNIT * (norm + bound * math.sqrt(len(single)))
        bound *= GUESS_GROWTH
    return 2.0
