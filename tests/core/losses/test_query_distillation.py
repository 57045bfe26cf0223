from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from s2uniseg_d2.core.losses.query_distillation import Center, query_distillation_loss

TINY = {"student_temp": 0.1, "teacher_temp": 0.04, "normalizer": 1.0}


def logits(m: int = 6, k: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.rand(m, k, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def eq6(student, teacher, center, student_temp: float, teacher_temp: float) -> float:
    """Literal sums in Python floats, with the sign."""
    total = 0.0
    for s_row, t_row in zip(student.tolist(), teacher.tolist(), strict=True):
        t_exp = [math.exp((t - c) / teacher_temp) for t, c in zip(t_row, center.flatten().tolist(), strict=True)]
        s_exp = [math.exp(s / student_temp) for s in s_row]
        for t, s in zip(t_exp, s_exp, strict=True):
            total -= t / sum(t_exp) * math.log(s / sum(s_exp))
    return total


@pytest.mark.parametrize("shape", [(5,), (1, 5)])
def test_equals_equation_6(shape):
    student, teacher, center = logits(), logits(seed=1), torch.randn(shape) * 0.1
    loss = query_distillation_loss(student, teacher, center, student_temp=0.2, teacher_temp=0.3, normalizer=4.0)
    assert loss.item() == pytest.approx(eq6(student, teacher, center, 0.2, 0.3) / 4, rel=1e-5)


def test_uniform_distributions_give_log_k():
    zero = torch.zeros(3, 7)
    loss = query_distillation_loss(zero, zero, torch.zeros(7), **(TINY | {"normalizer": 3.0}))
    assert loss.item() == pytest.approx(math.log(7), rel=1e-6)


def test_one_hot_teacher_is_cross_entropy():
    student, labels = logits(), torch.tensor([0, 3, 1, 4, 2, 2])
    teacher = functional.one_hot(labels, 5) * 100.0
    loss = query_distillation_loss(student, teacher, torch.zeros(5), **TINY)
    assert torch.allclose(loss, functional.cross_entropy(student / 0.1, labels, reduction="sum"))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_agreement_is_the_minimum_and_the_entropy(seed):
    """Gibbs: the teacher's own distribution is the best student. Without the minus sign it would be the worst."""
    teacher, student = logits(4, 6, seed), logits(4, 6, seed + 1)
    same = {"student_temp": 0.3, "teacher_temp": 0.3, "normalizer": 4.0}
    best = query_distillation_loss(teacher, teacher, torch.zeros(6), **same)
    entropy = torch.distributions.Categorical(logits=teacher / 0.3).entropy().mean()
    assert torch.allclose(best, entropy, atol=1e-5)
    assert query_distillation_loss(student, teacher, torch.zeros(6), **same) >= best


def test_centring_takes_the_shared_part_away():
    student, teacher, shift = logits(), logits(seed=1), logits(1, seed=2)
    plain = query_distillation_loss(student, teacher, torch.zeros(5), **TINY)
    shifted = query_distillation_loss(student, teacher + shift, shift, **TINY)
    assert torch.allclose(plain, shifted, rtol=1e-4)
    assert not torch.allclose(plain, query_distillation_loss(student, teacher + shift, torch.zeros(5), **TINY))


def test_the_teacher_has_no_gradient():
    student, teacher = logits().requires_grad_(), logits(seed=1).requires_grad_()
    query_distillation_loss(student, teacher, torch.zeros(5), **TINY).backward()
    assert teacher.grad is None
    # softmax minus target, over the temperature
    expected = ((student / 0.1).softmax(1) - (teacher / 0.04).softmax(1)) / 0.1
    assert torch.allclose(student.grad, expected, atol=1e-5)


def test_no_pairs_give_zero_with_a_graph():
    student = torch.zeros(0, 5, requires_grad=True)
    loss = query_distillation_loss(student, torch.zeros(0, 5), torch.zeros(1, 5), **TINY)
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None


def test_extreme_logits_are_finite_also_in_half_precision():
    student = torch.tensor([[6e4, -6e4], [1.0, 2.0]], dtype=torch.float16, requires_grad=True)
    loss = query_distillation_loss(student, student.detach().flip(1), torch.zeros(2), **TINY)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize(
    ("student", "teacher", "center", "options", "message"),
    [
        ((6, 5), (5, 5), (5,), {}, r"must both be \(m, K\)"),
        ((5,), (5,), (5,), {}, r"must both be \(m, K\)"),
        ((6, 5), (6, 5), (4,), {}, "center must hold K = 5 values"),
        ((6, 5), (6, 5), (5,), {"student_temp": 0.0}, "student_temp must be greater than 0, got 0.0"),
        ((6, 5), (6, 5), (5,), {"teacher_temp": -1.0}, "teacher_temp must be greater than 0, got -1.0"),
    ],
)
def test_bad_input_is_refused(student, teacher, center, options, message):
    with pytest.raises(ValueError, match=message):
        query_distillation_loss(torch.zeros(student), torch.zeros(teacher), torch.zeros(center), **(TINY | options))


def test_center_is_a_running_mean_that_starts_at_zero():
    center, rows = Center(5, momentum=0.9), logits(8)
    center.update(rows)
    assert torch.allclose(center.center, 0.1 * rows.mean(0, keepdim=True))
    center.update(rows * 2)
    assert torch.allclose(center.center, 0.29 * rows.mean(0, keepdim=True))
    assert center.center.shape == (1, 5)


@pytest.mark.parametrize(("momentum", "share"), [(0.0, 1.0), (1.0, 0.0)])
def test_center_momentum_ends(momentum, share):
    center = Center(5, momentum=momentum)
    center.update(logits(8))
    assert torch.allclose(center.center, share * logits(8).mean(0, keepdim=True))


def test_center_ignores_an_update_without_rows():
    center = Center(5)
    center.update(logits(3))
    before = center.center.clone()
    center.update(torch.zeros(0, 5))
    assert torch.equal(center.center, before)


def test_center_is_saved_keeps_its_buffer_and_has_no_gradient():
    center = Center(5)
    buffer = center.center
    center.update(logits(3).requires_grad_().half())
    assert center.center is buffer
    assert not buffer.requires_grad
    assert buffer.dtype == torch.float32
    other = Center(5)
    other.load_state_dict(center.state_dict())
    assert torch.equal(other.center, buffer)


def test_bad_centers_are_refused():
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\], got 1.1"):
        Center(5, momentum=1.1)
    with pytest.raises(ValueError, match=r"teacher_logits must be \(m, 5\), got shape \(3, 4\)"):
        Center(5).update(torch.zeros(3, 4))


def test_one_query_alone_moves_the_center_by_itself():
    center, row = Center(5, momentum=0.9), logits(1)
    center.update(row)
    assert torch.allclose(center.center, 0.1 * row)
