from __future__ import annotations

import math

import pytest
import torch

from s2uniseg_d2.core.decoder.position import sine_position


def test_matches_the_formula_cell_by_cell():
    h, w, dim = 3, 5, 12
    code = sine_position((h, w), dim, torch.zeros(1)).view(h, w, dim)
    half = dim // 2
    for row in range(h):
        for column in range(w):
            for start, index, length in ((0, row, h), (half, column, w)):
                angle = 2 * math.pi * (index + 1) / (length + 1e-6)
                for k in range(half):
                    phase = angle / 10000 ** (2 * (k // 2) / half)
                    expected = math.cos(phase) if k % 2 else math.sin(phase)
                    assert code[row, column, start + k].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("like", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_is_at_least_float32_and_bounded(like, expected):
    code = sine_position((4, 7), 64, torch.zeros(1, dtype=like))
    assert code.dtype == expected
    assert code.shape == (28, 64)
    assert code.abs().max() <= 1


def test_cells_differ():
    code = sine_position((6, 9), 32, torch.zeros(1))
    assert torch.cdist(code, code).fill_diagonal_(1.0).min() > 1e-2


@pytest.mark.parametrize("dim", [0, 2, 6, -4])
def test_refuses_widths_without_sine_and_cosine_of_both_axes(dim):
    with pytest.raises(ValueError, match=rf"dim must be a positive multiple of 4.*got {dim}$"):
        sine_position((2, 2), dim, torch.zeros(1))
