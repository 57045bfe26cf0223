"""The tokens of one picture as voters: unit rows in float32, exact rows on demand, and what all rows say together.

Axes: k voters, d feature width, n queries.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from s2uniseg_d2.core.labelers.rounding import UNIT, gamma
from s2uniseg_d2.core.labelers.spread import Moments, Spread, bound_spread, bound_spread_coarsely, measure_moments

# A vector shorter than this has no direction in float64 arithmetic; L2N makes it zero.
SHORTEST = 1e-9
# Float32 votes that come no nearer to the exact ones, by the rounding of their logits alone, are no embeddings.
EMBEDDING_ROUNDING = 4e-6
ROW_CHUNK = 256
VOTER_CHUNK = 2048
QUERY_CHUNK = 512
# Directions of the coarse bounds.
COARSE_RANK = 16
# Exact rows are kept for the next layer up to this size, about 180 x 180 tokens of width 768, and made anew beyond.
EXACT_BYTES = 200 * 2**20


def normalise_rows(rows: Tensor) -> Tensor:
    """Return rows of unit length; rows shorter than 1e-9 become zero."""
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return torch.where(length > SHORTEST, rows / length.clamp_min(SHORTEST), torch.zeros_like(rows))


class Voters:
    """L2-normalised features F of one picture, each with the number of tokens that share it.

    Attributes:
        rows: ``(k, d)`` float32, F rounded (relative error 2^-24 per entry).
        weights: ``(k,)`` float64 share of the picture's tokens, sums to 1.
    """

    def __init__(self, raw: Tensor, sizes: Tensor) -> None:
        """Normalise the features.

        Args:
            raw: ``(d, k)`` features before normalisation, finite, no zero column.
            sizes: ``(k,)`` int64 tokens that each voter stands for.
        """
        d, k = raw.shape
        self._raw = raw
        self.weights = sizes.double() / sizes.sum()
        self._weights32 = self.weights.float()
        self._inverse_norms = torch.empty(k, dtype=torch.float64, device=raw.device)
        self.rows = torch.empty(k, d, dtype=torch.float32, device=raw.device)
        for start in range(0, k, ROW_CHUNK):
            part = slice(start, start + ROW_CHUNK)
            exact = raw[:, part].t().double()
            # Scaled by the largest entry first: squares of float64 features may overflow.
            peak = exact.abs().amax(dim=1)
            self._inverse_norms[part] = 1 / (peak * torch.linalg.vector_norm(exact / peak[:, None], dim=1))
            self.rows[part] = exact * self._inverse_norms[part, None]

    def __len__(self) -> int:
        """Return the number of voters."""
        return self.rows.shape[0]

    @property
    def width(self) -> int:
        """The feature width d."""
        return self.rows.shape[1]

    def exact(self, index: Tensor | slice) -> Tensor:
        """Return the chosen rows of F in float64."""
        if isinstance(index, slice) and self.rows.numel() * 8 <= EXACT_BYTES:
            return self._exact_rows[index]
        return self._scale(index)

    @cached_property
    def _exact_rows(self) -> Tensor:
        return torch.cat([self._scale(slice(i, i + ROW_CHUNK)) for i in range(0, len(self), ROW_CHUNK)])

    def _scale(self, index: Tensor | slice) -> Tensor:
        return self._raw[:, index].t().double() * self._inverse_norms[index, None]

    @cached_property
    def spread(self) -> Spread:
        """Tight bounds on the voters' spread, made when first asked for."""
        return bound_spread(self._moments)

    @cached_property
    def coarse_spread(self) -> Spread:
        """Cheap bounds on the voters' spread, made when first asked for."""
        start = torch.linspace(0, len(self) - 1, min(COARSE_RANK, self.width)).long()
        return bound_spread_coarsely(self._moments, self.exact(start.to(self.rows.device)).T)

    @cached_property
    def _moments(self) -> Moments:
        return measure_moments(self.rows, self._weights32, VOTER_CHUNK)

    def disagreement(self, means: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """Return Σ_k w_k |D·F_k| with D = means[i] − means[j] for every pair (Eq. 2 without "1 −").

        Args:
            means: ``(n, d)`` U, norms at most 1, float32 (rounded from exact values) or float64.
            ends: ``(2, e)`` int64 pairs of rows of ``means``.

        Returns:
            Float64 values ``(e,)`` and bounds on their errors ``(e,)``, zero where ``means`` is float64.
        """
        nodes, ends = torch.unique(ends, return_inverse=True)
        means = means[nodes]
        # The affinities of the nodes serve all their pairs; with fewer pairs than nodes the differences are fewer.
        by_node = nodes.numel() <= ends.shape[1]
        total = means.new_zeros(ends.shape[1], dtype=torch.float64)
        for start in range(0, len(self), VOTER_CHUNK):
            part = slice(start, start + VOTER_CHUNK)
            rows = self.rows[part] if means.dtype == torch.float32 else self.exact(part)
            weights = self.weights[part].to(means.dtype)
            votes = means @ rows.T if by_node else None
            for first in range(0, ends.shape[1], QUERY_CHUNK):
                i, j = ends[:, first : first + QUERY_CHUNK]
                gap = votes[i] - votes[j] if votes is not None else (means[i] - means[j]) @ rows.T
                total[first : first + QUERY_CHUNK] += gap.abs_() @ weights
        if means.dtype == torch.float64:
            return total, torch.zeros_like(total)
        return total, 3 * gamma(self.width + 6) + gamma(VOTER_CHUNK + 2) * total

    def elect(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return L2N{softmax(q·F) F} for every query, the vote of Eq. 5.

        Args:
            queries: ``(n, d)`` float32 or float64, the regions' vectors divided by σ.

        Returns:
            ``(n, d)`` in the queries' type, and a bound ``(n,)`` on the Euclidean error of each row, float64: float32
            queries count as rounded from exact ones, and 2 says that they need float64; zero for float64 queries.
        """
        parts = [self._elect_chunk(part) for part in torch.split(queries, QUERY_CHUNK)]
        if not parts:
            return queries, queries.new_zeros(0, dtype=torch.float64)
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    def _elect_chunk(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        single = queries.dtype == torch.float32
        peak = queries.new_full((queries.shape[0], 1), -torch.inf, dtype=torch.float64)
        lowest = -peak
        mass = torch.zeros_like(peak)
        vote = torch.zeros(queries.shape, dtype=torch.float64, device=queries.device)
        for start in range(0, len(self), VOTER_CHUNK):
            part = slice(start, start + VOTER_CHUNK)
            rows = self.rows[part] if single else self.exact(part)
            logits = queries @ rows.T
            top = torch.maximum(peak, logits.amax(dim=1, keepdim=True).double())
            lowest = torch.minimum(lowest, logits.amin(dim=1, keepdim=True).double())
            ballots = (logits - top.to(logits.dtype)).exp_().mul_(self.weights[part].to(logits.dtype))
            fade = (peak - top).exp()
            mass = mass * fade + ballots.sum(dim=1, keepdim=True)
            vote = vote * fade + ballots @ rows
            peak = top
        elected = normalise_rows(vote / mass)
        if not single:
            return elected, torch.zeros_like(mass[:, 0])
        length = torch.linalg.vector_norm(vote / mass, dim=1)
        return elected.float(), self._election_error(queries, (peak - lowest)[:, 0], length)

    def _election_error(self, queries: Tensor, span: Tensor, length: Tensor) -> Tensor:
        """Bound the error of float32 votes whose logits span ``span`` and whose average has length ``length``."""
        norms = torch.linalg.vector_norm(queries.double(), dim=1)
        # Logits: rounded operands and an inner product; then the subtraction, exp (a few units) and the token weight.
        ballot = torch.expm1(gamma(self.width + 4) * norms + UNIT * span + 8 * UNIT)
        terms = gamma(min(VOTER_CHUNK, len(self)) + 4)
        relative = (ballot + terms * (1 + ballot)) / (1 - ballot).clamp_min(0.1) / length.clamp_min(SHORTEST)
        good = (relative < 0.1) & (ballot < 0.1) & (UNIT * norms < EMBEDDING_ROUNDING * length)
        # Unit vectors at a relative distance below 0.1 are at most 1.1 times that far apart.
        return torch.where(good, 1.1 * relative + 2 * UNIT, 2.0)
