"""Query-wise self-distillation (QuerySD) and the running centre of the teacher's logits.

Axes: m matched pairs, K prototypes.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn


def query_distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    center: Tensor,
    *,
    student_temp: float = 0.1,
    teacher_temp: float = 0.04,
    normalizer: Tensor | float,
) -> Tensor:
    """Cross-entropy of the student's prototype distribution under the teacher's, a float32 scalar.

    Source: Eq. 6 of the paper: ``-sum_k softmax((t - c) / T_t)_k log softmax(s / T_s)_k``, summed over the pairs of
    all views and divided by ``normalizer``. Differs from the paper: the minus sign, which is missing in print, and
    the inner sum to K instead of d, because the logits have K entries. The paper is silent on centring and
    temperatures: they are DINO's. The teacher gets no gradient. No pairs give zero, with a gradient of zero.

    Args:
        student_logits: ``(m, K)``.
        teacher_logits: ``(m, K)``, row for row the student's partner.
        center: ``(K,)`` or ``(1, K)``, see ``Center``.
        student_temp: T_s, greater than 0.
        teacher_temp: T_t, greater than 0.
        normalizer: pairs of the step, see ``mean_over_ranks``.

    Raises:
        ValueError: if the shapes differ or a temperature is not positive.
    """
    if student_logits.dim() != 2 or student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student_logits and teacher_logits must both be (m, K), "
            f"got {tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        )
    if center.shape not in (student_logits.shape[1:], (1, student_logits.shape[1])):
        raise ValueError(f"center must hold K = {student_logits.shape[1]} values, got shape {tuple(center.shape)}")
    for name, temperature in (("student_temp", student_temp), ("teacher_temp", teacher_temp)):
        if not temperature > 0:
            raise ValueError(f"{name} must be greater than 0, got {temperature}")
    teacher = ((teacher_logits.detach().float() - center.float()) / teacher_temp).softmax(dim=1)
    student = (student_logits.float() / student_temp).log_softmax(dim=1)
    return -(teacher * student).sum() / normalizer


class Center(nn.Module):
    """The running mean of the teacher's logits, the buffer ``center`` of shape ``(1, K)``.

    Source: DINO (arXiv 2104.14294), Eq. 4: subtracted from the teacher's logits, it keeps one prototype from taking
    all queries. It starts at zero.

    Args:
        num_prototypes: K.
        momentum: share of the old centre that stays at each update, in [0, 1].

    Raises:
        ValueError: if the momentum is outside [0, 1].
    """

    center: Tensor

    def __init__(self, num_prototypes: int, *, momentum: float = 0.9) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must lie in [0, 1], got {momentum}")
        self.momentum = momentum
        self._awaiting: Tensor | None = None  # sums and count of the parts of a step so far
        self.register_buffer("center", torch.zeros(1, num_prototypes))

    @torch.no_grad()
    def update(self, teacher_logits: Tensor, *, is_last: bool = True) -> None:
        """Move the centre towards the mean of all ranks' logits; call after the loss, on every rank.

        Ranks may hold different numbers of rows: sums and counts are added up, so that each row weighs the same.
        Zero rows on all ranks change nothing.

        Args:
            teacher_logits: ``(m, K)``, m may be 0.
            is_last: false for all but the last part of a step whose gradients are accumulated: the rows wait for it, so
                that the centre moves once a step.

        Raises:
            ValueError: if the rows do not have K entries.
        """
        if teacher_logits.dim() != 2 or teacher_logits.shape[1] != self.center.shape[1]:
            raise ValueError(
                f"teacher_logits must be (m, {self.center.shape[1]}), got shape {tuple(teacher_logits.shape)}"
            )
        total = teacher_logits.detach().to(self.center).sum(dim=0)
        # one message for sums and count
        message = torch.cat([total, total.new_full((1,), float(len(teacher_logits)))])
        if self._awaiting is not None:
            message += self._awaiting
        self._awaiting = None if is_last else message
        if not is_last:
            return
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(message)
        count = message[-1]
        moved = torch.lerp(message[:-1] / count.clamp(min=1.0), self.center, self.momentum)
        # decided on the device: reading the count would wait for it
        self.center.copy_(torch.where(count > 0, moved, self.center))
