from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from s2uniseg_d2.core.labelers.rows import normalise_rows, sum_rows


def test_normalising_leaves_zero_where_there_is_no_direction():
    rows = torch.tensor([[3.0, 4.0], [1e-12, 0.0], [0.0, 0.0]], dtype=torch.float64)
    assert normalise_rows(rows).tolist() == [[0.6, 0.8], [0, 0], [0, 0]]


def test_sums_by_label_are_those_of_float64():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(500, 7, generator=generator)
    labels = torch.randint(4, (500,), generator=generator) * 2  # labels 1, 3 and 5 have no row
    truth = functional.one_hot(labels, 7).double().T @ rows.double()
    assert torch.allclose(sum_rows(rows, labels, 7), truth, atol=1e-5, rtol=0)
    assert sum_rows(rows[:0], labels[:0], 2).tolist() == [[0.0] * 7] * 2


def test_long_sums_keep_their_digits():
    rows = torch.full((40000, 1), 0.1)
    total = float(sum_rows(rows, torch.zeros(40000, dtype=torch.int64), 1))
    assert total == pytest.approx(40000 * float(rows[0]), rel=16 * 2**-24)
    one_by_one = torch.zeros(1, 1).index_add_(0, torch.zeros(40000, dtype=torch.int64), rows)
    assert float(one_by_one) != pytest.approx(total, rel=1e-5)  # what float32 alone gives
