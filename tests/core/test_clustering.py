from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from s2uniseg_d2.core import clustering
from s2uniseg_d2.core.clustering import spherical_kmeans


def bundles(count=6, each=30, d=16, noise=0.1, seed=0):
    """Rows around orthogonal directions, of any length, and the direction of each."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(count).repeat_interleave(each)
    rows = torch.eye(count, d)[truth] + noise * torch.randn(count * each, d, generator=generator) / d**0.5
    order = torch.randperm(len(rows), generator=generator)
    lengths = 0.1 + 5 * torch.rand(len(rows), 1, generator=generator)
    return (rows * lengths)[order], truth[order]


@pytest.mark.parametrize("seed", range(5))
def test_bundles_are_found_whatever_the_seed_and_the_chunk(seed, monkeypatch):
    rows, truth = bundles()
    found = spherical_kmeans(rows, 6, seed=seed)
    assert len(set(zip(found.labels.tolist(), truth.tolist(), strict=True))) == 6
    assert torch.allclose(found.centres.norm(dim=1), torch.ones(6))
    cosines = (functional.normalize(rows) * found.centres[found.labels]).sum(dim=1)
    assert found.cohesion == pytest.approx(float(cosines.mean()), abs=1e-6)
    monkeypatch.setattr(clustering, "_CHUNK_ROWS", 7)
    assert torch.equal(spherical_kmeans(rows, 6, seed=seed).labels, found.labels)


def test_the_centre_of_one_group_is_the_weighted_mean_direction():
    rows, weights = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([3.0, 4.0])
    found = spherical_kmeans(rows, 1, weights=weights)
    torch.testing.assert_close(found.centres, torch.tensor([[0.6, 0.8]]))
    assert found.cohesion == pytest.approx((3 * 0.6 + 4 * 0.8) / 7)


def test_a_weight_counts_as_so_many_copies():
    rows, _ = bundles(3, 6, noise=1.5)
    copies = torch.tensor([1, 2, 4]).repeat(6)
    weighted = spherical_kmeans(rows, 1, weights=copies.double())
    repeated = spherical_kmeans(rows.repeat_interleave(copies, dim=0), 1)
    torch.testing.assert_close(weighted.centres, repeated.centres)
    assert weighted.cohesion == pytest.approx(repeated.cohesion)


def test_rows_without_weight_follow_and_do_not_lead():
    rows = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.5, 0.6]])
    found = spherical_kmeans(rows, 2, weights=torch.tensor([1.0, 0.0, 1.0, 0.0]))
    assert found.labels[0] == found.labels[1] != found.labels[2] == found.labels[3]
    assert sorted(found.centres.tolist()) == [[0.0, 1.0], [1.0, 0.0]]


def test_same_seed_same_groups_and_more_restarts_are_never_worse():
    rows = torch.randn(200, 8, generator=torch.Generator().manual_seed(3))
    once, again = (spherical_kmeans(rows, 12, seed=1, restarts=1) for _ in range(2))
    assert torch.equal(once.labels, again.labels)
    assert spherical_kmeans(rows, 12, seed=1, restarts=6).cohesion >= once.cohesion
    first, last = (spherical_kmeans(rows, 12, seed=1, restarts=1, iterations=n).cohesion for n in (1, 50))
    assert last > first


def test_fewer_rows_or_directions_than_groups():
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert sorted(spherical_kmeans(rows, 5).labels.tolist()) == [0, 1]
    found = spherical_kmeans(torch.ones(10, 3), 4)
    assert found.cohesion == pytest.approx(1.0)
    assert len(found.centres) == 4
    assert found.labels.unique().numel() == 1


def test_opposite_rows_and_zeros_do_no_harm():
    found = spherical_kmeans(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]), 1)
    assert found.centres.isfinite().all()
    assert found.labels.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": torch.zeros(0, 3)}, r"rows must be float of shape \(n, d\), not empty"),
        ({"rows": torch.ones(3)}, "rows must be"),
        ({"rows": torch.ones(3, 2, dtype=torch.int64)}, "rows must be float .* got torch.int64"),
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"restarts": 0}, "restarts must be at least 1, got 0"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"weights": torch.ones(2)}, r"weights must be \(n,\) with n = 3"),
        ({"weights": torch.tensor([1.0, -1.0, 1.0])}, "weights must be .* at least 0"),
        ({"weights": torch.zeros(3)}, "not all 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        spherical_kmeans(**{"rows": torch.ones(3, 2), "count": 2, **arguments})


def test_seeds_are_drawn_far_from_each_other():
    crowd, _ = bundles(1, 200, d=8, noise=0.01)
    rows = torch.cat([crowd, torch.eye(8)[1:4]])
    assert all(spherical_kmeans(rows, 4, seed=seed, restarts=1).cohesion > 0.9999 for seed in range(8))


def test_seeds_are_different_rows_also_where_no_distance_or_weight_is_left():
    # after the first there is no weighted distance, after the second no weight
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    found = spherical_kmeans(rows, 3, weights=torch.tensor([1.0, 1.0, 0.0]))
    assert torch.equal(found.centres[found.labels], rows)


def test_a_draw_that_rounding_carries_past_the_last_row_takes_another(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.ones((), dtype=torch.float64))
    assert sorted(spherical_kmeans(torch.eye(4), 4).labels.tolist()) == [0, 1, 2, 3]
