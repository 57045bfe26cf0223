"""The tokens of one picture as voters: unit rows in float32, exact rows on demand, and what all rows say together.

Axes: k voters, d feature width, n queries.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from s2uniseg_d2.core.labelers.rounding import UNIT, gamma
from s2uniseg_d2.core.labelers.rows import ROW_CHUNK, SHORT_SUM, normalise_rows, subtract_rows, sum_rows, take_rows
from s2uniseg_d2.core.labelers.spread import (
    CoarseSpread,
    Moments,
    TightSpread,
    bound_spread,
    bound_spread_coarsely,
    measure_moments,
)
from s2uniseg_d2.core.labelers.votes import PARTS, even_slices, slices, sum_products, vote_error, vote_in_parts
from s2uniseg_d2.core.ops.buffers import empty
from s2uniseg_d2.core.ops.products import multiply

# Float32 votes that come no nearer to the exact ones, by the rounding of their logits alone, are no embeddings.
EMBEDDING_ROUNDING = 4e-6
# Float32 factors of a binary exponent up to this size keep all their digits.
DIGITS_KEPT = 100
VOTER_CHUNK = 2048
# Voters that are read in float64 at a time: they stay in the cache between their conversion and their products.
DOUBLE_CHUNK = 512
QUERY_CHUNK = 512
ELECTION_CHUNK = 640
# Voters per channel up to which no bounds are made.
FEW = 1.5
# Norm of queries up to which exponentials of logits and their sums keep within float32 without a shift.
LONGEST_STEADY = 40.0
# Queries up to which reading the voters takes longer than computing.
FEW_QUERIES = 48
# Directions of the coarse bounds.
COARSE_RANK = 16
# Groups of neighbouring voters whose means bound Eq. 2 from below, about.
GROUPS = 256
# Rows of F Fᵀ that are computed at a time, from the diagonal on.
AFFINITY_BLOCK = 256
# Units by which a row may be off in norm.
ROW_ERROR = 3
# Units by which rows and means of rows may be off in norm: rounding, and the sum of SHORT_SUM rows.
VECTOR_ERROR = SHORT_SUM + 6


class VoterGroups(NamedTuple):
    """Means of groups of voters: ``(g, d)`` float32, and the groups' shares of the picture ``(g,)`` float32."""

    means: Tensor
    weights: Tensor


class Voters:
    """L2-normalised features F of one picture, each with the number of tokens that share it.

    Attributes:
        rows: ``(k, d)`` float32, F within ROW_ERROR units of rounding.
        sizes: ``(k,)`` int64 tokens that each voter stands for.
        weights: ``(k,)`` float64 share of the picture's tokens, sums to 1.
        rounding: bound on the error of an inner product, in float32, of two vectors no longer than 1 that are rows,
            means of rows or differences of such.
    """

    def __init__(self, raw: Tensor, sizes: Tensor, grid: tuple[int, int] | None = None) -> None:
        """Normalise the features.

        Args:
            raw: ``(d, k)`` features before normalisation, finite, no zero column.
            sizes: ``(k,)`` int64 tokens that each voter stands for.
            grid: rows and columns, if the voters are a grid in row-major order; groups of neighbours follow it.
        """
        d, k = raw.shape
        if raw.dtype == torch.float64:
            # Scaled by the largest entry first: squares of float64 features may overflow.
            raw = raw / raw.abs().amax(dim=0)
        self._set(raw, sizes, grid or (1, k))
        self._inverse_norms = torch.empty(k, dtype=torch.float64, device=raw.device)
        self.rows = empty((k, d), torch.float32, raw.device).copy_(self._raw.t())
        for part in slices(k, ROW_CHUNK):
            exact = self.rows[part].double() if raw.dtype != torch.float64 else self._raw[:, part].t()
            inverse = self._inverse_norms[part] = torch.linalg.vecdot(exact, exact).rsqrt()
            if raw.dtype != torch.float64 and bool((inverse.abs().log2().abs() < DIGITS_KEPT).all()):
                self.rows[part] *= inverse[:, None].float()
            else:
                self.rows[part] = exact * inverse[:, None]

    def _set(self, raw: Tensor, sizes: Tensor, grid: tuple[int, int]) -> None:
        self._tokens: Voters | None = None
        self.sizes = sizes
        self.weights = sizes.double() / sizes.sum()
        self.rounding = gamma(raw.shape[0] + 2 * VECTOR_ERROR + 4)
        self._raw = raw
        self._grid = grid
        self._weights32 = self.weights.float()

    def pool(self, side: int) -> Voters:
        """Return voters that are the means of squares of ``side x side`` tokens of the grid, not normalised again.

        An approximation that is not in the paper: Eq. 2 and Eq. 5 cost ``side²`` times less. Means of tokens that
        disagree are short, so that they have less say.
        """
        labels, grid = self._square_groups(side)
        count = grid[0] * grid[1]
        sums = torch.zeros(count, self.width, dtype=torch.float64, device=self.rows.device)
        sizes = torch.zeros(count, dtype=torch.int64, device=self.rows.device).index_add_(0, labels, self.sizes)
        for part in slices(len(self), ROW_CHUNK):
            sums.index_add_(0, labels[part], self.exact(part) * self.sizes[part, None])
        means = sums / sizes[:, None]
        pooled = Voters.__new__(Voters)
        pooled._set(means.T, sizes, grid)
        pooled._tokens = self
        pooled.rows = means.float()
        pooled._inverse_norms = torch.ones(count, dtype=torch.float64, device=self.rows.device)
        return pooled

    def _square_groups(self, side: int) -> tuple[Tensor, tuple[int, int]]:
        """The square of each voter, in row-major order, and the squares' rows and columns."""
        rows, columns = self._grid
        row = torch.arange(rows, device=self.rows.device) // side
        column = torch.arange(columns, device=self.rows.device) // side
        grid = (-(-rows // side), -(-columns // side))
        return (row[:, None] * grid[1] + column).flatten(), grid

    def __len__(self) -> int:
        """Return the number of voters."""
        return self.rows.shape[0]

    @property
    def are_few(self) -> bool:
        """Whether all affinities of the voters among themselves cost less than their second moments and a factor."""
        return len(self) <= FEW * self.width

    @cached_property
    def affinities(self) -> Tensor | None:
        """F Fᵀ ``(k, k)`` float32 of few voters, unless they are pooled: hardly larger than F; None for others.

        A region's affinities are sums of these rows, so that Eq. 2 and Eq. 5 need no other product with all voters.
        """
        if not self.are_few or self._tokens is not None:
            return None
        products = torch.empty(len(self), len(self), device=self.rows.device)
        for first in range(0, len(self), AFFINITY_BLOCK):
            # F Fᵀ is symmetric: the blocks left of the diagonal are copied.
            last = first + AFFINITY_BLOCK
            block = products[first:last, first:] = sum_products(
                [columns[first:last] for columns in self._width_parts],
                [columns[first:] for columns in self._width_parts],
            )
            products[last:, first:last] = block[:, AFFINITY_BLOCK:].T
        return products

    @property
    def tokens(self) -> Voters:
        """The tokens that vote, or whose means vote (:meth:`pool`); these voters themselves unless they are pooled."""
        # No attribute that names itself: a cycle would keep a picture's rows until the collector comes by.
        return self if self._tokens is None else self._tokens

    @property
    def width(self) -> int:
        """The feature width d."""
        return self.rows.shape[1]

    def exact(self, index: Tensor | slice) -> Tensor:
        """Return the chosen rows of F in float64."""
        return self._raw[:, index].t().double() * self._inverse_norms[index, None]

    def _parts(self, vectors: Tensor) -> list[slice]:
        """The chunks of voters that meet vectors of this type at a time."""
        return slices(len(self), VOTER_CHUNK if vectors.dtype == torch.float32 else min(VOTER_CHUNK, DOUBLE_CHUNK))

    def _rows_for(self, vectors: Tensor, part: slice, exact: bool) -> Tensor:
        if vectors.dtype == torch.float32:
            return self.rows[part]
        if exact:
            return self.exact(part)
        rows = self.rows[part]
        return self._double_chunk[: rows.shape[0]].copy_(rows)

    @cached_property
    def _double_chunk(self) -> Tensor:
        # Reused by every chunk: fresh memory for each costs more than the conversion.
        return torch.empty(min(DOUBLE_CHUNK, len(self)), self.width, dtype=torch.float64, device=self.rows.device)

    @cached_property
    def spread(self) -> TightSpread:
        """Tight bounds on the voters' spread, made when first asked for."""
        return bound_spread(self._moments, self.rounding)

    @cached_property
    def coarse_spread(self) -> CoarseSpread:
        """Cheap bounds on the voters' spread, made when first asked for."""
        start = torch.linspace(0, len(self) - 1, min(COARSE_RANK, self.width), device=self.rows.device).long()
        return bound_spread_coarsely(self._moments, self.rows[start].T, self.rounding)

    @cached_property
    def _moments(self) -> Moments:
        return measure_moments(self.rows, self._weights32, VOTER_CHUNK)

    @cached_property
    def _weigh_alike(self) -> bool:
        return bool((self.sizes == self.sizes[0]).all())

    @cached_property
    def groups(self) -> VoterGroups:
        """Square groups of neighbouring voters, made when first asked for."""
        labels, grid = self._square_groups(max(1, round((len(self) / GROUPS) ** 0.5)))
        count = grid[0] * grid[1]
        weights = torch.zeros(count, dtype=torch.float64, device=labels.device).index_add_(0, labels, self.weights)
        if self._weigh_alike:
            means = sum_rows(self.rows, labels, count) / torch.bincount(labels, minlength=count)[:, None]
        else:
            means = sum_rows(self.rows * self._weights32[:, None], labels, count) / weights[:, None]
        return VoterGroups(means.float(), weights.float())

    def bound_disagreement_below(self, means: Tensor, ends: Tensor) -> Tensor:
        """Return a lower bound on :meth:`disagreement` ``(e,)``, float64: Σ_g w_g |D·μ_g| over the group means μ_g."""
        means, ends = used_rows(means, ends)
        votes = multiply(means, self.groups.means.T)
        bound = torch.empty(ends.shape[1], dtype=torch.float64, device=means.device)
        for first in range(0, ends.shape[1], QUERY_CHUNK):
            part = slice(first, first + QUERY_CHUNK)
            bound[part] = subtract_rows(votes, ends[:, part]).abs_() @ self.groups.weights
        return bound - 3 * self.rounding - gamma(len(self.groups.weights) + 2) * bound

    def disagreement_known(self, affinities: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """Return :meth:`disagreement` and bounds on its errors, both ``(e,)``, from products that are known already.

        Args:
            affinities: ``(n, k)`` float32 U·F, means of :attr:`affinities`.
            ends: ``(2, e)`` int64 pairs of rows of ``affinities``.
        """
        weights = self._weights32
        total = torch.empty(ends.shape[1], dtype=torch.float64, device=ends.device)
        for first in range(0, ends.shape[1], QUERY_CHUNK):
            part = slice(first, first + QUERY_CHUNK)
            total[part] = subtract_rows(affinities, ends[:, part]).abs_() @ weights
        rounding = gamma(self._short_width + PARTS + 2 * VECTOR_ERROR + 4)
        return total, 3 * rounding + gamma(len(self) + 2) * total

    def disagreement(self, means: Tensor, ends: Tensor, exact: bool = True) -> tuple[Tensor, Tensor]:
        """Return Σ_k w_k |D·F_k| with D = means[i] − means[j] for every pair (Eq. 2 without "1 −").

        Args:
            means: ``(n, d)`` U, norms at most 1, float32 (means of ``rows``) or float64 (exact).
            ends: ``(2, e)`` int64 pairs of rows of ``means``.
            exact: for float64 means, whether to read F exactly; ``rows`` in float64 arithmetic cost a fraction, and the
                means may be those of ``rows`` then.

        Returns:
            Float64 values ``(e,)`` and bounds on their errors ``(e,)``, zero for exact ones.
        """
        means, ends = used_rows(means, ends)
        # The affinities of the nodes serve all their pairs; with fewer pairs than nodes the differences are fewer.
        by_node = means.shape[0] <= ends.shape[1]
        total = means.new_zeros(ends.shape[1], dtype=torch.float64)
        for part in self._parts(means):
            rows = self._rows_for(means, part, exact)
            weights = self.weights[part].to(means.dtype)
            votes = multiply(means, rows.T) if by_node else None
            for first in range(0, ends.shape[1], QUERY_CHUNK):
                pairs = ends[:, first : first + QUERY_CHUNK]
                gap = multiply(subtract_rows(means, pairs), rows.T) if votes is None else subtract_rows(votes, pairs)
                total[first : first + QUERY_CHUNK] += gap.abs_() @ weights
        if means.dtype == torch.float64:
            return total, torch.full_like(total, 0.0 if exact else 4 * ROW_ERROR * UNIT)
        return total, 3 * self.rounding + gamma(VOTER_CHUNK + 2) * total

    def elect(
        self, queries: Tensor, reach: Tensor | None = None, exact: bool = True, logits: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return L2N{softmax(q·F) F} for every query, the vote of Eq. 5.

        Args:
            queries: ``(n, d)`` the regions' vectors over σ, float32 (made of means of ``rows``) or float64 (exact).
            reach: ``(n,)`` float64, for queries made of ``rows``: what their norms would be if all tokens of a region
                agreed; None: the queries are exact but for their last digit.
            exact: for float64 queries, whether to read F exactly; ``rows`` in float64 arithmetic cost a fraction, and
                the queries may be those of ``rows`` then.
            logits: ``(n, k)`` float32 q·F of float32 queries, made of :attr:`affinities`, where they are known.

        Returns:
            ``(n, d)`` in the queries' type, and a bound ``(n,)`` on the Euclidean error of each row, float64; 2 says
            that the query needs float64; zero for an exact election.
        """
        if reach is None:
            reach = torch.zeros(queries.shape[0], dtype=torch.float64, device=queries.device)
        parts = [
            self._elect_chunk(queries[part], reach[part], None if logits is None else logits[part], exact)
            for part in even_slices(len(queries), ELECTION_CHUNK)
        ]
        if not parts:
            return queries, queries.new_zeros(0, dtype=torch.float64)
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    def _elect_chunk(self, queries: Tensor, reach: Tensor, known: Tensor | None, exact: bool) -> tuple[Tensor, Tensor]:
        single = queries.dtype == torch.float32
        norms = torch.linalg.vector_norm(queries, dim=1, dtype=torch.float64)
        # No logit exceeds the norm of its query.
        steady = bool((norms <= LONGEST_STEADY).all())
        peak = queries.new_full((queries.shape[0], 1), 0.0 if steady else -torch.inf, dtype=torch.float64)
        mass = torch.zeros_like(peak)
        vote = torch.zeros(queries.shape, dtype=torch.float64, device=queries.device)
        for part in self._parts(queries):
            rows = self._rows_for(queries, part, exact)
            if known is not None:
                logits = known[:, part].clone()
            else:
                logits = self._compare_in_parts(queries, part) if single else multiply(queries, rows.T)
            if not steady:
                top = torch.maximum(peak, logits.amax(dim=1, keepdim=True).double())
                logits -= top.to(logits.dtype)
                fade = (peak - top).exp_()
                mass *= fade
                vote *= fade
                peak = top
            ballots = logits.exp_()
            if not self._weigh_alike:
                ballots *= self.weights[part].to(ballots.dtype)
            mass += ballots.sum(dim=1, keepdim=True)
            vote += (
                vote_in_parts(ballots, rows, VOTER_CHUNK // self._parts_for(queries))
                if single
                else multiply(ballots, rows)
            )
        vote /= mass
        elected, length = normalise_rows(vote), torch.linalg.vector_norm(vote, dim=1)
        if single:
            # Known logits are sums of the products of single tokens, whose errors count in full where tokens differ.
            parts = self._parts_for(queries)
            width = -(-self.width // parts) if known is None else self._short_width
            logit_error = gamma(width + PARTS + 6) * (norms if known is None else reach) + VECTOR_ERROR * UNIT * reach
            return elected.float(), self._election_error(norms, logit_error, length, VOTER_CHUNK // parts)
        if exact:
            return elected, torch.zeros_like(length)
        ballot = torch.expm1(ROW_ERROR * UNIT * (norms + reach))
        return elected, vote_error(ballot, ROW_ERROR * UNIT, 0, length)

    def _compare_in_parts(self, queries: Tensor, part: slice) -> Tensor:
        """Inner products in float32 as sums over parts of the width: the fewer terms in a row, the smaller the error.

        Near ties go to float64, and there are as many of them as that error is large. Of few queries there are few, and
        reading the voters' parts would cost more than the products.
        """
        if self._parts_for(queries) == 1:
            return multiply(queries, self.rows[part].T)
        return sum_products(
            torch.split(queries, self._short_width, dim=1), [columns[part] for columns in self._width_parts]
        )

    @staticmethod
    def _parts_for(queries: Tensor) -> int:
        """Parts in which sums of the width and of a chunk of voters are taken."""
        return 1 if queries.shape[0] <= FEW_QUERIES else PARTS

    @property
    def _short_width(self) -> int:
        return -(-self.width // PARTS)

    @cached_property
    def _width_parts(self) -> list[Tensor]:
        # Copies: products of parts of a wider matrix are slow.
        parts = torch.split(self.rows, self._short_width, dim=1)
        buffer = empty((self.rows.numel(),), self.rows.dtype, self.rows.device)
        copies = torch.split(buffer, [part.numel() for part in parts])
        return [copy.view(part.shape).copy_(part) for copy, part in zip(copies, parts, strict=True)]

    def _election_error(self, norms: Tensor, logit_error: Tensor, length: Tensor, part: int) -> Tensor:
        """Bound the error of float32 votes of queries of these norms, summed over ``part`` voters at a time."""
        # A shift of the logits (they lie within the queries' norms), exp (a few units) and the token weight.
        ballot = torch.expm1(logit_error + 2.1 * UNIT * norms + 8 * UNIT)
        terms = gamma(min(part, len(self)) + PARTS + 6)
        good = UNIT * norms < EMBEDDING_ROUNDING * length
        return torch.where(good, (vote_error(ballot, terms, VOTER_CHUNK, length) + 2 * UNIT).clamp_max(2), 2.0)


def used_rows(means: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows that pairs name, or all where that is simpler, and the pairs in their numbers."""
    if ends.shape[1] > means.shape[0]:
        return means, ends
    nodes, ends = torch.unique(ends, return_inverse=True)
    return take_rows(means, nodes), ends
