# ruff: noqa: ANN001, ANN202 - Triton reads the annotations of its kernels itself
"""Triton kernels for the edges of a graph; Triton comes with PyTorch where it has CUDA. Called through :mod:`.edges`.

They save what single tensor operations cost: copies of both rows of every edge, and rounds of label propagation with a
question to the host after some. Both give the same result whatever the order in which the device works. No
`from __future__ import annotations` here: older Tritons look for ``tl.constexpr`` itself.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

EDGE_BLOCK = 256
NODE_BLOCK = 256


def edge_products(one: Tensor, other: Tensor, edges: Tensor) -> Tensor:
    """See :func:`.edges.edge_products`; one program for each edge."""
    (n, d), products = one.shape, torch.empty(edges.shape[1], dtype=one.dtype, device=one.device)
    if products.numel() and n:
        one, other = one.contiguous(), other.contiguous()
        tail, head = edges[0].contiguous(), edges[1].contiguous()
        _multiply_rows[(products.numel(),)](one, other, tail, head, products, d, triton.next_power_of_2(d))
    return products


def join_components(roots: Tensor, edges: Tensor, joined: Tensor) -> Tensor:
    """See :func:`.edges.join_components`; a lock-free union of trees whose parents are smaller than their children."""
    count, parents = edges.shape[1], roots.to(torch.int32)
    if not count:
        return roots
    tail, head = edges[0].contiguous(), edges[1].contiguous()
    _hook[(triton.cdiv(count, EDGE_BLOCK),)](parents, tail, head, joined.to(torch.int8), count, EDGE_BLOCK)
    result = torch.empty_like(roots)
    _climb[(triton.cdiv(result.numel(), NODE_BLOCK),)](parents, result, result.numel(), NODE_BLOCK)
    return result


@triton.jit  # type: ignore[untyped-decorator]
def _multiply_rows(one, other, tail, head, products, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    edge = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < width
    a = tl.load(one + tl.load(tail + edge) * width + column, mask=inside, other=0.0)
    b = tl.load(other + tl.load(head + edge) * width + column, mask=inside, other=0.0)
    tl.store(products + edge, tl.sum(a * b, axis=0))


@triton.jit  # type: ignore[untyped-decorator]
def _hook(parents, tail, head, joined, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    edge = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = tl.load(joined + edge, mask=edge < count, other=0) != 0
    u = tl.load(tail + edge, mask=live, other=0).to(tl.int32)
    v = tl.load(head + edge, mask=live, other=0).to(tl.int32)
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
