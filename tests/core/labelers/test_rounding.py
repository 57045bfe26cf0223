from __future__ import annotations

import torch

from s2uniseg_d2.core.labelers.rounding import UNIT, full_float32, gamma


def test_gamma_bounds_float32_inner_products():
    generator = torch.Generator().manual_seed(0)
    for terms in (1, 7, 100, 3000):
        a, b = torch.randn(2, 50, terms, generator=generator)
        error = ((a * b).sum(1).double() - (a.double() * b.double()).sum(1)).abs()
        magnitude = (a.double() * b.double()).abs().sum(1)
        assert (error <= gamma(terms) * magnitude).all()
    assert torch.finfo(torch.float32).eps == 2 * UNIT


def test_full_float32_restores_what_it_found():
    weight = torch.ones(2, 2, requires_grad=True)
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with full_float32(torch.device("cpu")):
                inside = weight @ weight
                assert torch.get_float32_matmul_precision() == "highest"
            outside = weight @ weight
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert (inside.dtype, inside.requires_grad) == (torch.float32, False)
    assert (outside.dtype, outside.requires_grad) == (torch.bfloat16, True)
