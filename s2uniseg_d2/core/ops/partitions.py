"""Partitions of many graphs at once, with few questions to the host; by kernels where Triton is there.

Axes: b graphs, t tokens of a graph, s nodes (the most of any graph), n nodes after a merge, e edges. Numbers of nodes
count within a graph; a flat index is graph times s plus node.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from s2uniseg_d2.core.ops.kernels import runs_as_kernel


class MergePlan(NamedTuple):
    """How nodes become those of a partition, numbered by first node.

    Attributes:
        slot: ``(b, s)`` int64 new number of every node, -1 for padding.
        before: ``(b, n)`` int64 old number of the first node of each new one; any node for padding.
        counts: ``(b,)`` int64 new nodes of each graph.
        sizes: ``(b, n)`` int64 tokens of each, 0 for padding.
        place: ``(b, n)`` int64 place of each among the new nodes of its graph that are made of several, or among all
            if none was voted for before; -1 for the others.
        queued: the most places of any graph.
        large: ``(b, l)`` int64 new nodes of at least ``min_tokens`` tokens; any node for padding.
        large_counts: ``(b,)`` int64 how many they are.
        large_number: ``(b, n)`` int64 number of each new node among them, -1 for none.
        large_sizes: ``(b, l)`` int64 their tokens, 0 for padding.
        edges: ``(2, f)`` int64 flat indices of new nodes: the edges between different ones, each once, sorted.
    """

    slot: Tensor
    before: Tensor
    counts: Tensor
    sizes: Tensor
    place: Tensor
    queued: int
    large: Tensor
    large_counts: Tensor
    large_number: Tensor
    large_sizes: Tensor
    edges: Tensor


class MergeStart(NamedTuple):
    """What is known of a merge before the host knows how many nodes and edges are left.

    Attributes:
        totals: ``(3 b + 1,)`` int64 new nodes of each graph, places of each, large ones of each, and all edges.
        slot, before, sizes, place, large, large_number, large_sizes: see :class:`MergePlan`, each ``(b, s)``.
        keys: ``(e,)`` int64 edges between new nodes, sorted; some more than once.
        flags: ``(e,)`` which of them count.
        ranks: ``(e,)`` how many do up to each; the flags where nothing reads it.
    """

    totals: Tensor
    slot: Tensor
    before: Tensor
    sizes: Tensor
    place: Tensor
    large: Tensor
    large_number: Tensor
    large_sizes: Tensor
    keys: Tensor
    flags: Tensor
    ranks: Tensor


@runs_as_kernel("partition_kernels")
def start_merge(roots: Tensor, sizes: Tensor, voted: bool, min_tokens: int, edges: Tensor | None) -> MergeStart:
    """Find how nodes merge (Eq. 4), up to the question how many are left.

    Args:
        roots: ``(b, s)`` int64 flat index of the first node of each node's group; padding is alone.
        sizes: ``(b, s)`` int64 tokens of each node, 0 for padding, which may lie anywhere.
        voted: whether nodes that stay alone keep their vote.
        min_tokens: of a large node.
        edges: ``(2, e)`` int64 flat indices, those of a graph one after the other; None for none.
    """
    b, s = sizes.shape
    index, exists = torch.arange(s, device=sizes.device), sizes > 0
    first = exists & (roots == torch.arange(b * s, device=sizes.device).view(b, s))
    parts = torch.zeros_like(sizes).flatten().scatter_add_(0, roots.flatten(), exists.flatten().long()).view(b, s)
    number = (first.cumsum(dim=1) - 1).flatten()[roots]
    slot = torch.where(exists, number, -1)
    left = first.sum(dim=1)
    before = _list_first(first)
    real = index < left[:, None]
    merged = torch.zeros_like(sizes).scatter_add_(1, torch.where(exists, number, 0), sizes)
    fresh = real & (torch.gather(parts, 1, before) > 1) if voted else real
    is_large = real & (merged >= min_tokens)
    large = _list_first(is_large)
    large_counts = is_large.sum(dim=1)
    large_sizes = torch.where(index < large_counts[:, None], torch.gather(merged, 1, large), 0)
    keys = roots.new_zeros(0) if edges is None else _make_keys(edges, slot)
    # The first of each key counts, but for self-loops, which are last.
    flags = torch.cat([keys[:1] == keys[:1], keys[1:] != keys[:-1]]) & (keys < (b * s) ** 2)
    return MergeStart(
        torch.cat([left, fresh.sum(dim=1), large_counts, flags.sum(dim=0, keepdim=True)]),
        slot,
        before,
        merged,
        _rank(fresh),
        large,
        _rank(is_large),
        large_sizes,
        keys,
        flags,
        flags,
    )


def _list_first(chosen: Tensor) -> Tensor:
    """The places ``(b, s)`` of what is chosen, in order, and then of what is not."""
    return torch.argsort((~chosen).to(torch.int8), dim=1, stable=True)


def _rank(chosen: Tensor) -> Tensor:
    """The place of each chosen one in its row, -1 for the others."""
    return torch.where(chosen, chosen.cumsum(dim=1) - 1, -1)


def _make_keys(edges: Tensor, slot: Tensor) -> Tensor:
    b, s = slot.shape
    flat = (slot + torch.arange(b, device=slot.device)[:, None] * s).flatten()
    low, high = flat[edges].aminmax(dim=0)
    return torch.where(low == high, (b * s) ** 2, low * (b * s) + high).sort().values


def finish_merge(start: MergeStart, known: Sequence[int]) -> MergePlan:
    """Return how nodes merge.

    Args:
        start: what is known of it.
        known: its totals.
    """
    b = len(start.slot)
    n, queued, most = (max(known[first : first + b]) for first in (0, b, 2 * b))
    return MergePlan(
        start.slot,
        start.before[:, :n],
        start.totals[:b],
        start.sizes[:, :n].contiguous(),
        start.place[:, :n],
        queued,
        start.large[:, :most],
        start.totals[2 * b : 3 * b],
        start.large_number[:, :n],
        start.large_sizes[:, :most].contiguous(),
        list_keys(start, known[-1], n),
    )


@runs_as_kernel("partition_kernels")
def list_keys(start: MergeStart, total: int, count: int) -> Tensor:
    """Return the edges between new nodes, ``(2, total)`` int64 flat indices of ``count`` nodes a graph."""
    b, s = start.slot.shape
    keys = start.keys[start.flags]
    ends = torch.stack([torch.div(keys, b * s, rounding_mode="floor"), keys % (b * s)])
    return torch.div(ends, s, rounding_mode="floor") * count + ends % s


@runs_as_kernel("partition_kernels")
def renumber(members: Tensor, number: Tensor) -> Tensor:
    """Return the new number of each token's node.

    Args:
        members: ``(b, t)`` int64 node of every token, -1 for none.
        number: ``(b, s)`` int64 new number of every node, -1 for none.
    """
    padded = torch.cat([number, number.new_full((len(number), 1), -1)], dim=1)
    return torch.gather(padded, 1, torch.where(members >= 0, members, number.shape[1]))


@runs_as_kernel("partition_kernels")
def record_partition(members: Tensor, sizes: Tensor, labels: Tensor, tokens: Tensor) -> None:
    """Write a partition down: each token's region, and its size.

    Args:
        members: ``(b, t)`` int64 region of every token, -1 for none.
        sizes: ``(b, s)`` int64 tokens of each region.
        labels: ``(b, t)`` int64 takes the regions.
        tokens: ``(b, t)`` int64 takes the sizes, 0 for none.
    """
    labels.copy_(members)
    padded = torch.cat([sizes, sizes.new_zeros(len(sizes), 1)], dim=1)
    tokens.copy_(torch.gather(padded, 1, torch.where(members >= 0, members, sizes.shape[1])))


@runs_as_kernel("partition_kernels")
def find_fresh(members: Tensor, sizes: Tensor, old: Tensor, old_sizes: Tensor, most: Tensor, min_tokens: int) -> Tensor:
    """Return which regions of a partition are of a size that counts and, token for token, none of earlier ones.

    Args:
        members: ``(b, t)`` int64 region of every token, -1 for none.
        sizes: ``(b, s)`` int64 tokens of each region, 0 for padding.
        old: ``(m, b, t)`` int64 region of every token in m earlier partitions, -1 for none; m may be 0.
        old_sizes: ``(m, b, t)`` int64 tokens of that region, 0 for none.
        most: ``(b,)`` int64 most tokens of a region that counts.
        min_tokens: least tokens, at least 1.

    Returns:
        ``(b, s)`` bool.
    """
    b, s = sizes.shape
    fresh = (sizes >= min_tokens) & (sizes <= most[:, None])
    region = torch.where(members >= 0, members, s)
    token = torch.arange(members.shape[1], device=sizes.device).expand_as(members)
    # Any token of a region speaks for it: all others have to have the old region that it has.
    speaker = torch.zeros(b, s + 1, dtype=torch.int64, device=sizes.device).scatter_(1, region, token)
    padded = torch.cat([sizes, sizes.new_zeros(b, 1)], dim=1)
    for labels, tokens in zip(old, old_sizes, strict=True):
        said = torch.gather(labels, 1, speaker)
        differs = labels != torch.gather(said, 1, region)
        mixed = torch.zeros_like(speaker).scatter_add_(1, region, differs.long())
        is_old = (mixed == 0) & (torch.gather(tokens, 1, speaker) == padded)
        fresh &= ~is_old[:, :s]
    return fresh


@runs_as_kernel("partition_kernels")
def paint(masks: Tensor, rows: Tensor, members: Tensor, valid: Tensor, columns: int, side: int) -> None:
    """Write the masks of regions.

    Args:
        masks: ``(k, h, w)`` bool, False, written in place.
        rows: ``(b, s)`` int64 mask of each region, -1 for none.
        members: ``(b, t)`` int64 region of every block of tokens, -1 for none.
        valid: ``(b, h, w)`` bool, the tokens that are not padding.
        columns: blocks in a row of the grid.
        side: tokens along a side of a block.
    """
    padded = torch.cat([rows, rows.new_full((len(rows), 1), -1)], dim=1)
    graph, row, column = valid.nonzero().T
    mask = padded[graph, members[graph, row // side * columns + column // side]]
    kept = mask >= 0
    masks[mask[kept], row[kept], column[kept]] = True
