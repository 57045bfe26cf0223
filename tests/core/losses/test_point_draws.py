from __future__ import annotations

import torch

from s2uniseg_d2.core.draws import seed_at
from s2uniseg_d2.core.losses.point_draws import KeyedPoints

KEYS = torch.tensor([seed_at(0, view) for view in range(4)])
ALL = torch.arange(4)


def splitmix64(state: int) -> int:
    """By hand, in Python's unbounded integers."""
    mask = 2**64 - 1
    z = state & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_points_are_splitmix64_of_key_and_number():
    points = KeyedPoints(KEYS)(ALL, 5, 3)
    for view, key in enumerate(KEYS.tolist()):
        for i in range(3):
            number = splitmix64(key + (5 + i + 1) * 0x9E3779B97F4A7C15)
            expected = [(number >> 40) / 2**24, (number & (2**24 - 1)) / 2**24]
            assert points[view, i].tolist() == expected


def test_a_view_has_its_points_whatever_its_company_and_however_they_are_asked_for():
    together = KeyedPoints(KEYS)(torch.tensor([2, 0, 2]), 0, 100)
    assert torch.equal(together[0], together[2])
    assert not torch.equal(together[0], together[1])
    alone = KeyedPoints(KEYS[2:3])
    first, rest = alone(torch.tensor([0]), 0, 30), alone(torch.tensor([0]), 30, 70)
    assert torch.equal(torch.cat([first, rest], dim=1)[0], together[0])


def test_points_are_uniform_and_unrelated_between_axes_views_and_places():
    count = 20000
    source = KeyedPoints(KEYS)
    columns = torch.cat([source.at(place)(ALL, 0, count) for place in range(3)]).permute(0, 2, 1).flatten(0, 1)
    assert columns.shape == (24, count)
    assert columns.min() >= 0
    assert columns.max() < 1
    # 64 bins: chi-square has mean 63 and standard deviation 11.2
    for column in columns:
        observed = torch.histc(column, 64, 0.0, 1.0)
        chi_square = ((observed - count / 64) ** 2 / (count / 64)).sum()
        assert 30 < chi_square < 125
    # correlations have standard deviation 0.007
    others = torch.corrcoef(columns) - torch.eye(len(columns))
    assert others.abs().max() < 0.04
    neighbours = torch.stack([torch.corrcoef(torch.stack([c[:-1], c[1:]]))[0, 1] for c in columns])
    assert neighbours.abs().max() < 0.04


def test_no_pairs_have_no_points():
    assert KeyedPoints(KEYS)(torch.zeros(0, dtype=torch.int64), 0, 7).shape == (0, 7, 2)
