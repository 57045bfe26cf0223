from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from s2uniseg_d2.core.labelers import voters as module
from s2uniseg_d2.core.labelers.voters import Voters, normalise_rows


def make_voters(k: int, d: int, seed: int = 0) -> tuple[Voters, torch.Tensor, torch.Tensor]:
    """Voters, their exact unit rows and their exact weights."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(d, k, generator=generator) + 0.3
    sizes = torch.randint(1, 9, (k,), generator=generator)
    return Voters(raw, sizes), functional.normalize(raw.double().T, dim=1), sizes.double() / sizes.sum()


@pytest.mark.parametrize("scale", [1e-38, 1.0, 1e30, 1e200])
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
    monkeypatch.setattr(module, "QUERY_CHUNK", 2)
    monkeypatch.setattr(module, "EXACT_BYTES", 0)
    assert torch.allclose(make_voters(90, 6)[0].elect(queries)[0], expected, atol=1e-14, rtol=0)
    assert weights.sum() == pytest.approx(1)


def test_normalising_leaves_zero_where_there_is_no_direction():
    rows = torch.tensor([[3.0, 4.0], [1e-12, 0.0], [0.0, 0.0]], dtype=torch.float64)
    assert normalise_rows(rows).tolist() == [[0.6, 0.8], [0, 0], [0, 0]]
