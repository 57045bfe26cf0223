"""Connected components of an undirected graph, on any device."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components as scipy_components
from torch import Tensor

# Edges up to which Python joins components sooner than scipy.
FEW_EDGES = 100


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
    if edges.shape[1] <= FEW_EDGES:
        return _join_one_by_one(edges, count)
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


def _join_one_by_one(edges: Tensor, count: int) -> Tensor:
    """Components of few edges, by union-find: what scipy takes to check and convert a graph is longer."""
    above: dict[int, int] = {}

    def find_root(node: int) -> int:
        root = node
        while (parent := above.get(root, root)) != root:
            root = parent
        while node != root:  # the next search is short
            above[node], node = root, above[node]
        return root

    for ends in zip(*edges.tolist(), strict=True):
        low, high = sorted(map(find_root, ends))
        above[high] = low
    roots = torch.arange(count)
    if above:
        roots[torch.tensor(list(above))] = torch.tensor([find_root(node) for node in above])
    return _number_roots(roots)


def _number_by_first_node(labels: Tensor) -> Tensor:
    """Renumber gap-free labels so that label k is the k-th to appear."""
    count = int(labels.max()) + 1 if labels.numel() else 0
    positions = torch.arange(labels.numel(), device=labels.device)
    first = positions.new_full((count,), labels.numel()).scatter_reduce(0, labels, positions, "amin")
    return _number_roots(first[labels])


def _number_roots(roots: Tensor) -> Tensor:
    """Number components from 0 in the order of their roots, each the first node of its component."""
    ranks = (roots == torch.arange(roots.numel(), device=roots.device)).cumsum(0)
    return ranks[roots] - 1
