"""By tensor operations here, and by kernels in the process that test_kernels.py starts."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from s2uniseg_d2.core.ops.vectors import (
    add_rows,
    exponentiate,
    mean_rows,
    normalise_tokens,
    queue_rows,
    store_rows,
    store_votes,
    take_rows,
)

WIDTHS = [1, 6, 70]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("count", [1, 3, 40])
def test_rows_are_added_by_slot(width, count):
    rows = randn(2, 37, width)
    slot = torch.randint(-1, count, (2, 37), generator=torch.Generator().manual_seed(1)).sort(dim=1).values
    slot[1] = slot[1].flip(0)
    slot[0, ::5] = -1
    expected = torch.zeros(2, count, width, dtype=torch.float64)
    for graph, node in (slot >= 0).nonzero().tolist():
        expected[graph, slot[graph, node]] += rows[graph, node]
    close(add_rows(rows, slot, count, 1000), expected)
    assert add_rows(rows, torch.full_like(slot, -1), 0, 1).shape == (2, 0, width)


def test_sums_reach_what_they_may_be():
    rows = torch.tensor([1000.25, -1000.25], dtype=torch.float64).expand(1, 65, 2)
    found = add_rows(rows.contiguous(), torch.zeros(1, 65, dtype=torch.int64), 1, 65536)
    assert found.tolist() == [[[65 * 1000.25, -65 * 1000.25]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_means_of_no_token_are_zero(dtype):
    sums, sizes = randn(2, 3, 5), torch.tensor([[1, 4, 2], [3, 0, 0]])
    sums[1, 1:] = 0
    means = mean_rows(sums, sizes, dtype)
    assert means.dtype == dtype
    assert torch.equal(means, (sums / torch.tensor([[1, 4, 2], [3, 1, 1]])[..., None]).to(dtype))


@pytest.mark.parametrize("by_size", [False, True])
def test_rows_queue_at_their_places(by_size):
    sums, sizes = randn(2, 4, 6), torch.tensor([[1, 2, 3, 4], [5, 6, 7, 0]])
    place = torch.tensor([[9, 1, -1, 0, 2], [9, -1, -1, 0, -1]])[:, 1:]
    queries = torch.zeros(2, 3, 6, dtype=torch.float64)
    queue_rows(sums, sizes, place, queries, by_size)
    expected = torch.zeros_like(queries)
    for graph, node, row in ((0, 0, 1), (0, 2, 0), (0, 3, 2), (1, 2, 0)):
        expected[graph, row] = sums[graph, node] / (int(sizes[graph, node]) if by_size else 1)
    close(queries, expected)


@pytest.mark.parametrize("voters", [1, 9, 1025])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_ballots_are_those_of_a_softmax(voters, scale):
    logits = scale * randn(2, 3, voters)
    weights = torch.rand(2, voters, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights[1, voters // 2 + 1 :] = 0
    for shares in (None, weights):
        expected = (logits if shares is None else logits + shares.log()[:, None]).softmax(dim=2)
        ballots = logits.clone()
        totals = exponentiate(ballots, shares)
        close(ballots / totals[..., None], expected)
        close(totals, ballots.sum(dim=2))
        assert bool((totals > 0).all())


@pytest.mark.parametrize("width", WIDTHS)
def test_votes_are_stored_as_directions(width):
    votes, totals = 50 * randn(2, 3, width), torch.full((2, 3), 100.0, dtype=torch.float64)
    votes[0, 1] = 1e-8  # of a hundred ballots: this cancels, 2e-7 would not
    votes[1, 2] = 2e-7
    place = torch.tensor([[9, 2, -1, 1, 0], [9, -1, 2, -1, 0]])[:, 1:]
    lengths = torch.linalg.vector_norm(votes, dim=2, keepdim=True)
    expected = torch.where(lengths > 1e-7, votes / lengths, 0)
    vectors = torch.full((2, 4, width), 7.0, dtype=torch.float64)
    store_votes(votes, totals, place, vectors, None)
    chosen = torch.full((6, width), 7.0)
    rows = torch.tensor([[9, 5, -1, 4, 3], [9, -1, 2, 0, 1]])[:, 1:]
    store_votes(votes, totals, place, chosen, rows)
    for graph, node in torch.ones(2, 4).nonzero().tolist():
        where = int(place[graph, node])
        if where < 0:
            assert bool((vectors[graph, node] == 7).all())
        else:
            close(vectors[graph, node], expected[graph, where])
            torch.testing.assert_close(chosen[rows[graph, node]], expected[graph, where].float(), rtol=1e-6, atol=0)
    assert bool((chosen[0] == 7).all())


@pytest.mark.parametrize("width", WIDTHS)
def test_rows_are_taken_and_stored_with_their_level(width):
    vectors = randn(2, 4, width)
    index = torch.tensor([[9, 3, 0, 0], [9, 1, 2, 3]])[:, 1:]
    taken = take_rows(vectors, index)
    assert torch.equal(taken, torch.stack([vectors[0, index[0]], vectors[1, index[1]]]))
    assert take_rows(vectors, index[:, :0]).shape == (2, 0, width)
    chosen, levels = torch.full((5, width), 7.0), torch.full((5,), 7)
    store_rows(vectors, torch.tensor([[9, 4, -1, 0, -1], [9, 2, -1, -1, 3]])[:, 1:], chosen, 2, levels)
    assert torch.equal(chosen[[4, 0]], vectors[0, [0, 2]].float())
    assert torch.equal(chosen[[2, 3]], vectors[1, [0, 3]].float())
    assert (levels.tolist(), bool((chosen[1] == 7).all())) == ([2, 7, 2, 2, 2], True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("side", [1, 2, 4])
def test_tokens_are_normalised_and_padding_is_zero(dtype, side):
    features = randn(2, 70, 5, 9).to(dtype)
    valid = torch.ones(2, 5, 9, dtype=torch.bool)
    valid[1, 3:] = valid[1, :, 7:] = False
    features[1, :, 3:], features[1, :, :, 7:] = float("nan"), float("inf")
    rows = normalise_tokens(features, valid, side)
    shape = (-(-5 // side), -(-9 // side))
    tokens = torch.where(valid[:, None], features, 0)[:, :, ::side, ::side].double()
    close(rows, functional.normalize(tokens.flatten(2).mT, dim=2))
    assert (rows.shape, rows.dtype) == ((2, shape[0] * shape[1], 70), torch.float64)
    turned = features.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(normalise_tokens(turned, valid, side), rows)


@pytest.mark.parametrize("scale", [1e-310, 1e300])
def test_tokens_of_any_size_have_a_direction(scale):
    features = randn(1, 3, 4, 4)
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    close(normalise_tokens(features * scale, valid, 1), normalise_tokens(features, valid, 1))
