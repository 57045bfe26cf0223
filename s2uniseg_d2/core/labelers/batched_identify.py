"""The Identify step (Eq. 1 to 3) on a whole batch: which nodes merge, decided in float64 by bounds where they do.

Axes: b pictures, s nodes (the most of any picture), e edges, d feature width. A flat index is picture times s plus
node.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s2uniseg_d2.core.labelers.batched import BatchNodes, BatchVoters, take
from s2uniseg_d2.core.labelers.identify import TIE, Weighting
from s2uniseg_d2.core.ops.edges import edge_products, join_components

# Unit roundoff of float64.
UNIT64 = 2.0**-53


class BatchIdentifier:
    """Finds the connected groups of every picture's nodes for one threshold at a time.

    Args:
        voters: the voters.
        weighting: ω_f and ω_s.
    """

    def __init__(self, voters: BatchVoters, weighting: Weighting) -> None:
        self._voters = voters
        self._weighting = weighting
        # Of an inner product of d terms, in which C has errors of v terms.
        self._rounding = 4 * (voters.rows.shape[1] + 3 * voters.rows.shape[2] + 16) * UNIT64

    def group_edges(self, nodes: BatchNodes, edges: Tensor, tau: float) -> Tensor:
        """Return the group ``(b, s)`` of every node: the flat index of its first node.

        Args:
            nodes: the nodes.
            edges: ``(2, e)`` int64 flat indices of pairs of one picture each; self-loops do not matter.
            tau: threshold.
        """
        means = nodes.means
        echo = means @ self._voters.moments
        reaches = _lengths(means, echo)
        feature = _products(nodes.features, nodes.features, edges)
        i, j = edges
        if nodes.voted:
            squares = _lengths(means, means)
            gap = squares[i] + squares[j] - 2 * _products(means, means, edges)
        else:
            gap = 2 - 2 * feature
        reach = reaches[i] + reaches[j] - 2 * _products(means, echo, edges)
        lowest, highest = self._bracket(feature, gap, reach)
        return self._settle(nodes, means, edges, (feature, lowest, highest), tau - TIE)

    def group_pairs(self, nodes: BatchNodes, tau: float) -> Tensor:
        """Return the same as :meth:`group_edges` for all pairs of nodes of each picture."""
        b, s = nodes.sizes.shape
        means = nodes.means
        echo = means @ self._voters.moments
        squares, reaches = _lengths(means, means).view(b, s), _lengths(means, echo).view(b, s)
        feature = nodes.features @ nodes.features.mT
        gap = squares[:, :, None] + squares[:, None] - 2 * (means @ means.mT)
        reach = reaches[:, :, None] + reaches[:, None] - 2 * (means @ echo.mT)
        lowest, highest = self._bracket(feature, gap, reach)
        exists = nodes.sizes > 0
        open_ = ((highest >= tau - TIE) & exists[:, :, None] & exists[:, None]).triu_(1)
        picture, low, high = open_.nonzero().T  # a question to the host: most pairs are far apart
        known = (values[picture, low, high] for values in (feature, lowest, highest))
        edges = torch.stack([picture * s + low, picture * s + high])
        return self._settle(nodes, means, edges, tuple(known), tau - TIE)

    def _bracket(self, feature: Tensor, gap: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds on S from Eq. 1, ‖D‖² and D·C·D: D·C·D / ‖D‖ ≤ Σ_k w_k |D·F_k| ≤ sqrt(D·C·D), as |D·F_k| ≤ ‖D‖."""
        slack = 8 * self._rounding
        widest = (reach.clamp_min(0) + slack).sqrt_()
        narrowest = (reach - slack).clamp_min_(0) / (gap.clamp_min(0) + slack).sqrt_()
        base = self._weighting.feature * feature + self._weighting.spatial
        return base - self._weighting.spatial * widest - slack, base - self._weighting.spatial * narrowest + slack

    def _settle(self, nodes: BatchNodes, means: Tensor, edges: Tensor, known: tuple[Tensor, ...], tau: float) -> Tensor:
        """Decide the edges that the bounds leave open and whose ends have not met."""
        feature, lowest, highest = known
        b, s = nodes.sizes.shape
        roots = join_components(torch.arange(b * s, device=edges.device), edges, lowest >= tau)
        open_ = (lowest < tau) & (highest >= tau) & (roots[edges[0]] != roots[edges[1]])
        index = open_.nonzero()[:, 0]  # a question to the host: Eq. 2 of all edges would cost far more
        if index.numel():
            left = edges[:, index]
            spread = self._measure(means, left)
            similarity = self._weighting.feature * feature[index] + self._weighting.spatial * (1 - spread)
            roots = join_components(roots, left, similarity >= tau)
        return roots.view(b, s)

    def _measure(self, means: Tensor, edges: Tensor) -> Tensor:
        """Σ_k w_k |D·F_k| of each edge; each picture's edges are a row of one padded batch."""
        b, s, _ = means.shape
        picture = torch.div(edges[0], s, rounding_mode="floor")
        counts = torch.bincount(picture, minlength=b)
        order = torch.argsort(picture, stable=True)
        rank = torch.arange(order.numel(), device=order.device) - (counts.cumsum(0) - counts)[picture[order]]
        most = int(counts.max())
        ends = edges.new_zeros(2, b, most)
        ends[:, picture[order], rank] = edges[:, order] % s
        spread = self._voters.disagree(take(means, ends[0]) - take(means, ends[1]))
        return spread.new_empty(order.numel()).scatter_(0, order, spread[picture[order], rank])


def _lengths(one: Tensor, other: Tensor) -> Tensor:
    """The inner products of the ``(b, s, d)`` rows of two sides, ``(b * s,)``."""
    products: Tensor = torch.linalg.vecdot(one, other)
    return products.flatten()


def _products(one: Tensor, other: Tensor, edges: Tensor) -> Tensor:
    """The inner products of row i of one ``(b, s, d)`` side and row j of the other for each edge of flat indices."""
    return edge_products(one.flatten(0, 1), other.flatten(0, 1), edges)
