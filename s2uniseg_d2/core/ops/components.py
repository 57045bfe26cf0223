"""Connected components of an undirected graph, on any device."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components as scipy_components
from torch import Tensor


def connected_components(edges: Tensor, count: int) -> Tensor:
    """Number the connected components of a graph in the order of their first node.

    Source: the "SCC" of the paper's section "Fast Universal Agglomerative Pooling"; in its undirected graph strongly
    connected components are connected components. scipy finds them on the CPU, :func:`propagate_labels` elsewhere;
    both give the same numbers.

    Args:
        edges: ``(2, e)`` int64 node pairs; direction, repetition and self-loops do not matter; e may be 0.
        count: number of nodes, at least 0.

    Returns:
        ``(count,)`` int64: the component of every node, counted from 0 without gaps.

    Raises:
        ValueError: ``edges`` is not ``(2, e)`` or names a node outside [0, count).
    """
    _check(edges, count)
    if edges.device.type != "cpu":
        return propagate_labels(edges, count)
    if not edges.shape[1]:
        return torch.arange(count)
    tails, heads = edges.to(torch.int32).numpy()
    # In the form that scipy works on, so that it copies and checks nothing more.
    graph = coo_matrix((np.ones(tails.size), (tails, heads)), shape=(count, count)).tocsr()
    # scipy documents no order of its labels.
    return _number_by_first_node(torch.from_numpy(scipy_components(graph, directed=False)[1].astype(np.int64)))


def propagate_labels(edges: Tensor, count: int) -> Tensor:
    """Number connected components as :func:`connected_components` does, with tensor operations alone.

    Every round hooks the root of each edge's larger end below the smaller root, then jumps all pointers to their
    roots; the number of rounds grows with the logarithm of the longest path in practice.

    Args:
        edges: ``(2, e)`` int64 node pairs on any device.
        count: number of nodes.

    Returns:
        ``(count,)`` int64: the component of every node, counted from 0 in the order of first nodes.

    Raises:
        ValueError: ``edges`` is not ``(2, e)`` or names a node outside [0, count).
    """
    _check(edges, count)
    root = torch.arange(count, device=edges.device)
    while True:
        ends = root[edges]
        low, high = ends.min(dim=0).values, ends.max(dim=0).values
        if torch.equal(low, high):
            break
        root = root.scatter_reduce(0, high, low, "amin")
        while not torch.equal(root, root[root]):
            root = root[root]
    # The root of a component is its smallest node, so that sorted roots are sorted first nodes.
    labels: Tensor = torch.unique(root, return_inverse=True)[1]
    return labels


def _check(edges: Tensor, count: int) -> None:
    if edges.dim() != 2 or edges.shape[0] != 2 or edges.dtype != torch.int64:
        raise ValueError(f"edges must be int64 of shape (2, e), got {edges.dtype} {tuple(edges.shape)}")
    if edges.device.type == "cpu" and edges.numel() and not (int(edges.min()) >= 0 and int(edges.max()) < count):
        raise ValueError(f"edges must name nodes in [0, {count}), got {int(edges.min())} to {int(edges.max())}")


def _number_by_first_node(labels: Tensor) -> Tensor:
    """Renumber gap-free labels so that label k is the k-th to appear."""
    count = int(labels.max()) + 1 if labels.numel() else 0
    positions = torch.arange(labels.numel(), device=labels.device)
    first = positions.new_full((count,), labels.numel()).scatter_reduce(0, labels, positions, "amin")
    rank = torch.empty_like(first)
    rank[first.argsort()] = torch.arange(count, device=labels.device)
    return rank[labels]
