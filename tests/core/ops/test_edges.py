"""By tensor operations here, and by kernels in the process that test_kernels.py starts."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from s2uniseg_d2.core.ops import edges as edge_module
from s2uniseg_d2.core.ops.components import connected_components
from s2uniseg_d2.core.ops.edges import (
    APART,
    JOINED,
    OPEN,
    bound_edges,
    bound_pairs,
    flag_open,
    flag_open_pairs,
    join_components,
    join_pairs,
    judge_edges,
    list_flagged,
    subtract_means,
)
from tests.core.ops.conftest import INTERPRETS

RULE = torch.tensor([0.6, 0.4, 0.55, 1e-12], dtype=torch.float64)


class Graphs(NamedTuple):
    """Regions of two pictures; the second has one less."""

    features: torch.Tensor
    sums: torch.Tensor
    sizes: torch.Tensor
    moments: torch.Tensor
    spread: torch.Tensor
    counts: torch.Tensor
    edges: torch.Tensor

    @property
    def similarities(self) -> torch.Tensor:
        return 0.6 * self.features @ self.features.mT + 0.4 * (1 - self.spread)

    @property
    def means(self) -> torch.Tensor:
        return self.sums / self.sizes.clamp_min(1)[..., None]


def make_graphs(seed: int, s: int = 9, d: int = 6, spread: float = 0.4) -> Graphs:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(2, 1, d, dtype=torch.float64, generator=generator)
    rows = torch.nn.functional.normalize(rows + spread * torch.randn(2, 30, d, generator=generator).double(), dim=2)
    members = torch.randint(s, (2, 30), generator=generator)
    members[:, :s] = torch.arange(s)
    members[1][members[1] == s - 1] = 0
    one_hot = torch.nn.functional.one_hot(members, s).double().mT
    sums, sizes = one_hot @ rows, one_hot.sum(dim=2).long()
    means = sums / sizes.clamp_min(1)[..., None]
    apart = means[:, :, None] - means[:, None]
    measured = (apart.flatten(1, 2) @ rows.mT).abs().mean(dim=2).view(2, s, s)
    features = torch.nn.functional.normalize(means + 0.05 * torch.randn(2, s, d, generator=generator), dim=2)
    low, high = torch.triu_indices(s, s, 1)
    edges = torch.cat(
        [
            torch.stack([low, high])[:, torch.rand(low.numel(), generator=generator) < 0.7],
            (torch.stack([low, high]) + s)[:, high < s - 1],
            torch.tensor([[s + 2], [s + 2]]),
        ],
        dim=1,
    )
    return Graphs(features, sums, sizes, rows.mT @ rows / 30, measured, torch.tensor([s, s - 1]), edges)


def check_states(state: torch.Tensor, similarity: torch.Tensor) -> None:
    assert state.dtype == torch.int8
    assert bool((similarity[state == JOINED] >= RULE[2]).all())
    assert bool((similarity[state == APART] < RULE[2]).all())


@pytest.mark.parametrize("temporary", [1, 40, 2**26])
def test_bounds_of_edges_hold_and_decide_most(monkeypatch, temporary):
    monkeypatch.setattr(edge_module, "TEMPORARY", temporary)
    states = []
    for seed in range(2 if INTERPRETS else 20):
        graphs = make_graphs(seed)
        echo = graphs.means @ graphs.moments
        feature, state = bound_edges(
            graphs.features, graphs.sums, graphs.sizes, echo, torch.zeros(2).double(), graphs.edges, RULE
        )
        i, j = graphs.edges
        vectors = graphs.features.flatten(0, 1)
        torch.testing.assert_close(feature, (vectors[i] * vectors[j]).sum(dim=1), rtol=0, atol=1e-12)
        graph = i // 9
        check_states(state[:-1], graphs.similarities[graph, i % 9, j % 9][:-1])
        assert int(state[-1]) == APART  # a self-loop
        states.append(state)
    counts = torch.bincount(torch.cat(states).long(), minlength=3)
    assert int(counts.min()) > 0
    assert int(counts[OPEN]) < 0.4 * int(counts.sum())
    none = bound_edges(
        graphs.features, graphs.sums, graphs.sizes, echo, torch.zeros(2).double(), graphs.edges[:, :0], RULE
    )
    assert [(values.shape, values.dtype) for values in none] == [((0,), torch.float64), ((0,), torch.int8)]


def test_nodes_that_are_their_own_sums_are_bounded_alike():
    graphs = make_graphs(3)
    ones = torch.ones_like(graphs.sizes)
    sums = graphs.features
    echo = (sums @ graphs.moments).float()
    doubt = torch.full((2,), 1e-6, dtype=torch.float64)
    alone = bound_edges(sums, sums, ones, echo, doubt, graphs.edges, RULE)
    apart = bound_edges(sums, sums.clone(), ones, echo, doubt, graphs.edges, RULE)
    torch.testing.assert_close(alone[0], apart[0], rtol=0, atol=1e-12)
    assert torch.equal(alone[1], apart[1])


def test_what_an_echo_may_be_off_by_is_allowed_for():
    decided = []
    for seed in range(2 if INTERPRETS else 30):
        graphs = make_graphs(seed)
        off = torch.randn(graphs.means.shape, generator=torch.Generator().manual_seed(seed)).double()
        echo = graphs.means @ graphs.moments + 0.02 * torch.nn.functional.normalize(off, dim=2)
        for size in (0.0, 0.04):
            doubt = torch.full((2,), size, dtype=torch.float64)
            _, state = bound_edges(graphs.features, graphs.sums, graphs.sizes, echo, doubt, graphs.edges, RULE)
            decided.append(int((state != OPEN).sum()))
        i, j = graphs.edges
        check_states(state[:-1], graphs.similarities[i // 9, i % 9, j % 9][:-1])
    assert sum(decided[::2]) > sum(decided[1::2])


def test_bounds_of_pairs_hold_and_decide_most():
    seen = torch.zeros(3, dtype=torch.int64)
    for seed in range(3 if INTERPRETS else 20):
        graphs = make_graphs(seed)
        means = graphs.means
        means[1, 8], graphs.features[1, 8] = means[1, 0], graphs.features[1, 0]  # padding that would join
        state = bound_pairs(
            graphs.features @ graphs.features.mT,
            means @ means.mT,
            means @ graphs.moments @ means.mT,
            graphs.counts,
            RULE,
        )
        pairs = torch.ones(2, 9, 9, dtype=torch.bool).triu(1)
        pairs[1, :, 8] = False
        assert int(state[~pairs].abs().sum()) == 0
        check_states(state[pairs], graphs.similarities[pairs])
        seen += torch.bincount(state[pairs].long(), minlength=3)
    assert int(seen.min()) > 0
    assert int(seen[OPEN]) < 0.4 * int(seen.sum())


def naive_roots(edges: torch.Tensor, count: int) -> torch.Tensor:
    components = connected_components(edges, count)
    return torch.full((count,), count).scatter_reduce(0, components, torch.arange(count), "amin")[components]


def test_a_long_path_settles_however_many_rounds_it_needs():
    count = 260 if INTERPRETS else 4096
    order = torch.randperm(count, generator=torch.Generator().manual_seed(3))
    edges = torch.stack([order[:-1], order[1:]])
    state = torch.full((count - 1,), JOINED, dtype=torch.int8)
    found = join_components(torch.arange(count), edges, state)
    assert (found.dtype, found.unique().tolist()) == (torch.int64, [0])
    state[100] = OPEN
    assert join_components(torch.arange(count), edges, state).unique().numel() == 2


def test_what_was_joined_before_stays_joined():
    generator = torch.Generator().manual_seed(5)
    for count, number in ((1, 0), (1, 1), (3, 1), (300, 256), (300, 257), *[(60, 55)] * (3 if INTERPRETS else 30)):
        edges = torch.randint(count, (2, number), generator=generator)
        first = torch.rand(number, generator=generator) < 0.5
        roots = torch.arange(count)
        for joined in (first, ~first):
            roots = join_components(roots, edges, torch.where(joined, JOINED, OPEN).to(torch.int8))
        assert torch.equal(roots, naive_roots(edges, count))


@pytest.mark.parametrize("side", [1, 2, 5, 17])
def test_pairs_join_and_are_listed_as_the_edges_they_are(side):
    generator = torch.Generator().manual_seed(side)
    for likely in (0.0, 0.1, 0.9):
        state = torch.rand(3, side, side, generator=generator)
        state = torch.where(state < likely / 4, JOINED, torch.where(state < likely, OPEN, APART)).to(torch.int8).triu(1)
        feature = torch.rand(3, side, side, dtype=torch.float64, generator=generator)
        graph, low, high = torch.ones(3, side, side).triu(1).nonzero().T
        edges = torch.stack([low, high]) + graph * side
        states, features = state[graph, low, high], feature[graph, low, high]
        roots = join_pairs(torch.arange(3 * side), state)
        assert torch.equal(roots, naive_roots(edges[:, states == JOINED], 3 * side))
        pairs, listed = flag_open_pairs(roots, state, feature), flag_open(roots, edges, states, features, 3)
        assert torch.equal(pairs.counts, listed.counts)
        total = int(pairs.counts.sum())
        one, other = (list_flagged(flagged, total, side, 200, 7) for flagged in (pairs, listed))
        expected = (states == OPEN) & (roots[edges[0]] != roots[edges[1]])
        assert torch.equal(one.edges, edges[:, expected])
        assert torch.equal(one.feature, features[expected])
        rank = torch.cat([torch.arange(int(count)) for count in pairs.counts])
        assert torch.equal(one.place, one.edges[0] // side * 200 + 7 + rank)
        assert all(torch.equal(*values) for values in zip(one, other, strict=True))


def test_listed_edges_are_measured_at_their_places():
    graphs = make_graphs(1)
    i, j = graphs.edges[:, :-1]
    vectors = graphs.features.flatten(0, 1)
    state = torch.full(i.shape, OPEN, dtype=torch.int8)
    flagged = flag_open(torch.arange(18), graphs.edges[:, :-1], state, (vectors[i] * vectors[j]).sum(dim=1), 2)
    most = int(flagged.counts.max())
    listed = list_flagged(flagged, int(flagged.counts.sum()), 9, most + 3, 3)
    apart = torch.full((2, most + 3, 6), float("nan"), dtype=torch.float64)
    subtract_means(graphs.sums, graphs.sizes, listed, apart)
    assert bool(apart[:, :3].isnan().all())
    means = graphs.means.flatten(0, 1)
    torch.testing.assert_close(apart.flatten(0, 1)[listed.place], means[i] - means[j], rtol=0, atol=1e-12)
    spread = torch.full((2, most + 3), float("nan"), dtype=torch.float64)
    spread.view(-1)[listed.place] = graphs.spread[i // 9, i % 9, j % 9]
    expected = graphs.similarities[i // 9, i % 9, j % 9] >= RULE[2]
    found = judge_edges(spread, listed, RULE)
    assert torch.equal(found, torch.where(expected, JOINED, APART).to(torch.int8))
    assert 0 < int(expected.sum()) < expected.numel()
    nothing = list_flagged(flagged._replace(flags=torch.zeros_like(flagged.flags)), 0, 9, 0, 0)
    subtract_means(graphs.sums, graphs.sizes, nothing, apart[:, :0])
    assert judge_edges(spread, nothing, RULE).shape == (0,)
