from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from s2uniseg_d2.core.losses.dino_head import DINOHead
from s2uniseg_d2.core.momentum import copy_to_teacher, update_teacher


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(16, 6),
        DINOHead(6, hidden_dim=8, num_prototypes=5),
    )
    module.train()
    module(torch.randn(8, 3, 4, 4) * (seed + 1) + seed)  # moves the running statistics
    return module


def everything(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("momentum", [0.25, 0.5, 0.9, 0.9995])
def test_moves_parameters_and_statistics_by_the_formula(momentum):
    teacher, student = network(0), network(1)
    old, new = everything(teacher), everything(student)
    update_teacher(teacher, student, momentum)
    for name, value in teacher.state_dict().items():
        if value.is_floating_point():
            wanted = momentum * old[name].double() + (1 - momentum) * new[name].double()
            assert torch.allclose(value.double(), wanted, atol=1e-6), name
    assert not torch.equal(old["1.running_mean"], teacher.state_dict()["1.running_mean"])


def test_momentum_0_copies_exactly_and_1_changes_nothing():
    teacher, student = network(0), network(1)
    student(torch.randn(8, 3, 4, 4))
    before = everything(teacher)
    update_teacher(teacher, student, 1.0)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    update_teacher(teacher, student, 0.0)
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in teacher.state_dict().items())


def test_copy_survives_a_teacher_that_is_not_finite():
    teacher, student = network(0), network(1)
    with torch.no_grad():
        teacher[0].weight.fill_(float("nan"))
    copy_to_teacher(student, teacher)
    assert torch.equal(teacher[0].weight, student[0].weight)


def test_integer_buffers_are_copied():
    teacher, student = network(0), network(1)
    student(torch.randn(8, 3, 4, 4))
    update_teacher(teacher, student, 0.9)
    assert teacher[1].num_batches_tracked.item() == student[1].num_batches_tracked.item() == 2
    assert teacher[1].num_batches_tracked.dtype == torch.int64


def test_equal_networks_stay_equal():
    teacher = network(0)
    before = everything(teacher)
    update_teacher(teacher, copy.deepcopy(teacher), 0.37)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_the_student_is_untouched_and_no_graph_arises():
    teacher, student = network(0), network(1)
    teacher.requires_grad_(False).eval()
    before = everything(student)
    update_teacher(teacher, student, 0.5)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad_fn for parameter in teacher.parameters())
    assert not teacher.training
    assert all(parameter.is_leaf for parameter in student.parameters())


def test_the_teacher_converges_to_a_student_that_stands_still():
    teacher, student = network(0), network(1)
    for _ in range(200):
        update_teacher(teacher, student, 0.9)
    assert torch.allclose(teacher[3].weight, student[3].weight, atol=1e-6)


def test_a_student_in_another_precision_is_converted():
    teacher, student = nn.Linear(3, 2), nn.Linear(3, 2).bfloat16()
    copy_to_teacher(student, teacher)
    assert teacher.weight.dtype == torch.float32
    assert torch.equal(teacher.weight, student.weight.float())
    update_teacher(teacher, student, 0.5)
    assert torch.allclose(teacher.weight, student.weight.float())


def test_no_parameters_is_fine():
    update_teacher(nn.Identity(), nn.Identity(), 0.5)
    update_teacher(nn.Linear(2, 2), nn.Linear(2, 2), 0.5)  # no buffers


def test_modules_that_differ_are_refused_by_name_before_anything_moves():
    with pytest.raises(ValueError, match=r"parameters, but the student has no 'bias'"):
        update_teacher(nn.Linear(3, 2), nn.Linear(3, 2, bias=False), 0.5)
    with pytest.raises(ValueError, match=r"parameters, but the teacher has no 'bias'"):
        copy_to_teacher(nn.Linear(3, 2), nn.Linear(3, 2, bias=False))
    with pytest.raises(ValueError, match=r"parameters of equal shape, got \(2, 3\) and \(2, 4\) for 'weight'"):
        update_teacher(nn.Linear(3, 2), nn.Linear(4, 2), 0.5)
    with pytest.raises(ValueError, match=r"buffers, but the student has no 'running_mean'"):
        update_teacher(nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False), 0.5)
    teacher, student = network(0), network(1)
    before = everything(teacher)
    student[3] = nn.Linear(16, 7)
    with pytest.raises(ValueError, match=r"'3\.weight'"):
        update_teacher(teacher, student, 0.5)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan")])
def test_momentum_out_of_range_is_refused(momentum):
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\]"):
        update_teacher(nn.Linear(2, 2), nn.Linear(2, 2), momentum)
