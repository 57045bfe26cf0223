from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch.nn import functional

from s2uniseg_d2.core.labelers import voters as module
from s2uniseg_d2.core.labelers.rows import sum_rows
from s2uniseg_d2.core.labelers.voters import Voters


def make_voters(k: int, d: int, seed: int = 0) -> tuple[Voters, torch.Tensor, torch.Tensor]:
    """Voters, their exact unit rows and their exact weights."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(d, k, generator=generator) + 0.3
    sizes = torch.randint(1, 9, (k,), generator=generator)
    return Voters(raw, sizes), functional.normalize(raw.double().T, dim=1), sizes.double() / sizes.sum()


@pytest.mark.parametrize("scale", [1e-305, 1e-38, 1.0, 1e30, 1e200, 1e307])
def test_rows_are_unit_whatever_their_scale(scale):
    raw = torch.randn(6, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    voters = Voters(raw * scale, torch.ones(300, dtype=torch.int64))
    expected = functional.normalize(raw.T, dim=1)
    assert torch.allclose(voters.exact(slice(None)), expected, atol=1e-15, rtol=0)
    assert torch.allclose(voters.exact(torch.tensor([7, 3])), expected[[7, 3]], atol=1e-15, rtol=0)
    assert torch.allclose(voters.rows.double(), expected, atol=6e-8, rtol=0)


@pytest.mark.parametrize("pairs", [3, 400])
def test_disagreement_is_equation_two_within_its_bound(pairs):
    voters, rows, weights = make_voters(500, 24)
    generator = torch.Generator().manual_seed(1)
    means = torch.rand(60, 1, generator=generator) * functional.normalize(
        torch.randn(60, 24, generator=generator, dtype=torch.float64), dim=1
    )
    ends = torch.randint(60, (2, pairs), generator=generator)
    truth = ((means[ends[0]] - means[ends[1]]) @ rows.T).abs() @ weights
    exact, none = voters.disagreement(means, ends)
    assert torch.allclose(exact, truth, atol=1e-14, rtol=0)
    assert not none.any()
    single, error = voters.disagreement(means.float(), ends)
    assert ((single - truth).abs() <= error).all()
    assert error.max() < 5e-4


def test_disagreement_of_no_pairs_is_empty():
    voters, _, _ = make_voters(5, 4)
    value, error = voters.disagreement(voters.rows, torch.zeros(2, 0, dtype=torch.int64))
    assert value.shape == error.shape == (0,)


@pytest.mark.parametrize("sigma", [0.01, 0.07, 1.0])
def test_election_is_equation_five_within_its_bound(sigma):
    voters, rows, weights = make_voters(700, 24)
    means = rows[:40] * 0.3 + rows[40:80] * 0.7
    ballots = torch.softmax(means @ rows.T / sigma + weights.log(), dim=1)
    truth = functional.normalize(ballots @ rows, dim=1)
    exact, none = voters.elect(means / sigma)
    assert torch.allclose(exact, truth, atol=1e-12, rtol=0)
    assert not none.any()
    single, error = voters.elect((means / sigma).float())
    assert (torch.linalg.vector_norm(single - truth, dim=1) <= error).all()
    if sigma >= 0.07:
        assert error.max() < 2e-4 / sigma
        assert (single - truth).abs().max() < 1e-5
    assert voters.elect(means[:0])[0].shape == (0, 24)


def test_an_election_too_steep_for_float32_says_so():
    voters, rows, _ = make_voters(50, 24)
    assert (voters.elect((rows[:5] / 1e-7).float())[1] == 2).all()


def test_chunks_do_not_matter(monkeypatch):
    _, rows, weights = make_voters(90, 6)
    queries = rows[:7] / 0.07
    expected = make_voters(90, 6)[0].elect(queries)[0]
    monkeypatch.setattr(module, "VOTER_CHUNK", 8)
    monkeypatch.setattr(module, "ELECTION_CHUNK", 2)
    assert torch.allclose(make_voters(90, 6)[0].elect(queries)[0], expected, atol=1e-14, rtol=0)
    assert weights.sum() == pytest.approx(1)


def test_rows_are_converted_to_double_chunk_by_chunk(monkeypatch):
    (whole, rows, _), (voters, _, _) = make_voters(90, 6), make_voters(90, 6)
    ends = torch.randint(7, (2, 20), generator=torch.Generator().manual_seed(1))
    expected = whole.elect(rows[:7] / 0.07, exact=False)[0], whole.disagreement(rows[:7], ends, exact=False)[0]
    monkeypatch.setattr(module, "DOUBLE_CHUNK", 8)  # 90 rows: the last chunk is a shorter one
    assert torch.allclose(voters.elect(rows[:7] / 0.07, exact=False)[0], expected[0], atol=1e-14, rtol=0)
    assert torch.allclose(voters.disagreement(rows[:7], ends, exact=False)[0], expected[1], atol=1e-14, rtol=0)
    assert voters._double_chunk.shape == (8, 6)


@pytest.mark.parametrize("grid", [(20, 25), None])
def test_group_means_bound_the_disagreement_from_below(monkeypatch, grid):
    monkeypatch.setattr(module, "GROUPS", 30)
    generator = torch.Generator().manual_seed(2)
    field = functional.interpolate(torch.randn(1, 24, 5, 5, generator=generator), size=(20, 25), mode="bilinear")
    raw = field.flatten(2)[0] + 0.3 * torch.randn(24, 500, generator=generator)
    voters = Voters(raw, torch.randint(1, 9, (500,), generator=generator), grid)
    ends = torch.randint(500, (2, 300), generator=generator)
    below = voters.bound_disagreement_below(voters.rows, ends)
    truth = voters.disagreement(voters.exact(slice(None)), ends)[0]
    assert (below <= truth).all()
    assert below.dtype == torch.float64
    assert grid is None or below.mean() > 0.7 * truth.mean()


@pytest.mark.parametrize("sigma", [0.07, 1.0])
def test_double_arithmetic_on_rounded_rows_promises_more_and_keeps_it(sigma):
    voters, rows, weights = make_voters(700, 200)
    means = rows[:40] * 0.3 + rows[40:80] * 0.7
    truth = functional.normalize(torch.softmax(means @ rows.T / sigma + weights.log(), dim=1) @ rows, dim=1)
    single, double = voters.elect((means / sigma).float()), voters.elect(means / sigma, exact=False)
    assert (torch.linalg.vector_norm(double[0] - truth, dim=1) <= double[1]).all()
    assert (double[1] < 0.1 * single[1]).all()
    ends = torch.randint(40, (2, 90), generator=torch.Generator().manual_seed(3))
    value, error = voters.disagreement(means, ends, exact=False)
    assert ((value - voters.disagreement(means, ends)[0]).abs() <= error).all()
    assert (error < 1e-6).all()


def test_groups_of_one_voter_bound_the_disagreement_by_its_rounding_alone(monkeypatch):
    monkeypatch.setattr(module, "GROUPS", 10**6)
    voters, _, _ = make_voters(300, 64)
    ends = torch.randint(300, (2, 500), generator=torch.Generator().manual_seed(4))
    below = voters.bound_disagreement_below(voters.rows, ends)
    truth = voters.disagreement(voters.exact(slice(None)), ends)[0]
    assert (below <= truth).all()
    assert (truth - below < 1e-4).all()


@pytest.mark.parametrize("pool", [False, True])
def test_memory_is_free_as_soon_as_the_voters_are(pool):
    voters, _, _ = make_voters(60, 8)
    voters = voters.pool(2) if pool else voters
    voters.elect(voters.rows[:3])
    rows = weakref.ref(voters)
    gc.disable()
    try:
        del voters
        assert rows() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("sigma", [0.07, 1.0])
def test_sums_of_affinities_serve_regions_within_the_promised_errors(sigma):
    # Rows of like directions, so that regions are long; 140 voters of width 96 are few.
    generator = torch.Generator().manual_seed(5)
    raw = torch.randn(96, 140, generator=generator) + 2 * torch.randn(96, 1, generator=generator)
    voters = Voters(raw, torch.ones(140, dtype=torch.int64))
    rows = functional.normalize(raw.double().T, dim=1)
    labels = torch.randint(12, (140,), generator=generator)
    sizes = torch.bincount(labels)[:, None]
    means = torch.zeros(12, 96, dtype=torch.float64).index_add_(0, labels, rows) / sizes
    known = sum_rows(voters.affinities, labels, 12) / sizes
    ends = torch.randint(12, (2, 50), generator=generator)
    value, error = voters.disagreement_known(known.float(), ends)
    truth = voters.disagreement(means, ends)[0]
    assert ((value - truth).abs() <= error).all()
    assert error.max() < 1e-3
    queries = (means / sigma).float()
    elected, bound = voters.elect(queries, torch.full((12,), 1 / sigma).double(), logits=(known / sigma).float())
    assert (torch.linalg.vector_norm(elected - voters.elect(means / sigma)[0], dim=1) <= bound).all()
    assert bound.max() < 1e-3
    # They are what is read: logits of other regions elect other vectors.
    other = voters.elect(queries, logits=(known.flip(0) / sigma).float())[0]
    assert (torch.linalg.vector_norm(other - elected, dim=1) > bound).any()


def test_only_few_single_voters_know_their_affinities():
    few, many = make_voters(35, 24)[0], make_voters(37, 24)[0]
    assert torch.allclose(few.affinities, few.rows @ few.rows.T, atol=1e-6)
    assert many.affinities is None
    assert make_voters(60, 24)[0].pool(2).affinities is None


def test_each_float64_token_is_scaled_by_itself():
    raw = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 2
    scales = torch.tensor([1e-200, 1, 1e200, 1e-150, 1e150, 1], dtype=torch.float64)
    scaled, plain = (Voters(x, torch.ones(6, dtype=torch.int64)) for x in (raw * scales, raw))
    torch.testing.assert_close(scaled.rows, plain.rows)
    torch.testing.assert_close(scaled.exact(slice(None)), plain.exact(slice(None)))


def test_summed_affinities_are_as_uncertain_as_their_tokens_reach():
    voters, _, _ = make_voters(40, 16)
    queries = voters.rows[:1] / 0.07
    logits, (near, far) = queries @ voters.rows.T, (torch.full((1,), reach / 0.07).double() for reach in (1, 100))
    summed = [float(voters.elect(queries, reach, logits=logits)[1]) for reach in (near, far)]
    direct = [float(voters.elect(queries, reach)[1]) for reach in (near, far)]
    # Each of a summed region's tokens brings the rounding of its own inner products.
    assert summed[1] - summed[0] > 1.5 * (direct[1] - direct[0]) > 0


@pytest.mark.parametrize("width", [32, 30])
def test_affinities_are_the_products_of_all_voters(monkeypatch, width):
    monkeypatch.setattr(module, "AFFINITY_BLOCK", 9)
    voters = make_voters(37, width)[0]
    assert torch.allclose(voters.affinities, voters.rows @ voters.rows.T, atol=1e-6)
    assert torch.equal(voters.affinities[9:18, 18:], voters.affinities[18:, 9:18].T)


def test_long_queries_elect_as_short_ones_do_where_both_can(monkeypatch):
    voters, _, _ = make_voters(300, 64)
    queries = voters.rows[:20] / 0.07
    plain = voters.elect(queries)
    monkeypatch.setattr(module, "LONGEST_STEADY", 0.0)
    shifted = make_voters(300, 64)[0].elect(queries)
    assert torch.allclose(plain[0], shifted[0], atol=1e-6)
    assert torch.equal(voters.elect(queries * 100)[0].isfinite().all(), torch.tensor(True))


def test_few_queries_promise_less(monkeypatch):
    voters, rows, _ = make_voters(300, 256)
    queries = (rows[:20] / 0.07).float()
    monkeypatch.setattr(module, "FEW_QUERIES", 19)
    many = voters.elect(queries)[1]
    monkeypatch.setattr(module, "FEW_QUERIES", 20)
    few, bound = voters.elect(queries)
    assert (bound > 1.2 * many).all()
    truth = voters.elect(rows[:20] / 0.07)[0]
    assert (torch.linalg.vector_norm(few - truth, dim=1) <= bound).all()


@pytest.mark.parametrize("alike", [True, False])
def test_groups_are_the_means_of_what_their_voters_stand_for(monkeypatch, alike):
    monkeypatch.setattr(module, "GROUPS", 4)
    raw = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    sizes = torch.ones(16, dtype=torch.int64) if alike else torch.arange(16) % 3 + 1
    voters = Voters(raw, sizes, (4, 4))
    rows = voters.exact(slice(None)) * sizes[:, None]
    for group, corner in enumerate((0, 2, 8, 10)):
        members = torch.tensor([corner, corner + 1, corner + 4, corner + 5])
        truth = rows[members].sum(0) / sizes[members].sum()
        assert torch.allclose(voters.groups.means[group].double(), truth, atol=1e-6)
        assert voters.groups.weights[group] == pytest.approx(float(sizes[members].sum() / sizes.sum()))
