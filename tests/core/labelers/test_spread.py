from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from s2uniseg_d2.core.labelers import spread as spread_module
from s2uniseg_d2.core.labelers.rounding import gamma
from s2uniseg_d2.core.labelers.spread import Moments, bound_spread, bound_spread_coarsely, measure_moments


def unit_rows(k: int, d: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(3, d, generator=generator, dtype=torch.float64)
    rows = directions[torch.randint(3, (k,), generator=generator)]
    return functional.normalize(rows + 0.4 * torch.randn(k, d, generator=generator, dtype=torch.float64), dim=1)


@pytest.mark.parametrize(("k", "d"), [(1, 3), (5, 40), (300, 40), (300, 7), (50, 1)])
@pytest.mark.parametrize("kind", ["tight", "coarse"])
def test_bounds_hold_for_every_difference(k, d, kind):
    rows = unit_rows(k, d, seed=d)
    weights = torch.full((k,), 1 / k)
    moments = measure_moments(rows.float(), weights, 64)
    exact = rows.T @ rows / k
    assert torch.linalg.matrix_norm(moments.matrix - exact, 2) <= moments.error
    spread = (
        bound_spread(moments, gamma(d + 6))
        if kind == "tight"
        else bound_spread_coarsely(moments, rows[: min(16, d)].float().T, gamma(d + 6))
    )
    means = torch.cat([rows, unit_rows(40, d, seed=1) * 0.5])
    i, j = torch.randint(len(means), (2, 500), generator=torch.Generator().manual_seed(2))
    difference = means[i] - means[j]
    truth = ((difference @ exact) * difference).sum(1)
    length = difference.square().sum(1)
    for count in (500, 20):  # more and fewer pairs than nodes
        pairs = torch.stack([i, j])[:, :count]
        least, most = spread.bound(means.float(), pairs, length[:count].sqrt() + 1e-7)
        assert (truth[:count] <= most + 1e-15).all()
        assert (truth[:count] >= least - 1e-15).all()
        assert (least >= 0).all()


def test_tight_bounds_are_tight_and_coarse_ones_are_useful():
    rows = unit_rows(400, 64, seed=3)
    moments = measure_moments(rows.float(), torch.full((400,), 1 / 400), 2048)
    tight, coarse = bound_spread(moments, gamma(70)), bound_spread_coarsely(moments, rows[:16].float().T, gamma(70))
    assert tight.error < 2e-4
    assert torch.equal(tight.matrix, moments.matrix.float())
    largest = float(torch.linalg.eigvalsh(moments.matrix)[-1])
    assert coarse.above < 0.2 * largest


def test_equal_rows_have_one_direction():
    rows = torch.eye(5)[:1].expand(30, 5)
    moments = measure_moments(rows, torch.full((30,), 1 / 30), 2048)
    spread = bound_spread_coarsely(moments, rows[:5].T, gamma(11))
    assert torch.linalg.vector_norm(torch.eye(5) @ spread.basis, dim=1).tolist() == pytest.approx(
        [1, 0, 0, 0, 0], abs=1e-3
    )


def test_coarse_bounds_hold_from_a_start_that_is_no_eigenvector(monkeypatch):
    monkeypatch.setattr(spread_module, "COARSE_STEPS", 0)
    matrix = torch.tensor([[0.9, 0.2], [0.2, 0.1]], dtype=torch.float64)
    spread = bound_spread_coarsely(Moments(matrix, 0.0), torch.tensor([[1.0], [0.0]]), gamma(8))
    for x in (-3.0, -1.0, -0.3, 0.0, 0.3, 1.0, 3.0):
        difference = torch.tensor([1.0, x], dtype=torch.float64)
        truth, length = difference @ matrix @ difference, difference.square().sum()
        reach = torch.linalg.vector_norm(difference @ spread.basis.double())
        assert reach.square() - spread.below * length - 1e-6 <= truth <= reach.square() + spread.above * length + 1e-6


def test_coarse_bounds_hold_where_the_basis_misses_most_of_a_direction(monkeypatch):
    monkeypatch.setattr(spread_module, "COARSE_STEPS", 0)
    strong = torch.tensor([0.8, 0.1, 0.5], dtype=torch.float64)
    matrix = torch.outer(strong, strong) + 1e-3 * torch.eye(3, dtype=torch.float64)
    spread = bound_spread_coarsely(Moments(matrix, 0.0), torch.eye(3)[:, :2], gamma(9))
    outside = matrix - spread.basis.double() @ spread.basis.double().T
    lowest, highest = torch.linalg.eigvalsh(outside)[[0, -1]].tolist()
    assert lowest < -0.1  # C does not lie above B Bᵀ here, so that a lower bound without "below" would be wrong
    assert -spread.below - 1e-6 <= lowest
    assert highest <= spread.above + 1e-6


@pytest.mark.parametrize("guess", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("top", [0.04, 0.5, -0.1])
def test_the_top_eigenvalue_is_bounded_from_above_whatever_the_guess(guess, top):
    generator = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(60, 60, generator=generator, dtype=torch.float64)).Q
    values = torch.linspace(-0.2, top, 60, dtype=torch.float64) if top > 0 else torch.full((60,), top).double()
    bound = spread_module._bound_top_eigenvalue(-(q * values) @ q.T, guess)
    assert bound >= top
    assert bound <= max(1.5 * top, guess) + 1e-3


def test_no_guess_holds_for_a_matrix_that_is_too_large():
    assert spread_module._bound_top_eigenvalue(-3.0 * torch.eye(4, dtype=torch.float64), 0.1) == 2.0


@pytest.mark.parametrize("alike", [True, False])
def test_moments_weigh_every_token_as_often_as_it_counts(monkeypatch, alike):
    monkeypatch.setattr(spread_module, "BLOCK", 16)
    rows, counts = unit_rows(90, 40, seed=6), torch.arange(90) % 4 + 1
    weights = torch.full((90,), 1 / 90).double() if alike else counts / counts.sum(dtype=torch.float64)
    moments = measure_moments(rows.float(), weights.float(), 32)
    exact = (rows * weights[:, None]).T @ rows
    assert torch.linalg.matrix_norm(moments.matrix - exact, 2) <= moments.error
    assert torch.equal(moments.matrix, moments.matrix.T)
    spread = bound_spread(moments, gamma(46))
    assert spread.norm >= torch.linalg.matrix_norm(spread.matrix.double())
    assert torch.linalg.matrix_norm(spread.matrix - exact, 2) <= spread.error
