# ruff: noqa: ANN001, ANN202 - Triton reads the annotations of its kernels itself, and names constants in capitals
"""Triton kernels for vectors of the nodes of many graphs. Called through :mod:`.vectors`; see :mod:`.edge_kernels`.

Rows are added by atomic operations, in an order that changes from call to call: as integers, whose sum does not.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2uniseg_d2.core.ops.edge_kernels import block_width

VOTER_BLOCK = 1024
# Rows that one program adds up.
RUN = 16
UNIT_BLOCK = 1024
# Tokens and channels that are turned round at a time.
TILE_TOKENS = 32
TILE_CHANNELS = 64


def add_rows(rows: Tensor, slot: Tensor, count: int, most: int) -> Tensor:
    """See :func:`.vectors.add_rows`; a program for some rows, of which neighbours often have one sum."""
    b, s, d = rows.shape
    units = torch.zeros(b, count, d, dtype=torch.int64, device=rows.device)
    sums = units.view(torch.float64)
    if count:
        # A power of two, which float32 holds: Triton takes numbers as such.
        scale = 2.0 ** (62 - most.bit_length())
        grid = (triton.cdiv(b * s, RUN),)
        _add_rows[grid](rows, slot, units, b * s, s, count, d, scale, RUN, block_width(d))
        size = units.numel()
        _read_units[(triton.cdiv(size, UNIT_BLOCK),)](units, sums, size, 1 / scale, UNIT_BLOCK)
    return sums


def mean_rows(sums: Tensor, sizes: Tensor, dtype: torch.dtype) -> Tensor:
    """See :func:`.vectors.mean_rows`."""
    means = torch.empty_like(sums, dtype=dtype)
    if means.numel():
        d = sums.shape[2]
        _mean_rows[(sizes.numel(),)](sums, sizes, means, d, block_width(d))
    return means


def queue_rows(sums: Tensor, sizes: Tensor, place: Tensor, queries: Tensor, by_size: bool) -> None:
    """See :func:`.vectors.queue_rows`; one program for each node."""
    d, grid = sums.shape[2], (place.numel(),)
    if place.numel():
        _queue_rows[grid](
            sums,
            sizes,
            place,
            queries,
            place.shape[1],
            place.stride(0),
            queries.shape[1],
            d,
            by_size,
            block_width(d),
        )


def exponentiate(logits: Tensor, weights: Tensor | None) -> Tensor:
    """See :func:`.vectors.exponentiate`; one program for each query, whose logits stay in the cache."""
    b, m, v = logits.shape
    totals = torch.empty(b, m, dtype=torch.float64, device=logits.device)
    if totals.numel():
        _exponentiate[(b * m,)](
            logits, logits if weights is None else weights, totals, m, v, weights is not None, VOTER_BLOCK
        )
    return totals


def store_votes(votes: Tensor, totals: Tensor, place: Tensor, vectors: Tensor, rows: Tensor | None) -> None:
    """See :func:`.vectors.store_votes`; one program for each node."""
    d, named = votes.shape[2], place if rows is None else rows
    if place.numel():
        _store_votes[(place.numel(),)](
            votes, totals, place, vectors, named, place.shape[1], place.stride(0), named.stride(0), votes.shape[1], d,
            rows is not None, block_width(d),
        )  # fmt: skip


def store_rows(vectors: Tensor, rows: Tensor, chosen: Tensor, level: int, levels: Tensor) -> None:
    """See :func:`.vectors.store_rows`; one program for each node."""
    d, s = vectors.shape[2], rows.shape[1]
    if rows.numel():
        _store_rows[(rows.numel(),)](vectors, rows, chosen, level, levels, s, rows.stride(0), d, block_width(d))


def take_rows(vectors: Tensor, index: Tensor) -> Tensor:
    """See :func:`.vectors.take_rows`; one program for each row."""
    b, s, d = vectors.shape
    taken = torch.empty(b, index.shape[1], d, dtype=vectors.dtype, device=vectors.device)
    if index.numel():
        _take_rows[(index.numel(),)](vectors, index, taken, s, index.shape[1], index.stride(0), d, block_width(d))
    return taken


def normalise_tokens(features: Tensor, valid: Tensor, side: int) -> Tensor:
    """See :func:`.vectors.normalise_tokens`; each program turns some tokens round."""
    features = features.contiguous()
    b, d, h, w = features.shape
    rows, columns = -(-h // side), -(-w // side)
    result = torch.empty(b, rows * columns, d, dtype=torch.float64, device=features.device)
    # Squares of float64 features may overflow; those of narrower ones do not in float64.
    _normalise_tokens[(triton.cdiv(rows * columns, TILE_TOKENS), b)](
        features, valid.view(torch.int8), result, d, h, w, rows * columns, columns, side,
        features.dtype == torch.float64, TILE_TOKENS, TILE_CHANNELS,
    )  # fmt: skip
    return result


@triton.jit(do_not_specialize=["count", "stride", "left"])  # type: ignore[untyped-decorator]
def _add_rows(rows, slots, units, count, stride, left, width, scale, RUN: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    first = tl.program_id(0).to(tl.int64) * RUN
    column = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    target = first * 0 - 1
    for step in range(RUN):
        node = first + step
        slot = tl.load(slots + tl.minimum(node, count - 1))
        own = tl.where((slot >= 0) & (node < count), node // stride * left + slot, -1)
        # What was added up leaves before another sum begins.
        ends = column < tl.where((own != target) & (target >= 0), width, 0)
        tl.atomic_add(units + target * width + column, tl.floor(total * scale + 0.5).to(tl.int64), mask=ends)
        total = tl.where(own != target, 0.0, total)
        total += tl.load(rows + node * width + column, mask=column < tl.where(own >= 0, width, 0), other=0.0)
        target = own
    ends = column < tl.where(target >= 0, width, 0)
    tl.atomic_add(units + target * width + column, tl.floor(total * scale + 0.5).to(tl.int64), mask=ends)


@triton.jit(do_not_specialize=["count"])  # type: ignore[untyped-decorator]
def _read_units(units, sums, count, unit, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    tl.store(sums + place, tl.load(units + place, mask=inside, other=0).to(tl.float64) * unit, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _mean_rows(sums, sizes, means, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    node = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    row = tl.load(sums + node * width + column, mask=inside, other=0.0)
    mean = row / tl.maximum(tl.load(sizes + node), 1).to(tl.float64)
    tl.store(means + node * width + column, mean.to(means.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["stride", "step", "most"])  # type: ignore[untyped-decorator]
def _queue_rows(sums, sizes, places, queries, stride, step, most, width, BY_SIZE: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    node = tl.program_id(0).to(tl.int64)
    place = tl.load(places + node // stride * step + node % stride)
    column = tl.arange(0, BLOCK)
    inside = column < tl.where(place >= 0, width, 0)
    row = tl.load(sums + node * width + column, mask=inside, other=0.0)
    if BY_SIZE:
        row = row / tl.maximum(tl.load(sizes + node), 1).to(tl.float64)
    tl.store(queries + (node // stride * most + place) * width + column, row, mask=inside)


@triton.jit(do_not_specialize=["most", "voters"])  # type: ignore[untyped-decorator]
def _exponentiate(logits, weights, totals, most, voters, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    query = tl.program_id(0).to(tl.int64)
    first = logits + query * voters
    shares = weights + query // most * voters
    highest = tl.full([BLOCK], float("-inf"), tl.float64)
    for start in range(0, voters, BLOCK):
        voter = start + tl.arange(0, BLOCK)
        logit = tl.load(first + voter, mask=voter < voters, other=float("-inf"))
        if WEIGHTED:
            logit = tl.where(tl.load(shares + voter, mask=voter < voters, other=0.0) > 0, logit, float("-inf"))
        highest = tl.maximum(highest, logit)
    peak = tl.max(highest, axis=0)
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, voters, BLOCK):
        voter = start + tl.arange(0, BLOCK)
        logit = tl.load(first + voter, mask=voter < voters, other=float("-inf"))
        share = tl.full([BLOCK], 1.0, tl.float64)
        if WEIGHTED:
            share = tl.load(shares + voter, mask=voter < voters, other=0.0)
            logit = tl.where(share > 0, logit, float("-inf"))
        ballot = share * tl.exp(logit - peak)
        tl.store(first + voter, ballot, mask=voter < voters)
        total += ballot
    tl.store(totals + query, tl.sum(total, axis=0))


@triton.jit(do_not_specialize=["stride", "step", "row_step", "most"])  # type: ignore[untyped-decorator]
def _store_votes(  # type: ignore[no-untyped-def]
    votes, totals, places, vectors, rows, stride, step, row_step, most, width, HAS_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    node = tl.program_id(0).to(tl.int64)
    graph = node // stride
    place = tl.load(places + graph * step + node % stride)
    row = node
    if HAS_ROWS:
        row = tl.load(rows + graph * row_step + node % stride)
    query = graph * most + tl.maximum(place, 0)
    column = tl.arange(0, BLOCK)
    inside = column < tl.where(place >= 0, width, 0)
    vote = tl.load(votes + query * width + column, mask=inside, other=0.0)
    length = tl.sqrt(tl.sum(vote * vote, axis=0))
    total = tl.load(totals + query)
    lasting = length * 1000000000 > total
    direction = tl.where(lasting, vote / tl.where(lasting, length, total), 0.0)
    tl.store(vectors + row * width + column, direction.to(vectors.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["level", "stride", "step"])  # type: ignore[untyped-decorator]
def _store_rows(vectors, rows, chosen, level, levels, stride, step, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    node = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + node // stride * step + node % stride)
    column = tl.arange(0, BLOCK)
    inside = column < tl.where(row >= 0, width, 0)
    vector = tl.load(vectors + node * width + column, mask=inside, other=0.0)
    tl.store(chosen + row * width + column, vector.to(chosen.dtype.element_ty), mask=inside)
    # As a block: Triton 3.0's interpreter stores single numbers whatever their mask.
    first = column < tl.where(row >= 0, 1, 0)
    tl.store(levels + row + column, column * 0 + level, mask=first)


@triton.jit(do_not_specialize=["stride", "left", "step"])  # type: ignore[untyped-decorator]
def _take_rows(vectors, index, taken, stride, left, step, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    node = row // left * stride + tl.load(index + row // left * step + row % left)
    column = tl.arange(0, BLOCK)
    inside = column < width
    vector = tl.load(vectors + node * width + column, mask=inside, other=0.0)
    tl.store(taken + row * width + column, vector, mask=inside)


@triton.jit(do_not_specialize=["rows", "columns", "blocks", "blocks_in_row"])  # type: ignore[untyped-decorator]
def _normalise_tokens(  # type: ignore[no-untyped-def]
    features, valid, result, width, rows, columns, blocks, blocks_in_row, side, SCALED: tl.constexpr,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    graph = tl.program_id(1).to(tl.int64)
    block = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    inside = block < blocks
    token = block // blocks_in_row * side * columns + block % blocks_in_row * side
    tokens = rows * columns
    real = tl.load(valid + graph * tokens + token, mask=inside, other=0) != 0
    first = features + graph * width * tokens + token
    peak = tl.full([TOKENS], 1.0, tl.float64)
    if SCALED:
        peak = tl.zeros([TOKENS], tl.float64)
        for start in range(0, width, CHANNELS):
            channel = start + tl.arange(0, CHANNELS)
            seen = real[:, None] & (channel < width)[None, :]
            part = tl.load(first[:, None] + channel[None, :] * tokens, mask=seen, other=0.0).to(tl.float64)
            peak = tl.maximum(peak, tl.max(tl.abs(part), axis=1))
        peak = tl.where(peak > 0, peak, 1.0)
    square = tl.zeros([TOKENS], tl.float64)
    for start in range(0, width, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        seen = real[:, None] & (channel < width)[None, :]
        part = tl.load(first[:, None] + channel[None, :] * tokens, mask=seen, other=0.0).to(tl.float64)
        part = part / peak[:, None]
        square += tl.sum(part * part, axis=1)
    length = tl.sqrt(square)
    length = tl.where(length > 0, length, 1.0)
    for start in range(0, width, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        seen = real[:, None] & (channel < width)[None, :]
        part = tl.load(first[:, None] + channel[None, :] * tokens, mask=seen, other=0.0).to(tl.float64)
        target = result + (graph * blocks + block)[:, None] * width + channel[None, :]
        # The padding becomes zero too.
        tl.store(target, part / peak[:, None] / length[:, None], mask=inside[:, None] & (channel < width)[None, :])
