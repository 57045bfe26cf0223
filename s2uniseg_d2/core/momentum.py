"""The momentum teacher: an exponential moving average of the student."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def copy_to_teacher(student: nn.Module, teacher: nn.Module) -> None:
    """Make every parameter and buffer of the teacher equal to the student's.

    Raises:
        ValueError: if the modules do not have the same parameters and buffers.
    """
    update_teacher(teacher, student, 0.0)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher towards the student: ``momentum * teacher + (1 - momentum) * student``.

    Source: the momentum update of DINO (arXiv 2104.14294), section 3.1. Differs from DINO: floating-point buffers
    (statistics of batch normalisation, which ViT-Adapter has) move like parameters, because a teacher in evaluation
    mode reads them; integer buffers are copied. Momentum 0 copies exactly, momentum 1 changes nothing.

    Args:
        teacher: changed in place; neither gradients nor training mode matter.
        student: read alone.
        momentum: in [0, 1].

    Raises:
        ValueError: if the momentum is outside [0, 1], or the modules differ in a parameter or buffer, the first of
            which is named.
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must lie in [0, 1], got {momentum}")
    pairs = _pair("parameter", teacher.named_parameters(), student.named_parameters())
    pairs += _pair("buffer", teacher.named_buffers(), student.named_buffers())
    if momentum == 1:
        return
    moving = [pair for pair in pairs if momentum > 0 and pair[0].is_floating_point()]
    copied = [pair for pair in pairs if momentum == 0 or not pair[0].is_floating_point()]
    # a list operation takes a few kernels where a loop takes one per parameter, some hundreds; it refuses empty lists
    if moving:
        torch._foreach_lerp_([old for old, _ in moving], [new for _, new in moving], 1.0 - momentum)
    if copied:
        torch._foreach_copy_([old for old, _ in copied], [new for _, new in copied])


def _pair(
    kind: str, teacher: Iterable[tuple[str, Tensor]], student: Iterable[tuple[str, Tensor]]
) -> list[tuple[Tensor, Tensor]]:
    """The teacher's and the student's tensor of every name, in the teacher's order."""
    old, new = dict(teacher), dict(student)
    for name in [*old, *new]:
        if name not in old or name not in new:
            lacking = "teacher" if name not in old else "student"
            raise ValueError(f"teacher and student must have the same {kind}s, but the {lacking} has no {name!r}")
        if old[name].shape != new[name].shape:
            raise ValueError(
                f"teacher and student must have {kind}s of equal shape, "
                f"got {tuple(old[name].shape)} and {tuple(new[name].shape)} for {name!r}"
            )
    return [(value, new[name].to(value)) for name, value in old.items()]
