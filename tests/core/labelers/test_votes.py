from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from s2uniseg_d2.core.labelers import votes


def test_a_direction_is_unknown_where_the_error_is_a_tenth_of_the_length():
    errors, lengths = torch.tensor([[0.05, 0.05, 0.5, 0.0], [1.0, 0.2, 1.0, 0.0]], dtype=torch.float64)
    found = votes.direction_error(errors, lengths)
    torch.testing.assert_close(found, torch.tensor([0.055, 2.0, 2.0, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("spread", [0.02, 0.3, 2.0])
def test_errors_of_ballots_turn_a_vote_no_further_than_promised(spread):
    generator = torch.Generator().manual_seed(0)
    rows = torch.eye(1, 12, dtype=torch.float64) + spread * torch.randn(400, 12, generator=generator).double()
    rows = functional.normalize(rows, dim=1)
    ballots = torch.rand(400, generator=generator).double()
    vote = ballots @ rows / ballots.sum()
    worst = 0.0
    for direction in torch.randn(50, 12, generator=generator).double():
        # The worst errors push all voters of one side up and the others down.
        wrong = (ballots * (1 + 0.01 * (rows @ direction - vote @ direction).sign())) @ rows
        worst = max(worst, float((functional.normalize(wrong, dim=0) - functional.normalize(vote, dim=0)).norm()))
    promise = float(votes.vote_error(torch.tensor(0.01).double(), 0.0, 400, vote.norm()))
    assert 0.1 * promise < worst <= promise


def test_ballots_that_may_be_a_tenth_off_elect_nobody():
    ballot, length = torch.tensor([0.09, 0.11]).double(), torch.tensor([0.999999, 0.999999]).double()
    assert (votes.vote_error(ballot, 0.0, 400, length) < 2).tolist() == [True, False]


@pytest.mark.parametrize(("count", "most", "expected"), [(0, 4, []), (4, 4, [4]), (5, 4, [3, 2]), (9, 4, [3, 3, 3])])
def test_queries_are_cut_evenly(count, most, expected):
    slices = votes.even_slices(count, most)
    assert [len(range(count)[part]) for part in slices] == expected
