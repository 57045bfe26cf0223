from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2uniseg_d2.core.schedules import cosine, ramp, warmup_then_cosine


def test_ends_are_exact_and_the_middle_is_the_mean():
    assert cosine(0, 0.9995, 1.0) == 0.9995
    assert cosine(1, 0.9995, 1.0) == 1.0
    assert cosine(0.5, 2.0, 4.0) == pytest.approx(3.0)


def test_a_constant_stays_the_same_number():
    assert {cosine(step / 97, 0.05, 0.05) for step in range(98)} == {0.05}


def test_a_ramp_is_straight_and_then_constant():
    assert [ramp(step, 4, 0.04, 0.08) for step in range(7)] == pytest.approx([0.04, 0.05, 0.06, 0.07] + [0.08] * 3)
    assert [ramp(step, 0, 0.5, 0.04) for step in range(3)] == [0.04] * 3
    assert ramp(10**6, 4, 0.04, 0.07) == 0.07
    for wrong in ((-1, 4), (1, -4)):
        with pytest.raises(ValueError, match="iteration and iters must not be negative"):
            ramp(*wrong, 0.0, 1.0)


def test_the_warm_up_ends_at_one_and_the_cosine_begins_there():
    course = {"warmup_iters": 4, "total_iters": 10, "start": 0.2, "end": 0.1}
    values = [warmup_then_cosine(step, **course) for step in range(11)]
    assert values[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert values[7] == pytest.approx(0.55)
    assert values[10] == 0.1
    assert all(a > b for a, b in pairwise(values[4:]))
    with pytest.raises(ValueError, match="iteration must not lie beyond total_iters 10, got 11"):
        warmup_then_cosine(11, **course)


def test_a_run_that_is_shorter_than_its_warm_up_ends_in_it():
    for total in (1, 4):
        course = {"warmup_iters": 4, "total_iters": total, "start": 0.2, "end": 0.1}
        assert warmup_then_cosine(total, **course) == pytest.approx(0.2 + 0.2 * total)


def test_equals_dinos_formula():
    for step in range(101):
        wanted = 1.0 + 0.5 * (0.996 - 1.0) * (1 + math.cos(math.pi * step / 100))
        assert cosine(step / 100, 0.996, 1.0) == pytest.approx(wanted, abs=1e-12)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(-5, 5), st.floats(-5, 5))
def test_stays_between_its_ends_and_is_monotonic(first, second, start, end):
    low, high = sorted((first, second))
    a, b = cosine(low, start, end), cosine(high, start, end)
    assert min(start, end) - 1e-9 <= a <= max(start, end) + 1e-9
    assert (b - a) * (end - start) >= -1e-9


@pytest.mark.parametrize("progress", [-0.01, 1.01, float("nan")])
def test_progress_out_of_range_is_refused(progress):
    with pytest.raises(ValueError, match=r"progress must lie in \[0, 1\]"):
        cosine(progress, 0.0, 1.0)
