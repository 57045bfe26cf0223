from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from s2uniseg_d2.core.labelers import supernodes
from s2uniseg_d2.core.labelers.supernodes import (
    Region,
    exact_features,
    exact_means,
    merge,
    place_tokens,
    refine,
    select,
)
from s2uniseg_d2.core.labelers.voters import Voters

REGION = Region(0.07, "mean")


def make(count: int = 12, d: int = 8) -> tuple[Voters, torch.Tensor, torch.Tensor]:
    raw = torch.randn(d, count, generator=torch.Generator().manual_seed(0)) + 0.3
    sizes = torch.arange(count) % 3 + 1
    return Voters(raw, sizes), functional.normalize(raw.double().T, dim=1), sizes


def test_before_the_first_layer_everything_is_the_token():
    voters, rows, _ = make()
    nodes = place_tokens(voters)
    index = torch.tensor([4, 1])
    assert torch.equal(exact_means(nodes, index, voters), exact_features(nodes, index, voters, REGION))
    assert torch.allclose(exact_means(nodes, index, voters), rows[index], atol=1e-15)


def test_a_merged_region_averages_its_tokens_and_votes():
    voters, rows, sizes = make()
    labels = torch.tensor([0, 0, 1, 0, 1, 2, 2, 2, 2, 3, 3, 3])
    for affinity in ("mean", "sum"):
        nodes = merge(place_tokens(voters), labels, 4, voters, Region(0.07, affinity))
        members = functional.one_hot(labels, 4).double().T * sizes
        means = members @ rows / members.sum(1, keepdim=True)
        queries = means if affinity == "mean" else members @ rows
        ballots = torch.softmax(queries @ rows.T / 0.07 + sizes.log(), dim=1)
        truth = functional.normalize(ballots @ rows, dim=1)
        assert nodes.sizes.tolist() == members.sum(1).tolist()
        assert torch.allclose(nodes.means.double(), means, atol=1e-7)
        assert torch.allclose(nodes.features.double(), truth, atol=1e-6)
        assert (torch.linalg.vector_norm(nodes.features - truth, dim=1) <= nodes.errors).all()
        assert (nodes.errors < supernodes.WORST_ERROR).all()


def test_merging_twice_is_merging_once():
    voters, _, _ = make()
    first, second = torch.arange(12) // 2, torch.arange(6) // 2
    two_steps = merge(merge(place_tokens(voters), first, 6, voters, REGION), second, 3, voters, REGION)
    one_step = merge(place_tokens(voters), second[first], 3, voters, REGION)
    assert torch.allclose(two_steps.features, one_step.features, atol=1e-6)
    assert torch.equal(two_steps.sizes, one_step.sizes)


def test_an_unchanged_supernode_keeps_its_feature_without_a_vote(monkeypatch):
    voters, _, _ = make()
    nodes = merge(place_tokens(voters), torch.arange(12) // 3, 4, voters, REGION)
    asked = []
    elect = voters.elect
    monkeypatch.setattr(voters, "elect", lambda q, *rest, **named: asked.append(len(q)) or elect(q, *rest, **named))
    after = merge(nodes, torch.tensor([0, 1, 1, 2]), 3, voters, REGION)
    assert asked == [1]
    assert torch.equal(after.features[[0, 2]], nodes.features[[0, 3]])
    assert torch.equal(after.errors[[0, 2]], nodes.errors[[0, 3]])


def test_selecting_none_and_merging_none_give_none():
    voters, _, _ = make()
    nodes = merge(place_tokens(voters), torch.zeros(12, dtype=torch.int64), 1, voters, REGION)
    none = select(nodes, torch.zeros(0, dtype=torch.int64))
    assert merge(none, torch.zeros(0, dtype=torch.int64), 0, voters, REGION).features.shape == (0, 8)


@pytest.mark.parametrize("seed", range(4))
def test_steep_votes_are_exact_to_an_embedding(seed):
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(8, 1, generator=generator) + 0.6 * torch.randn(8, 200, generator=generator)
    sizes = torch.ones(200, dtype=torch.int64)
    for count in (1, 10, 40):
        for affinity in ("mean", "sum"):
            voters, region = Voters(raw, sizes), Region(0.01, affinity)
            labels = torch.arange(200) * count // 200
            nodes = merge(place_tokens(voters), labels, count, voters, region)
            truth = exact_features(nodes, torch.arange(count), voters, region)
            # Well inside the promised 1e-5; float32 votes would miss this by far on some seeds.
            assert (nodes.features - truth).abs().max() < 2e-6


def test_members_follow_merging_and_selection():
    voters, _, _ = make()
    labels = torch.arange(12) // 3
    nodes = merge(place_tokens(voters), labels, 4, voters, REGION)
    assert torch.equal(nodes.members, labels)
    chosen = select(nodes, torch.tensor([3, 1]))
    assert chosen.members.tolist() == [-1, -1, -1, 1, 1, 1, -1, -1, -1, 0, 0, 0]
    assert (
        merge(chosen, torch.tensor([0, 0]), 1, voters, REGION).members.tolist()
        == [-1] * 3 + [0] * 3 + [-1] * 3 + [0] * 3
    )


@pytest.mark.parametrize("affinity", ["mean", "sum"])
def test_refining_narrows_the_error_and_keeps_its_promise(affinity):
    generator = torch.Generator().manual_seed(1)
    raw = torch.randn(96, 1, generator=generator) + torch.randn(96, 400, generator=generator)
    voters, region = Voters(raw, torch.ones(400, dtype=torch.int64)), Region(0.2, affinity)
    nodes = merge(place_tokens(voters), torch.arange(400) // 8, 50, voters, region)
    before, index = nodes.errors.clone(), torch.tensor([3, 40, 7])
    refine(nodes, index, voters, region)
    truth = exact_features(nodes, torch.arange(50), voters, region)
    assert (nodes.errors[index] < 0.1 * before[index]).all()
    assert (torch.linalg.vector_norm(nodes.features - truth, dim=1) <= nodes.errors).all()
    untouched = torch.ones(50, dtype=torch.bool).index_fill(0, index, False)
    assert torch.equal(nodes.errors[untouched], before[untouched])


def test_refining_leaves_a_vote_that_is_exact_already():
    # Long queries of many tokens that agree: float32 gave up on them, and rounded rows would do worse.
    generator = torch.Generator().manual_seed(1)
    raw = 3 * torch.randn(24, 1, generator=generator) + torch.randn(24, 3000, generator=generator)
    voters, region = Voters(raw, torch.ones(3000, dtype=torch.int64)), Region(0.07, "sum")
    nodes = merge(place_tokens(voters), torch.arange(3000) // 1000, 3, voters, region)
    before = nodes.features.clone(), nodes.errors.clone()
    assert before[1].max() < 1e-6
    refine(nodes, torch.tensor([0, 2]), voters, region)
    assert torch.equal(nodes.features, before[0])
    assert torch.equal(nodes.errors, before[1])


def test_exact_means_see_each_token_as_often_as_it_counts():
    voters, rows, sizes = make()
    nodes = merge(place_tokens(voters), torch.arange(12) // 4, 3, voters, REGION)
    truth = (rows * sizes[:, None])[8:].sum(0) / sizes[8:].sum()
    assert torch.allclose(exact_means(nodes, torch.tensor([2]), voters)[0], truth, atol=1e-15)


def test_queries_reach_as_far_as_the_tokens_that_they_sum():
    sizes = torch.tensor([1, 4])
    assert supernodes._reach(sizes, Region(0.5, "mean")).tolist() == [2, 2]
    assert supernodes._reach(sizes, Region(0.5, "sum")).tolist() == [2, 8]
