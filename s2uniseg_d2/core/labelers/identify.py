"""The Identify step (Eq. 1 to 3): which nodes merge, decided as exact arithmetic would.

Only the components matter, and most edges never need Eq. 2: certified bounds accept or reject them, others lie inside a
component already. What is left is computed in float32, and what float32 cannot tell in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from s2uniseg_d2.core.labelers.rounding import gamma
from s2uniseg_d2.core.labelers.spread import Spread
from s2uniseg_d2.core.labelers.supernodes import Region, Supernodes, exact_features, exact_means
from s2uniseg_d2.core.labelers.voters import Voters
from s2uniseg_d2.core.ops.components import connected_components

# A similarity that misses τ by no more than this reaches it: ties are decided alike whatever the rounding of float64.
TIE = 1e-9
EDGE_CHUNK = 4096
PAIR_ROWS = 512
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


class Identifier:
    """Finds the strongly connected groups of a picture's nodes for one threshold at a time."""

    def __init__(self, voters: Voters, weighting: Weighting, region: Region) -> None:
        self._voters = voters
        self._weighting = weighting
        self._region = region

    def group_edges(self, nodes: Supernodes, edges: Tensor, tau: float) -> Identification:
        """Return the components of the edges with S ≥ τ.

        Args:
            nodes: s nodes.
            edges: ``(2, e)`` int64 candidate pairs.
            tau: threshold.
        """
        tau -= TIE
        feature, slack, gap = self._compare(nodes, edges)
        # |D·F_k| ≤ ‖D‖ bounds Eq. 2 before anything is known of the other tokens.
        lowest, highest = self._bracket(feature, slack, torch.zeros_like(gap), gap)
        joined = edges[:, lowest >= tau]
        open_ = (lowest < tau) & (highest >= tau)
        return self._settle(nodes, joined, edges[:, open_], feature[open_], slack[open_], gap[open_], tau)

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
        screened = list(self._screen_pairs(nodes, tau))
        joined = torch.cat([yes for yes, _ in screened], dim=1)
        labels = connected_components(joined, count)
        edges = torch.cat([maybe for _, maybe in screened], dim=1)
        edges = edges[:, labels[edges[0]] != labels[edges[1]]]
        return self._settle(nodes, joined, edges, *self._compare(nodes, edges), tau)

    def _screen_pairs(self, nodes: Supernodes, tau: float) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the certain and the open pairs (i < j) of one block of rows after the other, by matrix products."""
        spread = self._voters.spread
        rounding = gamma(self._voters.width + 6)
        projections = nodes.means @ spread.basis
        for start in range(0, nodes.sizes.numel(), PAIR_ROWS):
            rows = slice(start, start + PAIR_ROWS)
            feature = (nodes.features[rows] @ nodes.features[start:].T).double()
            slack = nodes.errors[rows, None] + nodes.errors[start:] + rounding
            # Differences of squares: the rounding of an inner product, four times, and of its operands.
            gap = _squared_distances(nodes.means[rows], nodes.means[start:]).add_(8 * rounding).sqrt_()
            reach = _squared_distances(projections[rows], projections[start:])
            widest = (reach + 8 * spread.slack + spread.above * gap.square()).sqrt_()
            narrowest = (reach - 8 * spread.slack - spread.below * gap.square()).clamp_min_(0) / gap
            lowest, highest = self._bracket(feature, slack, narrowest, torch.minimum(widest, gap))
            above = torch.ones_like(lowest, dtype=torch.bool).triu_(1)
            yes = ((lowest >= tau) & above).nonzero().T
            maybe = ((lowest < tau) & (highest >= tau) & above).nonzero().T
            yield yes + start, maybe + start

    def _compare(self, nodes: Supernodes, edges: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return Eq. 1 of each edge, a bound on its error, and a bound on ‖U_i − U_j‖, all float64."""
        rounding = gamma(self._voters.width + 6)
        feature = torch.empty(edges.shape[1], dtype=torch.float64, device=edges.device)
        gap = torch.empty_like(feature)
        for start in range(0, edges.shape[1], EDGE_CHUNK):
            part = slice(start, start + EDGE_CHUNK)
            i, j = edges[:, part]
            feature[part] = (nodes.features[i] * nodes.features[j]).sum(dim=1)
            if nodes.sums is not None:
                gap[part] = torch.linalg.vector_norm(nodes.means[i] - nodes.means[j], dim=1)
        if nodes.sums is None:
            gap = (2 - 2 * feature + 2 * rounding).clamp_min(0).sqrt()
        return feature, nodes.errors[edges].sum(dim=0) + rounding, gap * (1 + rounding) + rounding

    def _bracket(self, feature: Tensor, slack: Tensor, narrowest: Tensor, widest: Tensor) -> tuple[Tensor, Tensor]:
        """Return bounds on S from Eq. 1 with its error and bounds on Σ_k w_k |D·F_k|."""
        weight_f, weight_s = self._weighting
        lowest = weight_f * (feature - slack) + weight_s * (1 - widest)
        return lowest, weight_f * (feature + slack) + weight_s * (1 - narrowest)

    def _settle(
        self, nodes: Supernodes, joined: Tensor, edges: Tensor, feature: Tensor, slack: Tensor, gap: Tensor, tau: float
    ) -> Identification:
        """Decide the open edges, cheapest test first, and drop those whose ends have met meanwhile."""
        count = nodes.sizes.numel()

        def sift(joined: Tensor, edges: Tensor, bounds: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            lowest, highest = bounds
            joined = torch.cat([joined, edges[:, lowest >= tau]], dim=1)
            labels = connected_components(joined, count)
            return joined, labels, (lowest < tau) & (highest >= tau) & (labels[edges[0]] != labels[edges[1]])

        labels = connected_components(joined, count)
        # With few edges the coarse bounds cost more than they save.
        for coarse in (True, False):
            if edges.shape[1] > (COARSE_FROM * self._voters.width if coarse else 0):
                spread = self._voters.coarse_spread if coarse else self._voters.spread
                bounds = self._bracket(feature, slack, *self._spread_bounds(nodes, edges, gap, spread))
                joined, labels, left = sift(joined, edges, bounds)
                edges, feature, slack, gap = edges[:, left], feature[left], slack[left], gap[left]
        undecided = edges.shape[1]
        if not undecided:
            return Identification(labels, 0, 0)

        votes, error = self._voters.disagreement(nodes.means, edges)
        joined, labels, left = sift(joined, edges, self._bracket(feature, slack, votes - error, votes + error))
        edges = edges[:, left]
        if edges.shape[1]:
            similarity = self._exact_similarity(nodes, edges)
            joined, labels, _ = sift(joined, edges, (similarity, similarity))
        return Identification(labels, undecided, edges.shape[1])

    def _spread_bounds(self, nodes: Supernodes, edges: Tensor, gap: Tensor, spread: Spread) -> tuple[Tensor, Tensor]:
        """Bound Σ_k w_k |D·F_k| by D·C·D / ‖D‖ from below (as |D·F_k| ≤ ‖D‖) and by sqrt(D·C·D) from above (Jensen)."""
        chosen, ends = torch.unique(edges, return_inverse=True)
        projections = nodes.means[chosen] @ spread.basis
        reach = torch.empty_like(gap)
        for start in range(0, edges.shape[1], EDGE_CHUNK):
            i, j = ends[:, start : start + EDGE_CHUNK]
            reach[start : start + EDGE_CHUNK] = torch.linalg.vector_norm(projections[i] - projections[j], dim=1)
        squared_gap = gap.square()
        low = ((reach - spread.slack).clamp_min(0).square() - spread.below * squared_gap).clamp_min(0) / gap
        return low, torch.minimum(((reach + spread.slack).square() + spread.above * squared_gap).sqrt(), gap)

    def _exact_similarity(self, nodes: Supernodes, edges: Tensor) -> Tensor:
        """Eq. 3 in float64."""
        chosen, ends = torch.unique(edges, return_inverse=True)
        features = exact_features(nodes, chosen, self._voters, self._region)
        spread, _ = self._voters.disagreement(exact_means(nodes, chosen, self._voters), ends)
        feature = (features[ends[0]] * features[ends[1]]).sum(dim=1)
        return self._weighting.feature * feature + self._weighting.spatial * (1 - spread)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return ‖a_i − b_j‖² for all pairs by inner products, float64."""
    squares_a, squares_b = a.double().square().sum(dim=1), b.double().square().sum(dim=1)
    return (squares_a[:, None] + squares_b - 2 * (a @ b.T).double()).clamp_min_(0)
