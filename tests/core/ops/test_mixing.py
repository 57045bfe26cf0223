from __future__ import annotations

from itertools import pairwise

import torch

from s2uniseg_d2.core.ops.mixing import mix64


def by_hand(z: int) -> int:
    """In Python's unbounded integers, as an unsigned number."""
    mask = 2**64 - 1
    z &= mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_equals_splitmix64_by_hand():
    values = [0, 1, -1, 2**63 - 1, -(2**63), 0x9E3779B97F4A7C15 - 2**64, 12345678901234567]
    mixed = mix64(torch.tensor(values))
    assert [value % 2**64 for value in mixed.tolist()] == [by_hand(value) for value in values]


def test_neighbours_differ_in_about_half_of_their_bits():
    mixed = mix64(torch.arange(1, 2001)).tolist()
    flips = [((a ^ b) % 2**64).bit_count() for a, b in pairwise(mixed)]
    assert len(set(mixed)) == 2000
    assert 31 < sum(flips) / len(flips) < 33
