from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2uniseg_d2.core.ops.components import connected_components, propagate_labels

METHODS = [connected_components, propagate_labels]


def flood_fill(edges: torch.Tensor, count: int) -> list[int]:
    neighbours: list[set[int]] = [set() for _ in range(count)]
    for i, j in edges.T.tolist():
        neighbours[i].add(j)
        neighbours[j].add(i)
    labels = [-1] * count
    number = 0
    for start in range(count):
        if labels[start] >= 0:
            continue
        stack = [start]
        while stack:
            node = stack.pop()
            if labels[node] < 0:
                labels[node] = number
                stack.extend(neighbours[node])
        number += 1
    return labels


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_equals_flood_fill(method, data):
    count = data.draw(st.integers(1, 30))
    node = st.integers(0, count - 1)
    pairs = data.draw(st.lists(st.tuples(node, node), max_size=40))
    edges = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    assert method(edges, count).tolist() == flood_fill(edges, count)


@pytest.mark.parametrize("method", METHODS)
def test_no_edges_keeps_every_node_and_no_nodes_give_nothing(method):
    none = torch.zeros(2, 0, dtype=torch.int64)
    assert method(none, 4).tolist() == [0, 1, 2, 3]
    assert method(none, 0).tolist() == []


@pytest.mark.parametrize("method", METHODS)
def test_long_path_in_shuffled_order_is_one_component(method):
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    assert method(torch.stack([order[:-1], order[1:]]), 5000).max() == 0


def test_both_methods_agree_on_large_sparse_graphs():
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        edges = torch.randint(4000, (2, 2500), generator=generator)
        assert torch.equal(connected_components(edges, 4000), propagate_labels(edges, 4000))


@pytest.mark.parametrize("method", METHODS)
def test_bad_edges_are_named(method):
    with pytest.raises(ValueError, match=r"edges must be int64 of shape \(2, e\)"):
        method(torch.zeros(3, 2, dtype=torch.int64), 4)
    with pytest.raises(ValueError, match=r"edges must name nodes in \[0, 4\), got 1 to 4"):
        method(torch.tensor([[1], [4]]), 4)
