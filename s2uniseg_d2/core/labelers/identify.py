"""The Identify step (Eq. 1 to 3): which nodes merge, decided as exact arithmetic would.

Only the components matter, and most edges never need Eq. 2: certified bounds accept or reject them, others lie inside a
component already. What is left is computed in float32, and what float32 cannot tell in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from s2uniseg_d2.core.labelers.rows import subtract_rows, take_rows
from s2uniseg_d2.core.labelers.spread import CoarseSpread, TightSpread
from s2uniseg_d2.core.labelers.supernodes import (
    Region,
    Supernodes,
    exact_features,
    exact_means,
    mean_affinities,
    refine,
)
from s2uniseg_d2.core.labelers.voters import Voters, used_rows
from s2uniseg_d2.core.ops.components import connected_components
from s2uniseg_d2.core.ops.products import multiply

# A similarity that misses τ by no more than this reaches it: ties are decided alike whatever the rounding of float64.
TIE = 1e-9
EDGE_CHUNK = 512
# Bound on the rounding of an inner product of two unit tokens in float64, some thousand wide.
TOKEN_ROUNDING = 1e-12
PAIR_ROWS = 512
# Pairs per node from which products of all nodes cost less than copies of both rows of each pair.
DENSE_FROM = 4
# Edges per feature channel from which the coarse bounds pay.
COARSE_FROM = 2


class Weighting(NamedTuple):
    """ω_f and ω_s of Eq. 3."""

    feature: float
    spatial: float


class Identification(NamedTuple):
    """Groups of nodes to merge, and what it took to find them.

    Attributes:
        labels: ``(s,)`` int64 group of each node, numbered by first node.
        undecided: edges that the bounds left to Eq. 2.
        exact: edges that went to float64.
    """

    labels: Tensor
    undecided: int
    exact: int


class _HopefulPairs(NamedTuple):
    """Pairs of which the first is one of PAIR_ROWS nodes from ``start`` on: ``(2, e)``, and Eq. 1 of each, ``(e,)``."""

    start: int
    pairs: Tensor
    feature: Tensor


class Identifier:
    """Finds the strongly connected groups of a picture's nodes for one threshold at a time."""

    def __init__(self, voters: Voters, weighting: Weighting, region: Region) -> None:
        self._voters = voters
        self._weighting = weighting
        self._region = region

    def group_edges(
        self, nodes: Supernodes, edges: Tensor, tau: float, cosines: Tensor | None = None
    ) -> Identification:
        """Return the components of the edges with S ≥ τ.

        Args:
            nodes: s nodes.
            edges: ``(2, e)`` int64 candidate pairs.
            tau: threshold.
            cosines: ``(e,)`` float32 inner products of the voters' rows that single tokens have, if they are known.
        """
        tau -= TIE
        return self._group(nodes, edges, *self._compare(nodes, edges, cosines=cosines), tau)

    def group_pairs(self, nodes: Supernodes, tau: float) -> Identification:
        """Return the components of all pairs of nodes with S ≥ τ.

        Args:
            nodes: s nodes; memory grows with 512·s and with the pairs that the bounds leave open.
            tau: threshold.
        """
        tau -= TIE
        count = nodes.sizes.numel()
        if count < 2:
            return Identification(torch.arange(count, device=nodes.sizes.device), 0, 0)
        hopeful = list(self._find_hopeful(nodes, tau))
        pairs = torch.cat([block.pairs for block in hopeful], dim=1)
        if pairs.shape[1] <= DENSE_FROM * count:
            return self._group(nodes, pairs, *self._compare(nodes, pairs), tau)
        screened = list(self._screen_pairs(nodes, hopeful, tau))
        labels = connected_components(torch.cat([yes for yes, _ in screened], dim=1), count)
        edges = torch.cat([maybe for _, maybe in screened], dim=1)
        edges = edges[:, labels[edges[0]] != labels[edges[1]]]
        return self._settle(nodes, labels, edges, *self._compare(nodes, edges), tau, bounded=True)

    def _group(
        self, nodes: Supernodes, edges: Tensor, feature: Tensor, slack: Tensor, gap: Tensor, tau: float
    ) -> Identification:
        """Components of compared edges."""
        # |D·F_k| ≤ ‖D‖ bounds Eq. 2 before anything is known of the other tokens.
        lowest, highest = self._bracket(feature, slack, torch.zeros_like(gap), gap)
        labels = connected_components(edges[:, lowest >= tau], nodes.sizes.numel())
        open_ = (lowest < tau) & (highest >= tau)
        return self._settle(nodes, labels, edges[:, open_], feature[open_], slack[open_], gap[open_], tau)

    def _find_hopeful(self, nodes: Supernodes, tau: float) -> Iterator[_HopefulPairs]:
        """Yield the pairs (i < j) that may reach τ by Eq. 1 alone, one block of rows after the other: most cannot."""
        rounding = self._voters.rounding
        weight_f, weight_s = self._weighting
        for start in range(0, nodes.sizes.numel(), PAIR_ROWS):
            rows = slice(start, start + PAIR_ROWS)
            cosines = multiply(nodes.features[rows], nodes.features[start:].T)
            worst = nodes.errors[start:].max() + nodes.errors[rows, None] + 2 * rounding
            hopeful = weight_f * (cosines + worst.float()) + weight_s >= tau
            i, j = hopeful.triu_(1).nonzero().T
            yield _HopefulPairs(start, torch.stack([i, j]) + start, cosines[i, j].double())

    def _screen_pairs(
        self, nodes: Supernodes, hopeful: Iterable[_HopefulPairs], tau: float
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the certain and the open pairs of each block of hopeful ones, by products of all nodes of the block."""
        rounding = self._voters.rounding
        squares = torch.linalg.vecdot(nodes.means, nodes.means).double()
        spread = None if self._voters.are_few else self._voters.spread
        if spread is not None:
            echo = multiply(nodes.means, spread.matrix)
            reaches = torch.linalg.vecdot(nodes.means, echo).double()
        for start, pairs, feature in hopeful:
            a, b = pairs
            block, rest = nodes.means[start : start + PAIR_ROWS], slice(start, None)
            slack = nodes.errors[a] + nodes.errors[b] + rounding
            # Differences of squares: the rounding of an inner product, four times, and of its operands.
            inner = multiply(block, nodes.means[rest].T)[a - start, b - start]
            gap = (squares[a] + squares[b] - 2 * inner).clamp_min_(0).add_(8 * rounding).sqrt_()
            narrowest, widest = torch.zeros_like(gap), gap
            if spread is not None:
                inner = multiply(block, echo[rest].T)[a - start, b - start]
                reach = (reaches[a] + reaches[b] - 2 * inner).clamp_min_(0)
                doubt = 8 * rounding * spread.norm + spread.error * gap.square()
                widest = torch.minimum((reach + doubt).sqrt_(), gap)
                narrowest = (reach - doubt).clamp_min_(0) / gap
            lowest, highest = self._bracket(feature, slack, narrowest, widest)
            yield pairs[:, lowest >= tau], pairs[:, (lowest < tau) & (highest >= tau)]

    def _compare(
        self, nodes: Supernodes, edges: Tensor, dtype: torch.dtype = torch.float32, cosines: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return Eq. 1 of each edge, computed in ``dtype``, a bound on its error, and one on ‖U_i − U_j‖, float64."""
        rounding = self._voters.rounding
        gap = torch.empty(edges.shape[1], dtype=torch.float64, device=edges.device)
        feature = torch.empty_like(gap) if cosines is None else cosines.double()
        for start in range(0, edges.shape[1] if cosines is None else 0, EDGE_CHUNK):
            part = slice(start, start + EDGE_CHUNK)
            i, j = edges[:, part]
            feature[part] = torch.linalg.vecdot(
                take_rows(nodes.features, i).to(dtype), take_rows(nodes.features, j).to(dtype)
            )
            if nodes.sums is not None:
                gap[part] = torch.linalg.vector_norm(subtract_rows(nodes.means, edges[:, part]), dim=1)
        if nodes.sums is None:
            gap = (2 - 2 * feature + 2 * rounding).clamp_min(0).sqrt()
        single = rounding if dtype == torch.float32 else 0.0
        return feature, nodes.errors[edges].sum(dim=0) + single, gap * (1 + rounding) + rounding

    def _compare_tokens(self, edges: Tensor) -> Tensor:
        """Return Eq. 1 of pairs of nodes that are tokens still, in float64."""
        i, j = (self._voters.tokens.exact(ends) for ends in edges)
        cosines: Tensor = torch.linalg.vecdot(i, j)
        return cosines

    def _bracket(self, feature: Tensor, slack: Tensor, narrowest: Tensor, widest: Tensor) -> tuple[Tensor, Tensor]:
        """Return bounds on S from Eq. 1 with its error and bounds on Σ_k w_k |D·F_k|."""
        weight_f, weight_s = self._weighting
        lowest = weight_f * (feature - slack) + weight_s * (1 - widest)
        return lowest, weight_f * (feature + slack) + weight_s * (1 - narrowest)

    def _settle(
        self,
        nodes: Supernodes,
        labels: Tensor,
        edges: Tensor,
        feature: Tensor,
        slack: Tensor,
        gap: Tensor,
        tau: float,
        bounded: bool = False,
    ) -> Identification:
        """Decide the open edges, cheapest test first, and drop those whose ends have met meanwhile.

        ``bounded`` says that the spread has decided what it can.
        """
        open_ = _OpenEdges(labels, edges, {"feature": feature, "slack": slack, "gap": gap}, tau)
        # Few voters are asked at once: bounds on what they would say cost more. So do coarse bounds of few edges.
        if not self._voters.are_few:
            if len(open_) > COARSE_FROM * self._voters.width and not bounded:
                bounds = self._spread_bounds(nodes, open_, self._voters.coarse_spread)
                open_.sift(*self._bracket(open_["feature"], open_["slack"], *bounds))
            if len(open_) and not bounded:
                bounds = self._spread_bounds(nodes, open_, self._voters.spread)
                open_.sift(*self._bracket(open_["feature"], open_["slack"], *bounds))
            if len(open_):
                low = self._voters.bound_disagreement_below(nodes.means, open_.edges)
                open_.sift(*self._bracket(open_["feature"], open_["slack"], low, open_["gap"]))
        undecided = len(open_)
        if undecided:
            votes, error = self._measure_disagreement(nodes, open_.edges)
            open_.note(low=votes - error, high=votes + error)
            open_.sift(*self._bracket(open_["feature"], open_["slack"], open_["low"], open_["high"]))
        if len(open_):
            self._settle_near_ties(nodes, open_)
        exact = len(open_)
        if exact:
            similarity = self._exact_similarity(nodes, open_.edges)
            open_.sift(similarity, similarity)
        return Identification(open_.labels, undecided, exact)

    def _measure_disagreement(self, nodes: Supernodes, edges: Tensor) -> tuple[Tensor, Tensor]:
        """Σ_k w_k |D·F_k| of each edge in float32 and a bound on its error."""
        if nodes.sums is None and self._voters.affinities is not None:
            return self._voters.disagreement_known(self._voters.affinities, edges)
        chosen, ends = torch.unique(edges, return_inverse=True)
        affinities = mean_affinities(nodes, chosen)
        if affinities is None:
            return self._voters.disagreement(nodes.means, edges)
        return self._voters.disagreement_known(affinities, ends)

    def _settle_near_ties(self, nodes: Supernodes, open_: _OpenEdges) -> None:
        """Decide edges in float64 arithmetic on rounded rows; what that cannot tell stays open.

        First Eq. 1 alone, beside the bounds on Eq. 2 that there are, and then Eq. 2 too.
        """
        if nodes.sums is None:
            open_.note(feature=self._compare_tokens(open_.edges), slack=torch.full_like(open_["slack"], TOKEN_ROUNDING))
        else:
            # Most of the doubt about a region is about its vote.
            refine(nodes, torch.unique(open_.edges), self._voters, self._region)
            feature, slack, _ = self._compare(nodes, open_.edges, torch.float64)
            open_.note(feature=feature, slack=slack)
        open_.sift(*self._bracket(open_["feature"], open_["slack"], open_["low"], open_["high"]))
        if not len(open_):
            return
        chosen, ends = torch.unique(open_.edges, return_inverse=True)
        means = exact_means(nodes, chosen, self._voters, exact=False)
        votes, error = self._voters.disagreement(means, ends, exact=False)
        open_.sift(*self._bracket(open_["feature"], open_["slack"], votes - error, votes + error))

    def _spread_bounds(
        self, nodes: Supernodes, open_: _OpenEdges, spread: CoarseSpread | TightSpread
    ) -> tuple[Tensor, Tensor]:
        """Bound Σ_k w_k |D·F_k| by D·C·D / ‖D‖ from below (as |D·F_k| ≤ ‖D‖) and by sqrt(D·C·D) from above (Jensen)."""
        gap = open_["gap"]
        least, most = spread.bound(*used_rows(nodes.means, open_.edges), gap)
        return least / gap, torch.minimum(most.sqrt(), gap)

    def _exact_similarity(self, nodes: Supernodes, edges: Tensor) -> Tensor:
        """Eq. 3 in float64."""
        chosen, ends = torch.unique(edges, return_inverse=True)
        features = exact_features(nodes, chosen, self._voters, self._region)
        spread, _ = self._voters.disagreement(exact_means(nodes, chosen, self._voters), ends)
        feature = (features[ends[0]] * features[ends[1]]).sum(dim=1)
        return self._weighting.feature * feature + self._weighting.spatial * (1 - spread)


class _OpenEdges:
    """Edges of which it is not known yet whether they reach τ, with what is known of each by name."""

    def __init__(self, labels: Tensor, edges: Tensor, known: dict[str, Tensor], tau: float) -> None:
        self.labels = labels
        self.edges = edges
        self._known = known
        self._tau = tau

    def __len__(self) -> int:
        return self.edges.shape[1]

    def __getitem__(self, name: str) -> Tensor:
        return self._known[name]

    def note(self, **known: Tensor) -> None:
        """Remember values of each open edge by name."""
        self._known |= known

    def sift(self, lowest: Tensor, highest: Tensor) -> None:
        """Join what edges that reach τ connect; keep edges that may and whose ends have not met."""
        reached = self.edges[:, lowest >= self._tau]
        if reached.shape[1]:
            # The components so far are the nodes of a smaller graph.
            count = int(self.labels.max()) + 1
            self.labels = connected_components(self.labels[reached], count)[self.labels]
        tails, heads = self.labels[self.edges]
        left = (lowest < self._tau) & (highest >= self._tau) & (tails != heads)
        self.edges = self.edges[:, left]
        self._known = {name: values[left] for name, values in self._known.items()}
