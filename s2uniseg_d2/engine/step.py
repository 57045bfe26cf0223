"""One training step inside Detectron2's loop."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, distributed


class TrainingStep(SimpleTrainer):
    """Detectron2's step; stops before the optimizer when a loss is not finite, on all processes, and names it.

    Detectron2 reads the losses one by one and sends them to the main process as pickles; averaging them over the
    processes as one vector and reading that is the only host round trip of a step's bookkeeping.
    """

    def _write_metrics(
        self, loss_dict: Mapping[str, Tensor], data_time: float, prefix: str = "", iter: int | None = None
    ) -> None:
        values = torch.stack([loss.detach().float() for loss in loss_dict.values()])
        if comm.get_world_size() > 1:
            # a loss that is not finite anywhere has no finite mean, so that all processes stop together
            distributed.all_reduce(values)
            values /= comm.get_world_size()
        values = values.cpu()
        if not values.isfinite().all():
            wrong = {name: float(value) for name, value in zip(loss_dict, values, strict=True) if not value.isfinite()}
            named = ", ".join(f"{name} = {value}" for name, value in wrong.items())
            raise FloatingPointError(f"iteration {self.iter}: {named}; stopped before the optimizer step")
        super()._write_metrics(dict(zip(loss_dict, values, strict=True)), data_time, prefix, iter)


class AMPTrainingStep(TrainingStep, AMPTrainer):
    """The same under mixed precision."""
