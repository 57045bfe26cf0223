from __future__ import annotations

import pytest

from s2uniseg_d2.core.draws import seed_at


def test_a_place_has_one_seed_and_its_neighbours_have_others():
    places = [(seed, iteration, rank) for seed in range(3) for iteration in range(20) for rank in range(4)]
    seeds = [seed_at(*place) for place in places]
    assert seeds == [seed_at(*place) for place in places]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_seeds_are_the_same_in_every_version():
    # a change here makes a resumed run differ from the one it goes on with
    assert seed_at(0, 1, 2) == 1535930435702422785


def test_negative_numbers_are_refused():
    with pytest.raises(ValueError, match=r"must not be negative, got \(0, -1\)"):
        seed_at(0, -1)
