"""Rounding of float32: what a decision made in it can be trusted for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Unit roundoff of float32.
UNIT = 2.0**-24


def gamma(terms: int) -> float:
    """Return the bound γ_n on the relative error of a float32 inner product of n terms.

    It holds for every order of summation, with or without fused multiply-add, hence for every matrix-product library:
    |computed − exact| ≤ γ_n · Σ|a_k||b_k|, and the sum is at most ‖a‖‖b‖.

    Args:
        terms: n, plus one for each rounding of an operand.
    """
    return terms * UNIT / (1 - terms * UNIT)


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Compute without gradient, autocast and TF32 (or bfloat16) matrix products, whose rounding γ does not cover.

    Args:
        device: where the work is done.
    """
    previous = torch.get_float32_matmul_precision()
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        if previous == "highest":
            yield
            return
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(previous)
