"""Work on the edges of many graphs at once, on any device, without a question to the host where Triton is there."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

_LOGGER = logging.getLogger(__name__)

# Numbers that a temporary tensor may hold: 512 MiB of float64.
TEMPORARY = 2**26
# Rounds of label propagation before the host asks whether the components have settled, and jumps in each.
ROUNDS = 4
JUMPS = 4


def edge_products(one: Tensor, other: Tensor, edges: Tensor) -> Tensor:
    """Return the inner product of row i of one side and row j of the other for each edge (i, j).

    Args:
        one: ``(n, d)`` float.
        other: ``(n, d)`` of the same type.
        edges: ``(2, e)`` int64 in [0, n).

    Returns:
        ``(e,)`` of the same type.
    """
    if one.is_cuda and _builds_kernels(one.device):
        from s2uniseg_d2.core.ops import edge_kernels

        with torch.cuda.device(one.device):
            return edge_kernels.edge_products(one, other, edges)
    parts = [
        torch.linalg.vecdot(one.index_select(0, edges[0, part]), other.index_select(0, edges[1, part]))
        for part in slices(edges.shape[1], one.shape[1])
    ]
    return torch.cat(parts) if parts else one.new_zeros(0)


def join_components(roots: Tensor, edges: Tensor, joined: Tensor) -> Tensor:
    """Return the smallest node of each node's component once more edges connect.

    Args:
        roots: ``(n,)`` int64 the same of the components so far, n below 2³¹.
        edges: ``(2, e)`` int64 pairs of nodes.
        joined: ``(e,)`` bool which of them connect.

    Returns:
        ``(n,)`` int64.
    """
    if roots.is_cuda and _builds_kernels(roots.device):
        from s2uniseg_d2.core.ops import edge_kernels

        with torch.cuda.device(roots.device):
            return edge_kernels.join_components(roots, edges, joined)
    tail = edges[0]
    head = torch.where(joined, edges[1], tail)
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


def slices(count: int, numbers: int) -> Iterator[slice]:
    """The parts of ``count`` items of so many numbers each, at least one item in each."""
    size = max(1, TEMPORARY // max(numbers, 1))
    return (slice(start, start + size) for start in range(0, count, size))


@cache
def _builds_kernels(device: torch.device) -> bool:
    """Whether Triton is there and builds kernels for a GPU; it needs a C compiler too. Tried once."""
    try:
        from s2uniseg_d2.core.ops import edge_kernels

        with torch.cuda.device(device):
            node = torch.zeros(2, 1, dtype=torch.int64, device=device)
            edge_kernels.join_components(node[0], node, torch.ones(1, dtype=torch.bool, device=device))
    except (ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        _LOGGER.warning("Triton builds no kernels here, so that UniAP on %s takes longer: %s", device, error)
        return False
    return True
