"""Mixing numbers until they look random: the state-free part of a generator."""

from __future__ import annotations

from torch import Tensor

# multipliers of SplitMix64, as signed 64-bit numbers
_FIRST, _SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


def mix64(values: Tensor) -> Tensor:
    """An unrelated int64 for every int64, each from exactly one; zero stays zero.

    Source: the output function of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
    2014). Nothing is read from the device.
    """
    # products of int64 wrap around, as they should
    values = (values ^ _shift(values, 30)) * _FIRST
    values = (values ^ _shift(values, 27)) * _SECOND
    mixed: Tensor = values ^ _shift(values, 31)
    return mixed


def _shift(values: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; that of int64 would bring copies of the sign."""
    shifted: Tensor = (values >> bits) & (2 ** (64 - bits) - 1)
    return shifted
