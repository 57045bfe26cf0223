# ruff: noqa: ANN001, ANN202 - Triton reads the annotations of its kernels itself, and names constants in capitals
"""Triton kernels for the edges of many graphs, called through :mod:`.edges`; PyTorch for CUDA brings Triton.

They save launches, copies of both rows of every edge, and rounds of label propagation with a question to the host after
some. All give the same result whatever the order in which the device works. No `from __future__ import annotations`
here: older Tritons look for ``tl.constexpr`` itself. Numbers that change from call to call are not specialised, which
would build a kernel for each kind of them, and float64 constants come in tensors: Triton takes numbers as float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2uniseg_d2.core.ops.edges import FlaggedEdges, OpenEdges

EDGE_BLOCK = 256
NODE_BLOCK = 256
PAIR_BLOCK = 256
COLUMN_BLOCK = 256
LEAST_BLOCK = 16


def block_width(d: int) -> int:
    """The width of a program that holds a whole row of d; Triton 3.0 takes blocks of one number for numbers."""
    return max(int(triton.next_power_of_2(d)), LEAST_BLOCK)


def bound_edges(
    features: Tensor, sums: Tensor, sizes: Tensor, echo: Tensor, doubt: Tensor, edges: Tensor, rule: Tensor
) -> tuple[Tensor, Tensor]:
    """See :func:`.edges.bound_edges`; one program for each edge."""
    count, d = edges.shape[1], sums.shape[2]
    feature = torch.empty(count, dtype=torch.float64, device=sums.device)
    state = torch.empty(count, dtype=torch.int8, device=sums.device)
    if count:
        # Before the first layer V, R and U are one.
        _bound_edges[(count,)](
            features, sums, sizes, echo, doubt, edges[0], edges[1], rule, feature, state, sizes.shape[1], d,
            features.data_ptr() == sums.data_ptr(), COLUMN_BLOCK, num_warps=1,
        )  # fmt: skip
    return feature, state


def bound_pairs(feature: Tensor, inner: Tensor, reach: Tensor, counts: Tensor, rule: Tensor) -> Tensor:
    """See :func:`.edges.bound_pairs`; a program for some pairs of each row."""
    b, s, _ = feature.shape
    state = torch.empty(b, s, s, dtype=torch.int8, device=feature.device)
    if state.numel():
        grid = (b * s, triton.cdiv(s, PAIR_BLOCK))
        _bound_pairs[grid](feature, inner, reach, counts, rule, state, s, PAIR_BLOCK)
    return state


def join_components(roots: Tensor, edges: Tensor, state: Tensor) -> Tensor:
    """See :func:`.edges.join_components`; a lock-free union of trees whose parents are smaller than their children."""
    return _join(roots, edges[0], edges[1], state, 0)


def join_pairs(roots: Tensor, state: Tensor) -> Tensor:
    """See :func:`.edges.join_pairs`."""
    return _join(roots, state, state, state, state.shape[1])


def _join(roots: Tensor, tail: Tensor, head: Tensor, state: Tensor, side: int) -> Tensor:
    count = state.numel()
    if not count:
        return roots
    parents = roots.to(torch.int32)
    _hook[(triton.cdiv(count, EDGE_BLOCK),)](parents, tail, head, state, count, side, side > 0, EDGE_BLOCK)
    result = torch.empty_like(roots)
    _climb[(triton.cdiv(result.numel(), NODE_BLOCK),)](parents, result, result.numel(), NODE_BLOCK)
    return result


def flag_open(roots: Tensor, edges: Tensor, state: Tensor, feature: Tensor, graphs: int) -> FlaggedEdges:
    """See :func:`.edges.flag_open`."""
    return FlaggedEdges(*_flag(roots, edges[0], edges[1], state, graphs, 0), feature, edges, 0)


def flag_open_pairs(roots: Tensor, state: Tensor, feature: Tensor) -> FlaggedEdges:
    """See :func:`.edges.flag_open_pairs`."""
    side = state.shape[1]
    return FlaggedEdges(*_flag(roots, state, state, state, len(state), side), feature, None, side)


def _flag(
    roots: Tensor, tail: Tensor, head: Tensor, state: Tensor, graphs: int, side: int
) -> tuple[Tensor, Tensor, Tensor]:
    count, stride = state.numel(), roots.numel() // graphs
    flags = torch.empty(count, dtype=torch.int32, device=roots.device)
    counts = torch.zeros(graphs, dtype=torch.int64, device=roots.device)
    if count:
        grid = (triton.cdiv(count, EDGE_BLOCK),)
        _flag_open[grid](roots, tail, head, state, flags, counts, count, stride, side, side > 0, EDGE_BLOCK)
    return flags, flags.cumsum(0, dtype=torch.int32), counts


def list_flagged(flagged: FlaggedEdges, total: int, stride: int, rows: int, first: int) -> OpenEdges:
    """See :func:`.edges.list_flagged`."""
    flags, ranks, counts, feature, edges, side = flagged
    count, pairs = flags.numel(), edges is None
    listed = torch.empty(2, total, dtype=torch.int64, device=flags.device)
    chosen = torch.empty(total, dtype=torch.float64, device=flags.device)
    place = torch.empty_like(listed[0])
    if total:
        tail, head = (flags, flags) if edges is None else edges
        _list_flagged[(triton.cdiv(count, EDGE_BLOCK),)](
            tail, head, flags, ranks, counts, feature, listed[0], listed[1], chosen, place, count, side, stride,
            counts.numel(), rows, first, pairs, EDGE_BLOCK,
        )  # fmt: skip
    return OpenEdges(listed, chosen, place)


def subtract_means(sums: Tensor, sizes: Tensor, listed: OpenEdges, apart: Tensor) -> None:
    """See :func:`.edges.subtract_means`; one program for each edge."""
    d, count = sums.shape[2], listed.place.numel()
    if count:
        _subtract_means[(count,)](sums, sizes, listed.edges[0], listed.edges[1], listed.place, apart, d, block_width(d))


def judge_edges(spread: Tensor, listed: OpenEdges, rule: Tensor) -> Tensor:
    """See :func:`.edges.judge_edges`."""
    count = listed.place.numel()
    state = torch.empty(count, dtype=torch.int8, device=spread.device)
    if count:
        grid = (triton.cdiv(count, EDGE_BLOCK),)
        _judge_edges[grid](spread, listed.feature, listed.place, rule, state, count, EDGE_BLOCK)
    return state


@triton.jit(do_not_specialize=["stride"])  # type: ignore[untyped-decorator]
def _bound_edges(  # type: ignore[no-untyped-def]
    features, sums, sizes, echo, doubt, tails, heads, rule, feature_out, state_out, stride, width, ALONE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    edge = tl.program_id(0).to(tl.int64)
    tail = tl.load(tails + edge)
    head = tl.load(heads + edge)
    share = 1 / tl.maximum(tl.load(sizes + tail), 1).to(tl.float64)
    other_share = 1 / tl.maximum(tl.load(sizes + head), 1).to(tl.float64)
    cosines = tl.zeros([BLOCK], tl.float64)
    gaps = tl.zeros([BLOCK], tl.float64)
    reaches = tl.zeros([BLOCK], tl.float64)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        one = tail * width + column
        other = head * width + column
        row = tl.load(sums + one, mask=inside, other=0.0)
        other_row = tl.load(sums + other, mask=inside, other=0.0)
        answer = tl.load(echo + one, mask=inside, other=0.0) - tl.load(echo + other, mask=inside, other=0.0)
        if ALONE:
            cosines += row * other_row
            apart = row - other_row
        else:
            vector = tl.load(features + one, mask=inside, other=0.0)
            cosines += vector * tl.load(features + other, mask=inside, other=0.0)
            apart = row * share - other_row * other_share
        gaps += apart * apart
        reaches += apart * answer.to(tl.float64)
    feature = tl.sum(cosines, axis=0)
    gap = tl.sum(gaps, axis=0)
    state = _rate(feature, gap, tl.sum(reaches, axis=0), tl.load(doubt + tail // stride), rule)
    tl.store(feature_out + edge, feature)
    tl.store(state_out + edge, tl.where(tail == head, 0, state).to(tl.int8))


@triton.jit(do_not_specialize=["side"])  # type: ignore[untyped-decorator]
def _bound_pairs(feature, inner, reach, counts, rule, state, side, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    graph = row // side
    i = row % side
    j = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = j < side
    count = tl.load(counts + graph)
    live = inside & (j > i) & (j < count)  # hence i as well
    first = graph * side
    own = row * side + i
    others = (first + j) * side + j
    gap = tl.load(inner + own) + tl.load(inner + others, mask=live, other=0.0)
    gap -= 2 * tl.load(inner + row * side + j, mask=live, other=0.0)
    spread = tl.load(reach + own) + tl.load(reach + others, mask=live, other=0.0)
    spread -= 2 * tl.load(reach + row * side + j, mask=live, other=0.0)
    cosine = tl.load(feature + row * side + j, mask=live, other=0.0)
    rated = _rate(cosine, tl.maximum(gap, tl.zeros_like(gap)), spread, tl.zeros_like(gap), rule)
    tl.store(state + row * side + j, tl.where(live, rated, 0).to(tl.int8), mask=inside)


@triton.jit
def _rate(feature, gap, reach, doubt, rule):  # type: ignore[no-untyped-def]
    weight_f = tl.load(rule)
    weight_s = tl.load(rule + 1)
    tau = tl.load(rule + 2)
    slack = tl.load(rule + 3)
    length = tl.sqrt(gap + slack)
    room = slack + doubt * length
    zero = reach * 0
    widest = tl.minimum(tl.sqrt(tl.maximum(reach, zero) + room), length)
    narrowest = tl.maximum(reach - room, zero) / length
    base = weight_f * feature + weight_s
    may = tl.where(base - weight_s * narrowest + slack >= tau, 2, 0)
    return tl.where(base - weight_s * widest - slack >= tau, 1, may)


@triton.jit(do_not_specialize=["count", "side"])  # type: ignore[untyped-decorator]
def _hook(parents, tail, head, state, count, side, PAIRS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    edge = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = tl.load(state + edge, mask=edge < count, other=0) == 1
    u, v = _ends(tail, head, edge, live, side, PAIRS)
    u = u.to(tl.int32)
    v = v.to(tl.int32)
    live = live & (u != v)
    while tl.max(live.to(tl.int32), axis=0) > 0:
        # Each end climbs one step; a stale parent is an older ancestor, which the atomic operation sees through.
        above_u = tl.load(parents + u, mask=live, other=0, volatile=True)
        above_v = tl.load(parents + v, mask=live, other=0, volatile=True)
        climbs = live & ((above_u != u) | (above_v != v))
        u = tl.where(climbs, above_u, u)
        v = tl.where(climbs, above_v, v)
        meets = live & (climbs == 0) & (u != v)
        high = tl.maximum(u, v)
        low = tl.minimum(u, v)
        before = tl.atomic_min(parents + high, low, mask=meets)
        # Where another edge had hooked it already, its parent before is left to be joined with the new one.
        again = meets & (before != high)
        u = tl.where(again, before, u)
        v = tl.where(again, low, v)
        live = climbs | (again & (u != v))


@triton.jit  # type: ignore[untyped-decorator]
def _ends(tail, head, edge, live, side, PAIRS: tl.constexpr):  # type: ignore[no-untyped-def]
    if PAIRS:
        one = edge // side
        other = one // side * side + edge % side
    else:
        one = tl.load(tail + edge, mask=live, other=0)
        other = tl.load(head + edge, mask=live, other=0)
    return one, other


@triton.jit(do_not_specialize=["count"])  # type: ignore[untyped-decorator]
def _climb(parents, roots, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    node = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = node < count
    root = tl.load(parents + node, mask=inside, other=0)
    live = inside
    while tl.max(live.to(tl.int32), axis=0) > 0:
        above = tl.load(parents + root, mask=live, other=0)
        live = live & (above != root)
        root = tl.where(live, above, root)
    tl.store(roots + node, root.to(tl.int64), mask=inside)


@triton.jit(do_not_specialize=["count", "stride", "side"])  # type: ignore[untyped-decorator]
def _flag_open(  # type: ignore[no-untyped-def]
    roots, tail, head, state, flags, counts, count, stride, side, PAIRS: tl.constexpr, BLOCK: tl.constexpr
):
    edge = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = edge < count
    live = tl.load(state + edge, mask=inside, other=0) == 2
    one, other = _ends(tail, head, edge, live, side, PAIRS)
    live = live & (tl.load(roots + one, mask=live, other=0) != tl.load(roots + other, mask=live, other=0))
    tl.store(flags + edge, live.to(tl.int32), mask=inside)
    tl.atomic_add(counts + one // stride, live.to(tl.int64), mask=live)


@triton.jit(do_not_specialize=["count", "side", "stride", "rows", "first"])  # type: ignore[untyped-decorator]
def _list_flagged(  # type: ignore[no-untyped-def]
    tail, head, flags, ranks, counts, feature, tails, heads, features, places, count, side, stride, graphs, rows, first,
    PAIRS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    edge = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = tl.load(flags + edge, mask=edge < count, other=0) != 0
    listed = tl.load(ranks + edge, mask=live, other=1) - 1
    one, other = _ends(tail, head, edge, live, side, PAIRS)
    graph = one // stride
    rank = listed.to(tl.int64)
    for before in range(graphs):
        rank -= tl.where(graph > before, tl.load(counts + before), 0)
    tl.store(tails + listed, one, mask=live)
    tl.store(heads + listed, other, mask=live)
    tl.store(features + listed, tl.load(feature + edge, mask=live, other=0.0), mask=live)
    tl.store(places + listed, graph * rows + first + rank, mask=live)


@triton.jit  # type: ignore[untyped-decorator]
def _subtract_means(sums, sizes, tails, heads, places, apart, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    edge = tl.program_id(0).to(tl.int64)
    tail = tl.load(tails + edge)
    head = tl.load(heads + edge)
    place = tl.load(places + edge)
    column = tl.arange(0, BLOCK)
    inside = column < width
    one = tl.load(sums + tail * width + column, mask=inside, other=0.0) / tl.load(sizes + tail).to(tl.float64)
    other = tl.load(sums + head * width + column, mask=inside, other=0.0) / tl.load(sizes + head).to(tl.float64)
    tl.store(apart + place * width + column, one - other, mask=inside)


@triton.jit(do_not_specialize=["count"])  # type: ignore[untyped-decorator]
def _judge_edges(spread, feature, places, rule, state, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    edge = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = edge < count
    measured = tl.load(spread + tl.load(places + edge, mask=inside, other=0), mask=inside, other=0.0)
    cosine = tl.load(feature + edge, mask=inside, other=0.0)
    similarity = tl.load(rule) * cosine + tl.load(rule + 1) * (1 - measured)
    tl.store(state + edge, (similarity >= tl.load(rule + 2)).to(tl.int8), mask=inside)
