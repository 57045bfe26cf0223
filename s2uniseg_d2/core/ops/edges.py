"""Work on the edges of many graphs at once, with few questions to the host; by kernels where Triton is there.

Axes: b graphs, s nodes (the most of any graph), e edges, d feature width. A flat index is graph times s plus node.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from s2uniseg_d2.core.ops.kernels import runs_as_kernel

# Numbers that a temporary tensor may hold: 512 MiB of float64.
TEMPORARY = 2**26
# Rounds of label propagation before the host asks whether the components have settled, and jumps in each.
ROUNDS = 4
JUMPS = 4
# What is known of an edge: its ends need not be one, they are one, or it is open whether they are.
APART, JOINED, OPEN = 0, 1, 2


class FlaggedEdges(NamedTuple):
    """Edges of which some are to be measured, before the host knows how many.

    Attributes:
        flags: ``(e,)`` which are.
        ranks: ``(e,)`` how many are up to each; the flags where nothing reads it.
        counts: ``(b,)`` int64 how many are of each graph.
        feature: ``(e,)`` float64 the inner products of the features of the ends.
        edges: ``(2, e)`` int64 flat indices, those of a graph one after the other; None: all pairs of ``side`` nodes.
        side: s where the edges are all pairs, else 0.
    """

    flags: Tensor
    ranks: Tensor
    counts: Tensor
    feature: Tensor
    edges: Tensor | None
    side: int


class OpenEdges(NamedTuple):
    """Edges to be measured.

    Attributes:
        edges: ``(2, k)`` int64 flat indices.
        feature: ``(k,)`` float64 the inner products of the features of their ends.
        place: ``(k,)`` int64 row of each among the differences that are measured.
    """

    edges: Tensor
    feature: Tensor
    place: Tensor


@runs_as_kernel("edge_kernels")
def bound_edges(
    features: Tensor, sums: Tensor, sizes: Tensor, echo: Tensor, doubt: Tensor, edges: Tensor, rule: Tensor
) -> tuple[Tensor, Tensor]:
    """Decide edges by bounds on ω_f V_i·V_j + ω_s (1 − spread) where they do.

    The spread Σ_k w_k |D·F_k| of D = U_i − U_j lies between D·C·D / ‖D‖ and sqrt(D·C·D), as |D·F_k| ≤ ‖D‖.

    Args:
        features: ``(b, s, d)`` float64 V, no longer than 1.
        sums: ``(b, s, d)`` float64 sums of tokens, whose means are U.
        sizes: ``(b, s)`` int64 tokens of each node.
        echo: ``(b, s, d)`` float32 or float64 C U.
        doubt: ``(b,)`` float64 how far off D·(echo_i − echo_j) may be for ‖D‖ = 1.
        edges: ``(2, e)`` int64 flat indices; self-loops stay apart.
        rule: ``(4,)`` float64 ω_f, ω_s, the threshold, and the slack for the rounding of float64.

    Returns:
        ``(e,)`` float64 V_i·V_j, and ``(e,)`` int8 APART, JOINED or OPEN.
    """
    stride, d = sizes.shape[1], sums.shape[2]
    vectors, rows, answers = features.flatten(0, 1), sums.flatten(0, 1), echo.flatten(0, 1)
    counts = sizes.flatten().clamp_min(1)[:, None]
    found = []
    for part in slices(edges.shape[1], d):
        i, j = edges[:, part]
        apart = rows[i] / counts[i] - rows[j] / counts[j]
        gap = torch.linalg.vecdot(apart, apart)
        feature = torch.linalg.vecdot(vectors[i], vectors[j])
        reach = torch.linalg.vecdot(apart, (answers[i] - answers[j]).double())
        state = _rate(feature, gap, reach, doubt[torch.div(i, stride, rounding_mode="floor")], rule)
        found.append((feature, torch.where(i == j, APART, state)))
    if not found:
        return sums.new_zeros(0), sizes.new_zeros(0, dtype=torch.int8)
    features_of_edges, states = zip(*found, strict=True)
    return torch.cat(features_of_edges), torch.cat(states).to(torch.int8)


@runs_as_kernel("edge_kernels")
def bound_pairs(feature: Tensor, inner: Tensor, reach: Tensor, counts: Tensor, rule: Tensor) -> Tensor:
    """Do what :func:`bound_edges` does for all pairs i < j of each graph.

    Args:
        feature: ``(b, s, s)`` float64 V_i·V_j.
        inner: ``(b, s, s)`` float64 U_i·U_j.
        reach: ``(b, s, s)`` float64 U_i·C·U_j.
        counts: ``(b,)`` int64 nodes of each graph; those from there on are padding.
        rule: see :func:`bound_edges`.

    Returns:
        ``(b, s, s)`` int8 APART, JOINED or OPEN; APART where not i < j.
    """
    squares, reaches = (x.diagonal(dim1=1, dim2=2) for x in (inner, reach))
    gap = squares[:, :, None] + squares[:, None] - 2 * inner
    spread = reaches[:, :, None] + reaches[:, None] - 2 * reach
    exists = torch.arange(feature.shape[1], device=feature.device) < counts[:, None]
    state = _rate(feature, gap.clamp_min_(0), spread, torch.zeros_like(gap[:, :1, :1]), rule)
    return torch.where(exists[:, :, None] & exists[:, None], state, APART).to(torch.int8).triu_(1)


def _rate(feature: Tensor, gap: Tensor, reach: Tensor, doubt: Tensor, rule: Tensor) -> Tensor:
    """APART, JOINED or OPEN from V_i·V_j, ‖D‖² and D·C·D."""
    weight_f, weight_s, tau, slack = rule
    length = (gap + slack).sqrt()
    room = slack + doubt * length
    widest = torch.minimum((reach.clamp_min(0) + room).sqrt(), length)
    narrowest = (reach - room).clamp_min(0) / length
    base = weight_f * feature + weight_s
    may = torch.where(base - weight_s * narrowest + slack >= tau, OPEN, APART)
    return torch.where(base - weight_s * widest - slack >= tau, JOINED, may)


@runs_as_kernel("edge_kernels")
def join_components(roots: Tensor, edges: Tensor, state: Tensor) -> Tensor:
    """Return the smallest node of each node's component once more edges connect.

    Args:
        roots: ``(n,)`` int64 the same of the components so far, n below 2³¹.
        edges: ``(2, e)`` int64 pairs of nodes.
        state: ``(e,)`` int8, JOINED for those that connect.

    Returns:
        ``(n,)`` int64.
    """
    tail = edges[0]
    head = torch.where(state == JOINED, edges[1], tail)
    while True:
        for _ in range(ROUNDS):
            one, other = roots.index_select(0, tail), roots.index_select(0, head)
            low, high = torch.minimum(one, other), torch.maximum(one, other)
            above = roots.index_select(0, high)
            # Only roots are hooked: a node that gave up its parent would cut what is connected already.
            roots = roots.scatter_reduce(0, high, torch.where(above == high, low, above), "amin")
            for _ in range(JUMPS):
                roots = roots.index_select(0, roots)
        ends_meet = (roots.index_select(0, tail) == roots.index_select(0, head)).all()
        if bool(ends_meet & (roots == roots.index_select(0, roots)).all()):
            return roots


@runs_as_kernel("edge_kernels")
def join_pairs(roots: Tensor, state: Tensor) -> Tensor:
    """Return what :func:`join_components` does for the pairs of :func:`bound_pairs`, ``state`` ``(b, s, s)``."""
    edges = _list_pairs(state == JOINED)
    return join_components(roots, edges, state.new_full(edges.shape[1:], JOINED))


@runs_as_kernel("edge_kernels")
def flag_open(roots: Tensor, edges: Tensor, state: Tensor, feature: Tensor, graphs: int) -> FlaggedEdges:
    """Flag the open edges whose ends are not of one component already.

    Args:
        roots: ``(b * s,)`` int64, see :func:`join_components`.
        edges: ``(2, e)`` int64 flat indices, those of a graph one after the other.
        state: ``(e,)`` int8.
        feature: ``(e,)`` float64.
        graphs: b.
    """
    flags = (state == OPEN) & (roots[edges[0]] != roots[edges[1]])
    graph = torch.div(edges[0], roots.numel() // graphs, rounding_mode="floor")
    counts = torch.zeros(graphs, dtype=torch.int64, device=roots.device).scatter_add_(0, graph, flags.long())
    return FlaggedEdges(flags, flags, counts, feature, edges, 0)


@runs_as_kernel("edge_kernels")
def flag_open_pairs(roots: Tensor, state: Tensor, feature: Tensor) -> FlaggedEdges:
    """Do what :func:`flag_open` does for all pairs; ``state`` and ``feature`` ``(b, s, s)``."""
    b, s, _ = state.shape
    groups = roots.view(b, s)
    flags = (state == OPEN) & (groups[:, :, None] != groups[:, None])
    return FlaggedEdges(flags.flatten(), flags.flatten(), flags.sum(dim=(1, 2)), feature.flatten(), None, s)


@runs_as_kernel("edge_kernels")
def list_flagged(flagged: FlaggedEdges, total: int, stride: int, rows: int, first: int) -> OpenEdges:
    """Return the flagged edges.

    Args:
        flagged: the edges.
        total: how many are flagged.
        stride: s.
        rows: differences of each graph that are measured together.
        first: row of the first of these in each graph.
    """
    if flagged.edges is None:
        edges = _list_pairs(flagged.flags.view(flagged.counts.numel(), flagged.side, flagged.side))
    else:
        edges = flagged.edges[:, flagged.flags]
    graph = torch.div(edges[0], stride, rounding_mode="floor")
    rank = torch.arange(total, device=graph.device) - (flagged.counts.cumsum(0) - flagged.counts)[graph]
    return OpenEdges(edges, flagged.feature[flagged.flags], graph * rows + first + rank)


def _list_pairs(chosen: Tensor) -> Tensor:
    """The chosen pairs of ``(b, s, s)`` as flat indices ``(2, e)``."""
    graph, low, high = chosen.nonzero().T
    pairs: Tensor = torch.stack([low, high]) + graph * chosen.shape[1]
    return pairs


@runs_as_kernel("edge_kernels")
def subtract_means(sums: Tensor, sizes: Tensor, listed: OpenEdges, apart: Tensor) -> None:
    """Write U_i − U_j of each edge to its place.

    Args:
        sums: ``(b, s, d)`` float64 sums of tokens.
        sizes: ``(b, s)`` int64 tokens of each node.
        listed: the edges.
        apart: ``(b, rows, d)`` float64, written in place.
    """
    i, j = listed.edges
    rows, counts = sums.flatten(0, 1), sizes.flatten()[:, None]
    apart.flatten(0, 1)[listed.place] = rows[i] / counts[i] - rows[j] / counts[j]


@runs_as_kernel("edge_kernels")
def judge_edges(spread: Tensor, listed: OpenEdges, rule: Tensor) -> Tensor:
    """Return JOINED or APART ``(k,)`` int8 by what was measured.

    Args:
        spread: ``(b, rows)`` float64 spread at each place.
        listed: the edges.
        rule: see :func:`bound_edges`.
    """
    weight_f, weight_s, tau, _ = rule
    similarity = weight_f * listed.feature + weight_s * (1 - spread.flatten()[listed.place])
    return torch.where(similarity >= tau, JOINED, APART).to(torch.int8)


def slices(count: int, numbers: int) -> Iterator[slice]:
    """The parts of ``count`` items of so many numbers each, at least one item in each."""
    size = max(1, TEMPORARY // max(numbers, 1))
    return (slice(start, start + size) for start in range(0, count, size))
