from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2uniseg_d2.core.ops import components
from s2uniseg_d2.core.ops.components import connected_components, propagate_labels


def with_scipy(edges: torch.Tensor, count: int) -> torch.Tensor:
    """Few edges otherwise never reach scipy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(components, "FEW_EDGES", 0)
        return connected_components(edges, count)


def one_by_one(edges: torch.Tensor, count: int) -> torch.Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(components, "FEW_EDGES", 10**6)
        return connected_components(edges, count)


METHODS = [with_scipy, one_by_one, propagate_labels]


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


def test_all_methods_agree_on_large_sparse_graphs():
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        edges = torch.randint(4000, (2, 2500), generator=generator)
        assert torch.equal(with_scipy(edges, 4000), propagate_labels(edges, 4000))
        assert torch.equal(one_by_one(edges, 4000), propagate_labels(edges, 4000))


@pytest.mark.parametrize("method", METHODS)
def test_bad_edges_are_named(method):
    with pytest.raises(ValueError, match=r"edges must be int64 of shape \(2, e\)"):
        method(torch.zeros(3, 2, dtype=torch.int64), 4)
    with pytest.raises(ValueError, match=r"edges must name nodes in \[0, 4\), got 1 to 4"):
        method(torch.tensor([[1], [4]]), 4)


def test_few_edges_do_without_scipy(monkeypatch):
    monkeypatch.setattr(components, "scipy_components", None)  # a call would fail
    few = torch.arange(components.FEW_EDGES).expand(2, -1)
    assert connected_components(few, 200).tolist() == list(range(200))
    with pytest.raises(TypeError):
        connected_components(torch.arange(components.FEW_EDGES + 1).expand(2, -1), 200)
