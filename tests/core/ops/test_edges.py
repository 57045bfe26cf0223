from __future__ import annotations

import sys

import pytest
import torch

from s2uniseg_d2.core.ops import edges as edge_module
from s2uniseg_d2.core.ops.components import connected_components
from s2uniseg_d2.core.ops.edges import edge_products, join_components


def chain(order: torch.Tensor) -> torch.Tensor:
    return torch.stack([order[:-1], order[1:]]).sort(dim=0).values


def test_a_long_path_settles_however_many_rounds_it_needs():
    count = 4096
    edges = chain(torch.randperm(count, generator=torch.Generator().manual_seed(3)))
    alone = torch.arange(count)
    assert join_components(alone, edges, torch.ones(count - 1, dtype=torch.bool)).unique().tolist() == [0]
    cut = torch.ones(count - 1, dtype=torch.bool)
    cut[1000] = False
    assert join_components(alone, edges, cut).unique().numel() == 2


def test_what_was_joined_before_stays_joined():
    generator = torch.Generator().manual_seed(5)
    for _ in range(30):
        edges = torch.randint(60, (2, 55), generator=generator)
        first = torch.rand(55, generator=generator) < 0.5
        halves = join_components(
            join_components(torch.arange(60), edges, first),
            edges[:, ~first],
            torch.ones(int((~first).sum()), dtype=bool),
        )
        whole = join_components(torch.arange(60), edges, torch.ones(55, dtype=torch.bool))
        assert torch.equal(halves, whole)
        components = connected_components(edges, 60)
        first_node = torch.full((60,), 60).scatter_reduce(0, components, torch.arange(60), "amin")
        assert torch.equal(whole, first_node[components])


@pytest.mark.parametrize("temporary", [1, 40, 2**26])
def test_products_are_those_of_the_rows(monkeypatch, temporary):
    monkeypatch.setattr(edge_module, "TEMPORARY", temporary)
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 9, 5, dtype=torch.float64, generator=generator)
    pairs = torch.randint(9, (2, 23), generator=generator)
    expected = (one @ other.T)[pairs[0], pairs[1]]
    torch.testing.assert_close(edge_products(one, other, pairs), expected, rtol=0, atol=1e-12)
    assert edge_products(one, other, pairs[:, :0]).shape == (0,)


def test_a_gpu_without_kernels_is_told_of_once(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "s2uniseg_d2.core.ops.edge_kernels", None)
    monkeypatch.delattr("s2uniseg_d2.core.ops.edge_kernels", raising=False)
    edge_module._builds_kernels.cache_clear()
    device = torch.device("cuda", 0)
    with caplog.at_level("WARNING"):
        assert not edge_module._builds_kernels(device)
        assert not edge_module._builds_kernels(device)
    edge_module._builds_kernels.cache_clear()
    assert [record.message.startswith("Triton builds no kernels here") for record in caplog.records] == [True]
