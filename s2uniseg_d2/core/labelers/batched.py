"""UniAP on a whole batch at once, for devices that wait at every question of the host: float64, fixed shapes.

Axes: b pictures, t tokens of a picture (or blocks of equal ones), v voters, s nodes (the most of any picture), d
feature width. As many kernels are launched and as many questions asked as for one picture: some dozen questions a
layer, whether components have settled and how many edges or nodes are left, because work on all of them would cost far
more than the wait. Float64 decides every edge as exact arithmetic would; on data-centre GPUs it runs at the rate of
float32. GPUs with slow float64 are better served by the path of single pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from s2uniseg_d2.core.labelers.graph import BLOCK_SIDES, PROBE_CHANNELS
from s2uniseg_d2.core.labelers.rows import normalise_rows
from s2uniseg_d2.core.labelers.supernodes import Region
from s2uniseg_d2.core.ops.edges import slices


class BatchNodes(NamedTuple):
    """Nodes of every picture; those from ``counts`` on are padding.

    Attributes:
        counts: ``(b,)`` int64 nodes of each picture.
        members: ``(b, t)`` int64 node of every token, -1 for none.
        sizes: ``(b, s)`` int64 tokens per node, 0 for padding.
        sums: ``(b, s, d)`` float64 R = M F.
        features: ``(b, s, d)`` float64 V.
        voted: whether V is that of Eq. 5; before the first layer it is F.
        waiting: ``(b, s)`` bool, nodes whose V has yet to be voted; None for none.
    """

    counts: Tensor
    members: Tensor
    sizes: Tensor
    sums: Tensor
    features: Tensor
    voted: bool
    waiting: Tensor | None = None

    @property
    def means(self) -> Tensor:
        """U, zero for padding."""
        return self.sums / self.sizes.clamp_min(1)[..., None] if self.voted else self.features


class BatchVoters(NamedTuple):
    """The voters of every picture, with what they say together.

    Attributes:
        rows: ``(b, v, d)`` float64, zero for padding.
        weights: ``(b, v)`` float64, their shares of the picture.
        moments: ``(b, d, d)`` float64 C = Σ_k w_k F_k F_kᵀ.
    """

    rows: Tensor
    weights: Tensor
    moments: Tensor

    @classmethod
    def of(cls, rows: Tensor, weights: Tensor) -> BatchVoters:
        """The voters with their second moments."""
        return cls(rows, weights, (rows * weights[..., None]).mT @ rows)

    def elect(self, queries: Tensor) -> Tensor:
        """Return L2N{softmax(q·F) F} of ``(b, n, d)`` queries, the vote of Eq. 5."""
        # -inf in the padding. Spelt out: no fused attention takes float64 or rows this wide, and the call that takes
        # them copies all voters each time.
        mask = self.weights.log()[:, None]
        b, n, _ = queries.shape
        voted = [
            torch.baddbmm(mask, queries[:, part], self.rows.mT).softmax(dim=2) @ self.rows
            for part in slices(n, b * self.rows.shape[1])
        ]
        return normalise_rows(torch.cat(voted, dim=1)) if voted else queries

    def disagree(self, apart: Tensor) -> Tensor:
        """Return Σ_k w_k |D·F_k| of ``(b, n, d)`` differences D of means, the ``(b, n)`` of Eq. 2 without "1 −"."""
        b, n, _ = apart.shape
        parts = [
            ((apart[:, part] @ self.rows.mT).abs_() @ self.weights[..., None])[..., 0]
            for part in slices(n, b * self.rows.shape[1])
        ]
        return torch.cat(parts, dim=1) if parts else apart.new_zeros(b, n)


class Layout(NamedTuple):
    """A batch before the first layer.

    Attributes:
        nodes: one per token, or per block of equal ones.
        voters: the voters.
        edges: ``(2, e)`` int64 pairs of neighbours as flat indices (picture times s plus node); self-loops are none.
        grid: rows and columns of the nodes.
        side: tokens along a side of a node.
        valid: ``(b, h, w)`` bool, the tokens that are not padding.
    """

    nodes: BatchNodes
    voters: BatchVoters
    edges: Tensor
    grid: tuple[int, int]
    side: int
    valid: Tensor


def lay_out(features: Tensor, sizes: Sequence[tuple[int, int]], voter_pool: int) -> Layout:
    """Place every token (or block of equal tokens) as a node, on one grid for all pictures.

    Args:
        features: ``(b, d, h, w)`` float maps, b at least 1; finite and without zero vectors where they are valid.
        sizes: valid (rows, columns) of every picture.
        voter_pool: see :class:`UniAPConfig`.
    """
    (b, _, h, w), device = features.shape, features.device
    extent = torch.tensor(sizes, device=device)
    inside = [torch.arange(n, device=device) < extent[:, axis, None] for axis, n in enumerate((h, w))]
    valid = inside[0][:, :, None] & inside[1][:, None]
    side = next((k for k in BLOCK_SIDES if _repeat_blocks(features, sizes, valid, k)), 1)
    grid = (-(-h // side), -(-w // side))
    # Scaled by the largest entry first: squares of float64 features may overflow.
    rows = torch.where(valid[:, None], features, 0)[:, :, ::side, ::side].flatten(2).mT.contiguous().double()
    peaks = rows.abs().amax(dim=2, keepdim=True)
    rows = normalise_rows(rows / torch.where(peaks > 0, peaks, 1))
    along = [
        (extent[:, axis, None] - side * torch.arange(n, device=device)).clamp(0, side) for axis, n in enumerate(grid)
    ]
    tokens = (along[0][:, :, None] * along[1][:, None]).flatten(1)
    nodes = place_nodes(rows, tokens, side == 1)
    index = torch.arange(b * grid[0] * grid[1], device=device).view(b, *grid)
    exists = (tokens > 0).view(b, *grid)
    pairs = [
        (index[:, :, :-1], index[:, :, 1:], exists[:, :, 1:]),
        (index[:, :-1], index[:, 1:], exists[:, 1:]),
    ]
    # Neighbours to the right and below exist only where the node itself does.
    edges = torch.cat(
        [torch.stack([tail.flatten(), torch.where(real, head, tail).flatten()]) for tail, head, real in pairs], dim=1
    )
    voters = _pool_voters(nodes, grid, voter_pool // side if voter_pool > side else 1)
    return Layout(nodes, voters, edges, grid, side, valid)


def place_nodes(rows: Tensor, sizes: Tensor, alone: bool) -> BatchNodes:
    """Return the nodes before the first layer, one per row.

    Args:
        rows: ``(b, t, d)`` float64 unit rows, zero in the padding.
        sizes: ``(b, t)`` int64 tokens that each stands for, 0 in the padding.
        alone: whether each stands for one token.
    """
    members = torch.where(sizes > 0, torch.arange(sizes.shape[1], device=rows.device), -1)
    return BatchNodes((sizes > 0).sum(dim=1), members, sizes, rows if alone else rows * sizes[..., None], rows, False)


def _repeat_blocks(features: Tensor, sizes: Sequence[tuple[int, int]], valid: Tensor, side: int) -> bool:
    """Whether in every picture each side x side block, cut at the valid border, repeats its top left token."""
    if min(min(size) for size in sizes) < side:
        return False
    h, w = features.shape[2:]
    for channels in (slice(PROBE_CHANNELS), slice(PROBE_CHANNELS, None)):
        part = features[:, channels]
        anchors = part[:, :, ::side, ::side].repeat_interleave(side, 2).repeat_interleave(side, 3)[:, :, :h, :w]
        if not bool(((part == anchors) | ~valid[:, None]).all()):
            return False
    return True


def _pool_voters(nodes: BatchNodes, grid: tuple[int, int], side: int) -> BatchVoters:
    weights = nodes.sizes.double() / nodes.sizes.sum(dim=1, keepdim=True)
    if side == 1:
        return BatchVoters.of(nodes.features, weights)
    b, t, d = nodes.sums.shape
    row, column = (torch.arange(n, device=weights.device) // side for n in grid)
    groups = -(-grid[1] // side)
    label = (row[:, None] * groups + column).flatten().expand(b, t)
    count = -(-grid[0] // side) * groups
    sums = nodes.sums.new_zeros(b, count, d).scatter_add_(1, label[..., None].expand(b, t, d), nodes.sums)
    sizes = nodes.sizes.new_zeros(b, count).scatter_add_(1, label, nodes.sizes)
    shares = weights.new_zeros(b, count).scatter_add_(1, label, weights)
    return BatchVoters.of(sums / sizes.clamp_min(1)[..., None], shares)


def merge(nodes: BatchNodes, roots: Tensor, voters: BatchVoters, region: Region | None) -> tuple[BatchNodes, Tensor]:
    """Return the nodes of a partition, numbered by first node, and the new number ``(b, s)`` of every node.

    Source: Eq. 4 (right) and Eq. 5. A supernode that stays as it is keeps its V; tokens become supernodes in the first
    layer and all get theirs then.

    Args:
        nodes: the nodes.
        roots: ``(b, s)`` the flat index of the first node of each node's group.
        voters: the voters.
        region: how Eq. 5 is read; None leaves V of new supernodes waiting.
    """
    b, s, d = nodes.sums.shape
    exists = nodes.sizes > 0
    first = exists & (roots == torch.arange(b * s, device=roots.device).view(b, s))
    parts = torch.zeros(b * s, dtype=torch.int64, device=roots.device).scatter_add_(
        0, roots.flatten(), exists.flatten().long()
    )
    fresh = first & ((parts.view(b, s) > 1) | (not nodes.voted))
    counts = first.sum(dim=1)
    # The host's question of every merge: how many nodes are left, and how many have a V to get.
    most, changed = torch.stack([counts.max(), fresh.sum(dim=1).max()]).tolist()
    number = torch.where(first, first.cumsum(dim=1) - 1, 0).flatten()[roots]
    slot = torch.where(exists, number, most)  # padding goes to a slot that is cut off
    sums = nodes.sums.new_zeros(b, most + 1, d).scatter_add_(1, slot[..., None].expand(b, s, d), nodes.sums)[:, :most]
    sizes = nodes.sizes.new_zeros(b, most + 1).scatter_add_(1, slot, nodes.sizes)[:, :most]
    before = take_first(first, most)
    waiting = torch.gather(fresh, 1, before)
    merged = BatchNodes(counts, renumber(nodes.members, slot), sizes, sums, take(nodes.features, before), True, waiting)
    if region is not None:
        merged = merged._replace(features=vote(merged, waiting, changed, voters, region), waiting=None)
    return merged, slot


def vote(nodes: BatchNodes, waiting: Tensor, most: int, voters: BatchVoters, region: Region) -> Tensor:
    """Return V ``(b, s, d)`` with those of the waiting nodes ``(b, s)``, at most ``most`` of a picture, by Eq. 5."""
    chosen = take_first(waiting, most)
    queries = take(nodes.sums, chosen) / region.sigma
    if region.affinity == "mean":
        queries /= torch.gather(nodes.sizes, 1, chosen).clamp_min(1)[..., None]
    # A picture with fewer waiting nodes than others fills up with some that keep what they have.
    elected = torch.where(
        torch.gather(waiting, 1, chosen)[..., None], voters.elect(queries), take(nodes.features, chosen)
    )
    return nodes.features.scatter(1, chosen[..., None].expand_as(elected), elected)


def select(nodes: BatchNodes, min_tokens: int) -> BatchNodes:
    """Return the nodes of at least ``min_tokens`` tokens, in their order."""
    chosen = nodes.sizes >= min_tokens
    counts = chosen.sum(dim=1)
    index = take_first(chosen, int(counts.max()))
    sizes = torch.where(torch.gather(chosen, 1, index), torch.gather(nodes.sizes, 1, index), 0)
    number = torch.where(chosen, chosen.cumsum(dim=1) - 1, -1)
    sums = take(nodes.sums, index)  # the padding's too, which nothing reads
    return BatchNodes(counts, renumber(nodes.members, number), sizes, sums, take(nodes.features, index), True)


def contract(edges: Tensor, slot: Tensor, most: int) -> Tensor:
    """Return the edges between the merged nodes, as flat indices, each once (Eq. 4); at most one is a self-loop.

    Args:
        edges: ``(2, e)`` flat indices before the merge.
        slot: ``(b, s)`` new number of every node.
        most: the new s.
    """
    b = slot.shape[0]
    # Padding, which has no edges but self-loops, may lie outside.
    flat = (slot.clamp_max(max(most - 1, 0)) + torch.arange(b, device=slot.device)[:, None] * most).flatten()
    low, high = flat[edges].aminmax(dim=0)
    keys = torch.unique(torch.where(low == high, 0, low * (b * most) + high))
    return torch.stack([torch.div(keys, b * most, rounding_mode="floor"), keys % (b * most)])


def take(rows: Tensor, index: Tensor) -> Tensor:
    """The chosen ``(b, n)`` of ``(b, s, d)`` rows."""
    return torch.gather(rows, 1, index[..., None].expand(-1, -1, rows.shape[2]))


def take_first(chosen: Tensor, count: int) -> Tensor:
    """The places ``(b, count)`` of what is chosen among ``(b, s)``, in order, and then of what is not."""
    return torch.argsort((~chosen).to(torch.int8), dim=1, stable=True)[:, :count]


def renumber(members: Tensor, number: Tensor) -> Tensor:
    """The new number of each token's node, -1 for none."""
    padded = torch.cat([number, number.new_full((number.shape[0], 1), -1)], dim=1)
    return torch.gather(padded, 1, torch.where(members >= 0, members, number.shape[1]))
