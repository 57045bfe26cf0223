"""UniAP on a whole batch at once, for devices that wait at every question of the host: float64, fixed shapes.

Axes: b pictures, t tokens of a picture (or blocks of equal ones), v voters, s nodes (the most of any picture), d
feature width. As many kernels are launched and as many questions asked as for one picture. There are two questions a
layer, how many edges are open and how many nodes and edges are left, because work on all of them would cost far more
than the wait. Float64 decides every edge as exact arithmetic would; on data-centre GPUs it runs at the rate of float32.
GPUs with slow float64 are better served by the path of single pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from s2uniseg_d2.core.labelers.graph import BLOCK_SIDES, PROBE_CHANNELS
from s2uniseg_d2.core.labelers.supernodes import Region
from s2uniseg_d2.core.ops.edges import slices
from s2uniseg_d2.core.ops.partitions import MergePlan, finish_merge, renumber, start_merge
from s2uniseg_d2.core.ops.transfer import ask, to_device
from s2uniseg_d2.core.ops.vectors import (
    add_rows,
    exponentiate,
    mean_rows,
    normalise_tokens,
    queue_rows,
    store_votes,
    take_rows,
)

# Columns of C that are computed at a time: C is symmetric, and what lies below them is left out.
MOMENT_BLOCK = 256


class BatchNodes(NamedTuple):
    """Nodes of every picture; from the first merge on, those from ``counts`` on are padding.

    Attributes:
        counts: ``(b,)`` int64 nodes of each picture.
        members: ``(b, t)`` int64 node of every token, -1 for none.
        sizes: ``(b, s)`` int64 tokens per node, 0 for padding.
        sums: ``(b, s, d)`` float64 R = M F.
        features: ``(b, s, d)`` float64 V.
        most: tokens of the grid: no node has more.
        voted: whether V is that of Eq. 5; before the first layer it is F.
        waiting: ``(b, s)`` int64 place of each node whose V has yet to be voted, -1 for the others; None for none.
    """

    counts: Tensor
    members: Tensor
    sizes: Tensor
    sums: Tensor
    features: Tensor
    most: int
    voted: bool
    waiting: Tensor | None = None


class Candidates(NamedTuple):
    """Nodes, the edges among them that may connect, and the threshold.

    Attributes:
        nodes: the nodes.
        edges: ``(2, e)`` int64 flat indices of pairs of one picture each, those of a picture one after the other;
            self-loops do not matter. None: all pairs of nodes of each picture.
        level: number of the threshold.
    """

    nodes: BatchNodes
    edges: Tensor | None
    level: int


class BatchVoters(NamedTuple):
    """The voters of every picture, with what they say together.

    Attributes:
        rows: ``(b, v, d)`` float64, zero for padding.
        weights: ``(b, v)`` float64, their shares of the picture.
        moments: ``(b, d, d)`` float64 C = Σ_k w_k F_k F_kᵀ.
        alike: whether all weigh the same and none is padding.
    """

    rows: Tensor
    weights: Tensor
    moments: Tensor
    alike: bool

    @classmethod
    def of(cls, rows: Tensor, weights: Tensor, alike: bool) -> BatchVoters:
        """The voters with their second moments."""
        weighted = rows if alike else rows * weights[..., None]
        b, v, d = rows.shape
        moments = rows.new_empty(b, d, d)
        for first in range(0, d, MOMENT_BLOCK):
            last = first + MOMENT_BLOCK
            moments[:, first:last, first:] = weighted[:, :, first:last].mT @ rows[:, :, first:]
            moments[:, last:, first:last] = moments[:, first:last, last:].mT
        return cls(rows, weights, moments.div_(v) if alike else moments, alike)

    def elect(self, queries: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Return Σ_k β_k F_k ``(b, m, d)`` and Σ_k β_k ``(b, m)`` of the ballots β of ``(b, m, d)`` queries (Eq. 5)."""
        # Spelt out: no fused attention takes float64 or rows this wide.
        b, m, _ = queries.shape
        votes, totals = [], []
        for part in slices(m, b * self.rows.shape[1]):
            logits = queries.new_empty(b, queries[:, part].shape[1], self.rows.shape[1])
            torch.baddbmm(logits, queries[:, part], self.rows.mT, beta=0, alpha=1 / sigma, out=logits)
            totals.append(exponentiate(logits, None if self.alike else self.weights))
            votes.append(logits @ self.rows)
        return torch.cat(votes, dim=1), torch.cat(totals, dim=1)

    def disagree(self, apart: Tensor) -> Tensor:
        """Return Σ_k w_k |D·F_k| of ``(b, n, d)`` differences D of means, the ``(b, n)`` of Eq. 2 without "1 −"."""
        b, n, _ = apart.shape
        v, parts = self.rows.shape[1], []
        for part in slices(n, b * v):
            products = apart[:, part] @ self.rows.mT
            if self.alike:
                parts.append(torch.linalg.vector_norm(products, 1, dim=2) / v)
            else:
                parts.append((products.abs_() @ self.weights[..., None])[..., 0])
        return torch.cat(parts, dim=1)


class Layout(NamedTuple):
    """A batch before the first layer.

    Attributes:
        nodes: one per token, or per block of equal ones.
        voters: the voters.
        edges: ``(2, e)`` int64 pairs of neighbours as flat indices (picture times s plus node), those of a picture one
            after the other; self-loops are none.
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
    extent = to_device(torch.tensor(sizes), device)
    inside = [torch.arange(n, device=device) < extent[:, axis, None] for axis, n in enumerate((h, w))]
    valid = inside[0][:, :, None] & inside[1][:, None]
    side = _block_side(features, sizes, valid)
    grid = (-(-h // side), -(-w // side))
    along = [
        (extent[:, axis, None] - side * torch.arange(n, device=device)).clamp(0, side) for axis, n in enumerate(grid)
    ]
    tokens = (along[0][:, :, None] * along[1][:, None]).flatten(1)
    nodes = place_nodes(normalise_tokens(features, valid, side), tokens, side)
    index = torch.arange(b * grid[0] * grid[1], device=device).view(b, *grid)
    exists = (tokens > 0).view(b, *grid)
    pairs = [
        (index[:, :, :-1], index[:, :, 1:], exists[:, :, 1:]),
        (index[:, :-1], index[:, 1:], exists[:, 1:]),
    ]
    # Neighbours to the right and below exist only where the node itself does.
    ends = [(tail.flatten(1), torch.where(real, head, tail).flatten(1)) for tail, head, real in pairs]
    edges = torch.stack([torch.cat(side_, dim=1).flatten() for side_ in zip(*ends, strict=True)])
    pool = max(voter_pool, side)
    alike = all(size == (h, w) for size in sizes) and h % pool == 0 and w % pool == 0
    return Layout(nodes, _pool_voters(nodes, grid, pool // side, alike), edges, grid, side, valid)


def place_nodes(rows: Tensor, sizes: Tensor, side: int) -> BatchNodes:
    """Return the nodes before the first layer, one per row.

    Args:
        rows: ``(b, t, d)`` float64 unit rows, zero in the padding.
        sizes: ``(b, t)`` int64 tokens that each stands for, 0 in the padding.
        side: tokens along a side of the block that each stands for.
    """
    members = torch.where(sizes > 0, torch.arange(sizes.shape[1], device=rows.device), -1)
    sums = rows if side == 1 else rows * sizes[..., None]
    return BatchNodes((sizes > 0).sum(dim=1), members, sizes, sums, rows, side**2 * sizes.shape[1], False)


def _block_side(features: Tensor, sizes: Sequence[tuple[int, int]], valid: Tensor) -> int:
    """The side of the largest blocks that repeat their first token in every picture, or 1."""
    least = min(min(size) for size in sizes)
    sides = [side for side in BLOCK_SIDES if side <= least]
    if not sides:
        return 1
    # Few channels refuse nearly every other map: one question for all sides.
    probes = torch.stack([_repeat_blocks(features[:, :PROBE_CHANNELS], valid, side) for side in sides]).tolist()
    hopeful = (side for side, passed in zip(sides, probes, strict=True) if passed)
    return next((side for side in hopeful if bool(_repeat_blocks(features[:, PROBE_CHANNELS:], valid, side))), 1)


def _repeat_blocks(part: Tensor, valid: Tensor, side: int) -> Tensor:
    """Whether each side x side block, cut at the valid border, repeats its top left token."""
    h, w = part.shape[2:]
    anchors = part[:, :, ::side, ::side].repeat_interleave(side, 2).repeat_interleave(side, 3)[:, :, :h, :w]
    return ((part == anchors) | ~valid[:, None]).all()


def _pool_voters(nodes: BatchNodes, grid: tuple[int, int], side: int, alike: bool) -> BatchVoters:
    weights = nodes.sizes.double() / nodes.sizes.sum(dim=1, keepdim=True)
    if side == 1:
        return BatchVoters.of(nodes.features, weights, alike)
    row, column = (torch.arange(n, device=weights.device) // side for n in grid)
    groups = -(-grid[1] // side)
    label = (row[:, None] * groups + column).flatten().expand_as(weights).contiguous()
    count = -(-grid[0] // side) * groups
    sizes = nodes.sizes.new_zeros(len(weights), count).scatter_add_(1, label, nodes.sizes)
    rows = mean_rows(_add(nodes, label, count), sizes, torch.float64)
    return BatchVoters.of(rows, sizes.double() / sizes.sum(dim=1, keepdim=True), alike)


def _add(nodes: BatchNodes, slot: Tensor, count: int) -> Tensor:
    """The sums ``(b, count, d)`` of nodes' sums of unit rows."""
    return add_rows(nodes.sums, slot, count, nodes.most)


def plan_merges(jobs: Sequence[Candidates], roots: Sequence[Tensor], min_tokens: int) -> list[MergePlan]:
    """Return how the nodes of each job merge to the groups ``(b, s)`` of ``roots``: one question to the host."""
    starts = [
        start_merge(found, job.nodes.sizes, job.nodes.voted, min_tokens, job.edges)
        for job, found in zip(jobs, roots, strict=True)
    ]
    return [finish_merge(*pair) for pair in zip(starts, ask(*(start.totals for start in starts)), strict=True)]


def merge(nodes: BatchNodes, plan: MergePlan, voters: BatchVoters, region: Region | None) -> BatchNodes:
    """Return the nodes of a partition.

    Source: Eq. 4 (right) and Eq. 5. A supernode that stays as it is keeps its V; tokens become supernodes in the first
    layer and all get theirs then.

    Args:
        nodes: the nodes.
        plan: how they merge.
        voters: the voters.
        region: how Eq. 5 is read; None leaves V of new supernodes waiting.
    """
    sums = _add(nodes, plan.slot, plan.sizes.shape[1])
    features = take_rows(nodes.features, plan.before) if nodes.voted else torch.zeros_like(sums)
    merged = BatchNodes(
        plan.counts,
        renumber(nodes.members, plan.slot),
        plan.sizes,
        sums,
        features,
        nodes.most,
        True,
        waiting=plan.place,
    )
    if region is None:
        return merged
    vote([Queue(sums, plan.sizes, plan.place, features, None)], plan.queued, voters, region)
    return merged._replace(waiting=None)


class Queue(NamedTuple):
    """Nodes of which some get their V: see :func:`.vectors.queue_rows` and :func:`.vectors.store_votes`."""

    sums: Tensor
    sizes: Tensor
    place: Tensor
    vectors: Tensor
    rows: Tensor | None


def vote(queues: Sequence[Queue], most: int, voters: BatchVoters, region: Region) -> None:
    """Write V of the nodes that have one of ``most`` places, by Eq. 5, in place."""
    if not most:
        return
    first = queues[0].sums
    # A picture with fewer places than others fills up with queries of zero, whose votes nobody reads.
    queries = first.new_zeros(len(first), most, first.shape[2])
    for queue in queues:
        queue_rows(queue.sums, queue.sizes, queue.place, queries, region.affinity == "mean")
    votes, totals = voters.elect(queries, region.sigma)
    for queue in queues:
        store_votes(votes, totals, queue.place, queue.vectors, queue.rows)


def select_large(nodes: BatchNodes, plan: MergePlan) -> BatchNodes:
    """Return the large ones of the nodes that a plan made, in their order."""
    return BatchNodes(
        plan.large_counts,
        renumber(nodes.members, plan.large_number),
        plan.large_sizes,
        take_rows(nodes.sums, plan.large),  # the padding's too, which nothing reads
        take_rows(nodes.features, plan.large),
        nodes.most,
        True,
    )
