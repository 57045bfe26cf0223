"""One training step inside Detectron2's loop."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, distributed, nn


def autocast_dtype(cfg: CfgNode) -> torch.dtype | None:
    """What ``SOLVER.AMP`` says forward passes are computed in; None is float32 throughout."""
    return getattr(torch, cfg.SOLVER.AMP.DTYPE) if cfg.SOLVER.AMP.ENABLED else None


class TrainingStep(SimpleTrainer):
    """Detectron2's step; stops before the optimizer when a loss is not finite, on all processes, and names it.

    Detectron2 reads the losses one by one and sends them to the main process as pickles; averaging them over the
    processes as one vector and reading that is the only host round trip of a step's bookkeeping.

    Differs from Detectron2's ``AMPTrainer``, which takes a GPU and float16 for granted: mixed precision runs on any
    device, and only float16, whose small gradients would vanish, has them scaled.

    Args:
        model: gives a dict of losses.
        data_loader: of batches.
        optimizer: steps once per batch.
        autocast_dtype: of the forward pass; None is float32 throughout.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        *,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.autocast_dtype = autocast_dtype
        self._device_type = next(model.parameters()).device.type
        self.grad_scaler = torch.amp.GradScaler(self._device_type, enabled=autocast_dtype is torch.float16)

    def run_step(self) -> None:
        """Train on the next batch.

        Raises:
            FloatingPointError: if a loss or the gradient is not finite; nothing is changed then.
        """
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with torch.autocast(self._device_type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None):
            losses = self.model(batch)
            total = sum(losses.values())
        self.optimizer.zero_grad()
        self.grad_scaler.scale(total).backward()
        self.after_backward()
        self._write_metrics(losses, data_time)
        # with scaling, a gradient that is not finite is no error: the step is left out and the scale halved
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Detectron2's, and the scale of float16 gradients."""
        state = super().state_dict()
        if self.grad_scaler.is_enabled():
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up a state; a run that was not scaled before starts with a fresh scale."""
        super().load_state_dict(state_dict)
        if self.grad_scaler.is_enabled() and state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])

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
