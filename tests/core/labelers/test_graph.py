from __future__ import annotations

import pytest
import torch

from s2uniseg_d2.core.labelers import graph as module
from s2uniseg_d2.core.labelers.graph import build_token_graph, compare_neighbours, contract_edges


def pairs(edges: torch.Tensor) -> set[tuple[int, int]]:
    return {(min(i, j), max(i, j)) for i, j in edges.T.tolist()}


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 4), (4, 1), (3, 3), (2, 5)])
def test_edges_join_direct_neighbours_once(rows, columns):
    graph = build_token_graph(torch.arange(float(rows * columns)).view(1, rows, columns))
    cells = [(r, c) for r in range(rows) for c in range(columns)]
    expected = {
        (i, j)
        for i, (r, c) in enumerate(cells)
        for j, (s, k) in enumerate(cells)
        if i < j and abs(r - s) + abs(c - k) == 1
    }
    assert pairs(graph.edges) == expected
    assert graph.edges.shape[1] == len(expected)
    assert graph.node_of_token.flatten().tolist() == graph.first_tokens.tolist() == list(range(rows * columns))
    assert (graph.sizes == 1).all()
    tokens = torch.arange(2.0 * rows * columns).view(2, rows, columns)
    assert torch.equal(graph.select_nodes(tokens), tokens.flatten(1))


@pytest.mark.parametrize("side", [2, 4])
@pytest.mark.parametrize(("cut_rows", "cut_columns"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_constant_blocks_become_nodes_even_when_cut(side, cut_rows, cut_columns):
    small = torch.randn(12, 2, 3, generator=torch.Generator().manual_seed(0))
    tokens = small.repeat_interleave(side, 1).repeat_interleave(side, 2)
    tokens = tokens[:, : 2 * side - cut_rows, : 3 * side - cut_columns]
    graph = build_token_graph(tokens)
    assert graph.sizes.numel() == 6
    assert graph.sizes.sum() == tokens[0].numel()
    assert torch.equal(graph.sizes, torch.bincount(graph.node_of_token.flatten()))
    assert torch.equal(tokens.flatten(1)[:, graph.first_tokens][:, graph.node_of_token], tokens)
    assert pairs(graph.edges) == {(0, 1), (1, 2), (3, 4), (4, 5), (0, 3), (1, 4), (2, 5)}
    assert torch.equal(graph.select_nodes(tokens), small.flatten(1))


@pytest.mark.parametrize("channel", [0, 11])
def test_one_deviating_number_keeps_every_token_a_node(channel):
    tokens = torch.randn(12, 2, 2, generator=torch.Generator().manual_seed(0))
    tokens = tokens.repeat_interleave(4, 1).repeat_interleave(4, 2)
    tokens[channel, 5, 6] += 1e-6
    assert build_token_graph(tokens).sizes.numel() == 64


@pytest.mark.parametrize("dim", [1, 2])
def test_blocks_that_are_constant_one_way_alone_are_no_nodes(dim):
    tokens = torch.randn(12, 4, 4, generator=torch.Generator().manual_seed(0))
    tokens = tokens.narrow(dim, 0, 2).repeat_interleave(2, dim)
    assert build_token_graph(tokens).sizes.numel() == 16


def test_contraction_is_the_corrected_equation_four():
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        edges = build_token_graph(torch.randn(3, 4, 5, generator=generator)).edges
        labels = torch.unique(torch.randint(7, (20,), generator=generator), return_inverse=True)[1]
        count = int(labels.max()) + 1
        adjacency = torch.zeros(20, 20)
        adjacency[edges[0], edges[1]] = adjacency[edges[1], edges[0]] = 1
        omega = torch.nn.functional.one_hot(labels, count).float()
        expected = ((omega.T @ adjacency @ omega) > 0).triu(1).nonzero().T
        assert torch.equal(contract_edges(edges, labels, count), expected)


def test_the_identity_keeps_the_grid_and_one_group_keeps_nothing():
    edges = build_token_graph(torch.arange(9.0).view(1, 3, 3)).edges
    assert pairs(contract_edges(edges, torch.arange(9), 9)) == pairs(edges)
    assert contract_edges(edges, torch.zeros(9, dtype=torch.int64), 1).shape == (2, 0)
    assert contract_edges(edges[:, :0], torch.arange(9), 9).shape == (2, 0)


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (5, 1), (7, 4)])
@pytest.mark.parametrize("band", [1, 8, 1000])
def test_neighbours_are_compared_in_the_order_of_the_edges(monkeypatch, grid, band):
    monkeypatch.setattr(module, "BAND", band)
    rows = torch.randn(grid[0] * grid[1], 6, generator=torch.Generator().manual_seed(0))
    i, j = build_token_graph(rows.T.reshape(6, *grid)).edges
    assert torch.allclose(compare_neighbours(rows, grid), (rows[i] * rows[j]).sum(1), atol=1e-6)
