# ruff: noqa: ANN001, ANN202 - Triton reads the annotations of its kernels itself, and names constants in capitals
"""Triton kernels for partitions of many graphs. Called through :mod:`.partitions`; see :mod:`.edge_kernels`.

Each does in one launch what takes tensor operations three to thirty.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2uniseg_d2.core.ops.partitions import MergeStart

NODE_BLOCK = 256
TOKEN_BLOCK = 256
SCAN_BLOCK = 1024


def start_merge(roots: Tensor, sizes: Tensor, voted: bool, min_tokens: int, edges: Tensor | None) -> MergeStart:
    """See :func:`.partitions.start_merge`: five launches, a sort and a running sum."""
    (b, s), device = sizes.shape, sizes.device
    # In one block of zeros: what is gathered of each group, and what is written of each new node.
    parts, tokens, number, before, merged, place, large, large_number, large_sizes = torch.zeros(
        9, b, s, dtype=torch.int64, device=device
    )
    slot = torch.empty_like(sizes)
    totals = torch.zeros(3 * b + 1, dtype=torch.int64, device=device)
    nodes = (triton.cdiv(s, NODE_BLOCK), b)
    _gather_groups[nodes](roots, sizes, parts, tokens, s, NODE_BLOCK)
    _number_groups[(b,)](
        parts, tokens, number, before, merged, place, large, large_number, large_sizes, totals, s, b, min_tokens,
        voted, SCAN_BLOCK,
    )  # fmt: skip
    _find_slots[nodes](roots, sizes, number, slot, s, NODE_BLOCK)
    count = 0 if edges is None else edges.shape[1]
    keys, flags = parts.new_empty(count), torch.empty(count, dtype=torch.int32, device=device)
    ranks = flags
    if edges is not None and count:
        grid = (triton.cdiv(count, NODE_BLOCK),)
        _make_keys[grid](edges[0], edges[1], slot, keys, count, s, b * s, NODE_BLOCK)
        keys = keys.sort().values
        _flag_first[grid](keys, flags, totals, count, b * s, 3 * b, NODE_BLOCK)
        ranks = flags.cumsum(0, dtype=torch.int32)
    return MergeStart(totals, slot, before, merged, place, large, large_number, large_sizes, keys, flags, ranks)


def list_keys(start: MergeStart, total: int, count: int) -> Tensor:
    """See :func:`.partitions.list_keys`."""
    (b, s), edges = start.slot.shape, start.keys.numel()
    ends = torch.empty(2, total, dtype=torch.int64, device=start.slot.device)
    if total:
        _list_keys[(triton.cdiv(edges, NODE_BLOCK),)](
            start.keys, start.flags, start.ranks, ends[0], ends[1], edges, s, b * s, count, NODE_BLOCK
        )
    return ends


def renumber(members: Tensor, number: Tensor) -> Tensor:
    """See :func:`.partitions.renumber`."""
    result = torch.empty_like(members)
    _renumber[_over(members)](members, number, result, members.shape[1], number.stride(0), TOKEN_BLOCK)
    return result


def record_partition(members: Tensor, sizes: Tensor, labels: Tensor, tokens: Tensor) -> None:
    """See :func:`.partitions.record_partition`."""
    t, s = members.shape[1], sizes.shape[1]
    _record_partition[_over(members)](members, sizes, labels, tokens, t, s, TOKEN_BLOCK)


def find_fresh(members: Tensor, sizes: Tensor, old: Tensor, old_sizes: Tensor, most: Tensor, min_tokens: int) -> Tensor:
    """See :func:`.partitions.find_fresh`."""
    (b, s), t, m = sizes.shape, members.shape[1], len(old)
    fresh = torch.empty(b, s, dtype=torch.int8, device=sizes.device)
    differs = torch.zeros(max(m, 1), b, s, dtype=torch.int8, device=sizes.device)
    if m:
        speaker = torch.empty_like(sizes)
        _choose_speakers[_over(members)](members, speaker, t, s, TOKEN_BLOCK)
        _compare_tokens[(*_over(members), m)](members, speaker, sizes, old, old_sizes, differs, t, s, b, TOKEN_BLOCK)
    if s:
        _find_fresh[(triton.cdiv(s, NODE_BLOCK), b)](sizes, differs, fresh, most, s, b * s, m, min_tokens, NODE_BLOCK)
    return fresh.view(torch.bool)


def paint(masks: Tensor, rows: Tensor, members: Tensor, valid: Tensor, columns: int, side: int) -> None:
    """See :func:`.partitions.paint`; a program for some tokens."""
    b, h, w = valid.shape
    _paint[(triton.cdiv(h * w, TOKEN_BLOCK), b)](
        masks.view(torch.int8), rows, members, valid.view(torch.int8), h * w, w, columns, side, rows.stride(0),
        members.shape[1], TOKEN_BLOCK,
    )  # fmt: skip


def _over(members: Tensor) -> tuple[int, int]:
    return triton.cdiv(members.shape[1], TOKEN_BLOCK), len(members)


@triton.jit(do_not_specialize=["stride"])  # type: ignore[untyped-decorator]
def _gather_groups(roots, sizes, parts, tokens, stride, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    graph = tl.program_id(1).to(tl.int64)
    node = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    size = tl.load(sizes + graph * stride + node, mask=node < stride, other=0)
    live = size > 0
    root = tl.load(roots + graph * stride + node, mask=live, other=0)
    tl.atomic_add(parts + root, live.to(tl.int64), mask=live)
    tl.atomic_add(tokens + root, size, mask=live)


@triton.jit(do_not_specialize=["stride"])  # type: ignore[untyped-decorator]
def _number_groups(  # type: ignore[no-untyped-def]
    parts, tokens, number, before, merged, place, large, large_number, large_sizes, totals, stride, graphs,
    min_tokens, VOTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    graph = tl.program_id(0).to(tl.int64)
    base = graph * stride
    seen = graph * 0
    queued = graph * 0
    big = graph * 0
    for start in range(0, stride, BLOCK):
        node = start + tl.arange(0, BLOCK)
        # Tokens were gathered at the first node of each group: elsewhere, and for padding, there are none.
        size = tl.load(tokens + base + node, mask=node < stride, other=0)
        first = size > 0
        fresh = first
        if VOTED:
            fresh = first & (tl.load(parts + base + node, mask=first, other=0) > 1)
        wide = first & (size >= min_tokens)
        rank = base + seen + tl.cumsum(first.to(tl.int64), 0) - 1
        queue = queued + tl.cumsum(fresh.to(tl.int64), 0) - 1
        listed = big + tl.cumsum(wide.to(tl.int64), 0) - 1
        tl.store(number + base + node, rank - base, mask=first)
        tl.store(before + rank, node.to(tl.int64), mask=first)
        tl.store(merged + rank, size, mask=first)
        tl.store(place + rank, tl.where(fresh, queue, -1), mask=first)
        tl.store(large_number + rank, tl.where(wide, listed, -1), mask=first)
        tl.store(large + base + listed, rank - base, mask=wide)
        tl.store(large_sizes + base + listed, size, mask=wide)
        seen += tl.sum(first.to(tl.int64), 0)
        queued += tl.sum(fresh.to(tl.int64), 0)
        big += tl.sum(wide.to(tl.int64), 0)
    # Padding has no place and is not large.
    for start in range(0, stride, BLOCK):
        node = start + tl.arange(0, BLOCK)
        padding = (node >= seen) & (node < stride)
        tl.store(place + base + node, tl.full([BLOCK], -1, tl.int64), mask=padding)
        tl.store(large_number + base + node, tl.full([BLOCK], -1, tl.int64), mask=padding)
    tl.store(totals + graph, seen)
    tl.store(totals + graphs + graph, queued)
    tl.store(totals + 2 * graphs + graph, big)


@triton.jit(do_not_specialize=["stride"])  # type: ignore[untyped-decorator]
def _find_slots(roots, sizes, number, slot, stride, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    graph = tl.program_id(1).to(tl.int64)
    node = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = node < stride
    live = tl.load(sizes + graph * stride + node, mask=inside, other=0) > 0
    root = tl.load(roots + graph * stride + node, mask=live, other=0)
    found = tl.load(number + root, mask=live, other=-1)
    tl.store(slot + graph * stride + node, found, mask=inside)


@triton.jit(do_not_specialize=["count", "stride", "nodes"])  # type: ignore[untyped-decorator]
def _make_keys(tails, heads, slot, keys, count, stride, nodes, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    edge = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = edge < count
    tail = tl.load(tails + edge, mask=inside, other=0)
    base = tail // stride * stride
    one = base + tl.load(slot + tail, mask=inside, other=0)
    other = base + tl.load(slot + tl.load(heads + edge, mask=inside, other=0), mask=inside, other=0)
    total = nodes + one * 0
    key = tl.minimum(one, other) * total + tl.maximum(one, other)
    # Self-loops, those of padding among them, go to the end.
    tl.store(keys + edge, tl.where(one == other, total * total, key), mask=inside)


@triton.jit(do_not_specialize=["count", "nodes"])  # type: ignore[untyped-decorator]
def _flag_first(keys, flags, totals, count, nodes, place, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    edge = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = edge < count
    key = tl.load(keys + edge, mask=inside, other=0)
    last = tl.load(keys + edge - 1, mask=inside & (edge > 0), other=-1)
    total = nodes + key * 0
    first = inside & (key != last) & (key < total * total)
    tl.store(flags + edge, first.to(tl.int32), mask=inside)
    tl.atomic_add(totals + place, tl.sum(first.to(tl.int64), axis=0))


@triton.jit(do_not_specialize=["count", "stride", "nodes", "left"])  # type: ignore[untyped-decorator]
def _list_keys(keys, flags, ranks, tails, heads, count, stride, nodes, left, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    edge = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = tl.load(flags + edge, mask=edge < count, other=0) != 0
    rank = tl.load(ranks + edge, mask=live, other=1) - 1
    key = tl.load(keys + edge, mask=live, other=0)
    low = key // nodes
    high = key % nodes
    base = low // stride * left
    tl.store(tails + rank, base + low % stride, mask=live)
    tl.store(heads + rank, base + high % stride, mask=live)


@triton.jit(do_not_specialize=["width", "stride"])  # type: ignore[untyped-decorator]
def _renumber(members, number, result, width, stride, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    graph = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = token < width
    node = tl.load(members + graph * width + token, mask=inside, other=-1)
    found = tl.load(number + graph * stride + node, mask=node >= 0, other=-1)
    tl.store(result + graph * width + token, found, mask=inside)


@triton.jit(do_not_specialize=["width", "stride"])  # type: ignore[untyped-decorator]
def _record_partition(members, sizes, labels, tokens, width, stride, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    graph = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = token < width
    region = tl.load(members + graph * width + token, mask=inside, other=-1)
    tl.store(labels + graph * width + token, region, mask=inside)
    size = tl.load(sizes + graph * stride + region, mask=region >= 0, other=0)
    tl.store(tokens + graph * width + token, size, mask=inside)


@triton.jit(do_not_specialize=["width", "stride"])  # type: ignore[untyped-decorator]
def _choose_speakers(members, speaker, width, stride, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    graph = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    region = tl.load(members + graph * width + token, mask=token < width, other=-1)
    # Whichever comes last: any token will do.
    tl.store(speaker + graph * stride + region, token.to(tl.int64), mask=region >= 0)


@triton.jit(do_not_specialize=["width", "stride"])  # type: ignore[untyped-decorator]
def _compare_tokens(members, speaker, sizes, old, old_sizes, differs, width, stride, graphs, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    graph = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    region = tl.load(members + graph * width + token, mask=token < width, other=-1)
    live = region >= 0
    place = graph * stride + region
    layer = tl.program_id(2).to(tl.int64) * graphs
    base = (layer + graph) * width
    said = tl.load(old + base + tl.load(speaker + place, mask=live, other=0), mask=live, other=-1)
    own = tl.load(old + base + token, mask=live, other=-1)
    size = tl.load(old_sizes + base + token, mask=live, other=0)
    is_other = live & ((own != said) | (size != tl.load(sizes + place, mask=live, other=0)))
    tl.store(differs + layer * stride + place, tl.full([BLOCK], 1, tl.int8), mask=is_other)


@triton.jit(do_not_specialize=["stride", "nodes", "layers"])  # type: ignore[untyped-decorator]
def _find_fresh(sizes, differs, fresh, most, stride, nodes, layers, min_tokens, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    graph = tl.program_id(1).to(tl.int64)
    node = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = node < stride
    place = graph * stride + node
    size = tl.load(sizes + place, mask=inside, other=0)
    new = inside & (size >= min_tokens) & (size <= tl.load(most + graph))
    for layer in range(layers):
        new = new & (tl.load(differs + layer * nodes + place, mask=inside, other=0) != 0)
    tl.store(fresh + place, new.to(tl.int8), mask=inside)


@triton.jit(do_not_specialize=["tokens", "columns", "blocks", "side", "stride", "width"])  # type: ignore[untyped-decorator]
def _paint(  # type: ignore[no-untyped-def]
    masks, rows, members, valid, tokens, columns, blocks, side, stride, width, BLOCK: tl.constexpr
):
    graph = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = tl.load(valid + graph * tokens + token, mask=token < tokens, other=0) != 0
    block = token // columns // side * blocks + token % columns // side
    region = tl.load(members + graph * width + block, mask=real, other=-1)
    mask = tl.load(rows + graph * stride + region, mask=region >= 0, other=-1)
    tl.store(masks + mask * tokens + token, tl.full([BLOCK], 1, tl.int8), mask=mask >= 0)
