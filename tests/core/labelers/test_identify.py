from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from s2uniseg_d2.core.labelers import identify as module
from s2uniseg_d2.core.labelers.identify import Identifier, Weighting, _OpenEdges
from s2uniseg_d2.core.labelers.supernodes import Region, merge, place_tokens, select
from s2uniseg_d2.core.labelers.voters import Voters
from s2uniseg_d2.core.ops.components import connected_components

REGION = Region(0.07, "mean")


def make(seed: int, merged: bool) -> tuple[Identifier, object, torch.Tensor]:
    """An identifier, 40 nodes and S for all their pairs in float64."""
    generator = torch.Generator().manual_seed(seed)
    raw = functional.interpolate(torch.randn(1, 16, 20, generator=generator), size=120, mode="linear")[0]
    voters = Voters(raw[:, :40] if not merged else raw, torch.ones(120 if merged else 40, dtype=torch.int64))
    nodes = place_tokens(voters)
    if merged:
        nodes = merge(nodes, torch.arange(120) // 3, 40, voters, REGION)
    rows = voters.exact(slice(None))
    members = functional.one_hot(torch.arange(len(rows)) * 40 // len(rows), 40).double().T
    means = members @ rows / members.sum(1, keepdim=True)
    features = functional.normalize(torch.softmax(means @ rows.T / 0.07, 1) @ rows, dim=1) if merged else rows
    affinity = means @ rows.T
    spread = (affinity[:, None] - affinity).abs().mean(-1)
    return Identifier(voters, Weighting(0.6, 0.4), REGION), nodes, 0.6 * features @ features.T + 0.4 * (1 - spread)


def open_pairs(nodes):
    pairs = torch.triu_indices(40, 40, 1)
    gap = torch.linalg.vector_norm(nodes.means[pairs[0]] - nodes.means[pairs[1]], dim=1).double()
    return _OpenEdges(torch.arange(40), pairs, {"gap": gap}, 0.5)


@pytest.mark.parametrize("dense_from", [0, 4])
@pytest.mark.parametrize("merged", [False, True])
def test_pairs_and_edges_group_as_the_exact_similarity_does(monkeypatch, merged, dense_from):
    monkeypatch.setattr(module, "DENSE_FROM", dense_from)
    for seed in range(10):
        identifier, nodes, similarity = make(seed, merged)
        pairs = torch.triu_indices(40, 40, 1)
        values = similarity[pairs[0], pairs[1]]
        for tau in (*torch.quantile(values, torch.tensor([0.9, 0.97, 0.99], dtype=torch.float64)).tolist(), 0.4, 1.0):
            expected = connected_components(pairs[:, values >= tau - 1e-9], 40)
            assert torch.equal(identifier.group_pairs(nodes, tau).labels, expected)
            assert torch.equal(identifier.group_edges(nodes, pairs, tau).labels, expected)


def test_bounds_spare_most_pairs_the_product():
    spared = []
    for seed in range(5):
        identifier, nodes, _ = make(seed, merged=True)
        found = identifier.group_pairs(nodes, 0.6)
        spared.append(found.undecided)
        assert found.exact <= found.undecided
    assert sum(spared) < 5 * 780 / 4


def test_a_threshold_on_a_similarity_goes_to_float64():
    identifier, nodes, similarity = make(0, merged=True)
    tau = float(similarity[3, 4])
    result = identifier.group_edges(nodes, torch.tensor([[3], [4]]), tau)
    assert (result.exact, result.labels[3] == result.labels[4]) == (1, True)
    assert identifier.group_edges(nodes, torch.tensor([[3], [4]]), tau + 1e-7).labels.max() == 39


def test_few_or_no_nodes_stay_alone():
    identifier, nodes, _ = make(0, merged=True)
    assert identifier.group_edges(nodes, torch.zeros(2, 0, dtype=torch.int64), 0.5).labels.tolist() == list(range(40))


def test_one_node_is_a_group_without_a_look():
    identifier, nodes, _ = make(0, merged=True)
    alone = select(nodes, torch.tensor([7]))
    assert identifier.group_pairs(alone, 0.5)[1:] == (0, 0)


@pytest.mark.parametrize("name", ["below", "above", "slack"])
def test_doubt_about_the_coarse_spread_widens_its_bounds(name):
    identifier, nodes, _ = make(1, merged=True)
    open_ = open_pairs(nodes)
    sure = identifier._voters.coarse_spread._replace(below=0.0, above=0.0, slack=0.0)
    low, high = identifier._spread_bounds(nodes, open_, sure)
    lower, higher = identifier._spread_bounds(nodes, open_, sure._replace(**{name: 0.01}))
    assert (lower < low).sum() > 700 if name != "above" else torch.equal(lower, low)
    assert (higher > high).sum() > 700 if name != "below" else torch.equal(higher, high)


@pytest.mark.parametrize("name", ["norm", "error", "rounding"])
def test_doubt_about_the_spread_widens_its_bounds(name):
    identifier, nodes, _ = make(1, merged=True)
    open_ = open_pairs(nodes)
    sure = identifier._voters.spread
    low, high = identifier._spread_bounds(nodes, open_, sure)
    lower, higher = identifier._spread_bounds(nodes, open_, sure._replace(**{name: 1e3 * getattr(sure, name)}))
    assert (lower < low).sum() > 700
    assert (higher > high).sum() > 700


@pytest.mark.parametrize("name", ["norm", "error"])
def test_pairs_are_certain_only_as_far_as_the_spread_is(name):
    identifier, nodes, similarity = make(2, merged=True)
    tau = float(similarity[similarity < 0.999].quantile(0.8))
    voters = identifier._voters
    sure = voters.spread

    def count() -> tuple[int, int]:
        parts = list(identifier._screen_pairs(nodes, identifier._find_hopeful(nodes, tau), tau))
        return sum(yes.shape[1] for yes, _ in parts), sum(yes.shape[1] + maybe.shape[1] for yes, maybe in parts)

    certain, hopeful = count()
    voters.__dict__["spread"] = sure._replace(**{name: 4e4 if name == "norm" else 4.0})
    fewer, more = count()
    assert fewer < certain
    assert more > hopeful


def test_float32_comparisons_carry_its_rounding():
    identifier, nodes, _ = make(3, merged=True)
    edges = torch.tensor([[0, 4], [1, 9]])
    errors = nodes.errors[edges].sum(dim=0)
    _, slack, _ = identifier._compare(nodes, edges)
    torch.testing.assert_close(slack, errors + identifier._voters.rounding, rtol=0, atol=1e-12)
    _, slack, _ = identifier._compare(nodes, edges, torch.float64)
    torch.testing.assert_close(slack, errors, rtol=0, atol=1e-12)
