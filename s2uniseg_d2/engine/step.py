"""One training step inside Detectron2's loop, on a whole batch or part by part."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from s2uniseg_d2.core.observer import StepObserver
from s2uniseg_d2.modeling.normalizers import Normalizers

from .hooks import unwrap
from .step_guard import MOST_SKIPPED, NonFiniteStepError, StepStart, UnlabelledBatchError, name_gradient


def autocast_dtype(cfg: CfgNode) -> torch.dtype | None:
    """What ``SOLVER.AMP`` says forward passes are computed in; None is float32 throughout."""
    return getattr(torch, cfg.SOLVER.AMP.DTYPE) if cfg.SOLVER.AMP.ENABLED else None


class TrainingStep(SimpleTrainer):
    """Detectron2's step; stops before the optimizer when a loss is not finite, on all processes, and names it.

    Detectron2 reads the losses one by one and sends them to the main process as pickles; averaging them over the
    processes as one vector and reading that is the only host round trip of a step's bookkeeping.

    Differs from Detectron2's ``AMPTrainer``, which takes a GPU and float16 for granted: mixed precision runs on any
    device, and only float16, whose small gradients would vanish, has them scaled.

    A process's share of a batch goes through the model in ``accumulation_steps`` parts of equal size, one after the
    other, so that memory is that of a part. Losses are divided by what the whole batch of all processes counts, the
    centre moves once and processes exchange gradients once: gradients are those of the undivided batch, except that
    batch statistics are those of a part.

    Args:
        model: gives a dict of losses.
        data_loader: of batches.
        optimizer: steps once per batch.
        autocast_dtype: of the forward pass; None is float32 throughout.
        accumulation_steps: parts of a process's share of a batch; more than one need an ``S2UniSeg``.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        *,
        autocast_dtype: torch.dtype | None = None,
        accumulation_steps: int = 1,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.accumulation_steps = accumulation_steps
        self.autocast_dtype = autocast_dtype
        self._device_type = next(model.parameters()).device.type
        self.grad_scaler = torch.amp.GradScaler(self._device_type, enabled=autocast_dtype is torch.float16)
        self._start = StepStart(model)
        self._has_stepped = False
        self._skipped = 0
        optimizer.register_step_pre_hook(self._note_step)

    def run_step(self) -> None:
        """Train on the next batch.

        Raises:
            NonFiniteStepError: if a loss or the gradient is not finite, in float16 the gradients of ``MOST_SKIPPED``
                steps in a row; nothing is changed then.
        """
        start = time.perf_counter()
        try:
            batch = next(self._data_loader_iter)
        except UnlabelledBatchError as error:
            self._start.remember()
            raise self._stop(str(error), error.batch) from error
        data_time = time.perf_counter() - start
        self._start.remember()
        self.optimizer.zero_grad()
        losses: dict[str, Tensor] = {}
        try:
            losses = self.compute_gradients(batch)
        except FloatingPointError as error:  # of this process alone: others wait for it and are ended with it
            raise self._stop(str(error), batch) from error
        self.after_backward()
        try:
            self._write_metrics(losses, data_time)
        except FloatingPointError as error:
            raise self._stop(str(error), batch, losses) from error
        self._lap("losses_read")
        try:
            self._step()
        except FloatingPointError as error:
            raise self._stop(f"{error}: {name_gradient(self.model)}", batch, losses) from error
        self._lap("optimizer")

    def compute_gradients(self, batch: Sequence[Any], normalizers: Normalizers | None = None) -> dict[str, Tensor]:
        """Add the gradients of a batch to those that are there; returns the losses.

        Args:
            batch: this process's share.
            normalizers: of the batch of all processes; None lets them be counted.
        """
        if self.accumulation_steps > 1:
            return self._accumulate(batch, normalizers)
        return self._backward(batch) if normalizers is None else self._backward(batch, normalizers)

    def _step(self) -> None:
        """Let the optimizer step.

        With scaling, a gradient that is not finite is no error: the step is left out, counted, and the scale halved.
        """
        self._has_stepped = False
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        if self.grad_scaler.is_enabled():
            self._skipped = 0 if self._has_stepped else self._skipped + 1
            if self._observer is not None:
                self._observer.add("skipped_steps", float(not self._has_stepped))
            if self._skipped >= MOST_SKIPPED:
                raise FloatingPointError(f"float16 left out {self._skipped} steps in a row")

    def _note_step(self, *_: Any) -> None:
        self._has_stepped = True

    def _stop(self, reason: str, batch: Any, losses: Mapping[str, Tensor] | None = None) -> NonFiniteStepError:
        """The error that ends the run; the model is as it was before the step."""
        self._start.restore()
        return NonFiniteStepError(
            f"iteration {self.iter}: {reason}; stopped before the optimizer step",
            batch=batch,
            generators=self._start.generators,
            losses={name: float(loss) for name, loss in (losses or {}).items()},
            is_shared=losses is not None,
        )

    def _backward(self, batch: Sequence[Any], *part: Any, **of_part: Any) -> dict[str, Tensor]:
        """Add the gradients of a batch, or of a part, to those that are there; returns the losses."""
        with torch.autocast(self._device_type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None):
            losses: dict[str, Tensor] = self.model(batch, *part, **of_part)
            total = torch.stack(list(losses.values())).sum()
        self.grad_scaler.scale(total).backward()
        self._lap("backward")
        return {name: loss.detach() for name, loss in losses.items()}

    def _accumulate(self, batch: Sequence[Any], normalizers: Normalizers | None) -> dict[str, Tensor]:
        """Add up the gradients of all parts; returns the summed losses, which are those of the whole batch."""
        size = len(batch) // self.accumulation_steps
        parts = [batch[start : start + size] for start in range(0, len(batch), size)]
        normalizers = normalizers or unwrap(self.model).count_normalizers(batch)
        total: dict[str, Tensor] = {}
        for number, part in enumerate(parts):
            is_last = number == len(parts) - 1
            with nullcontext() if is_last else self._without_exchange():
                losses = self._backward(part, normalizers, is_last=is_last)
            total = {name: loss + total.get(name, 0.0) for name, loss in losses.items()}
        return total

    def _lap(self, part: str) -> None:
        """Tell the model's observer, if it has one, which part of the step is over."""
        if self._observer is not None:
            self._observer.lap(part)

    @property
    def _observer(self) -> StepObserver | None:
        return getattr(getattr(self.model, "module", self.model), "observer", None)

    def _without_exchange(self) -> AbstractContextManager[None]:
        """Keeps gradients in this process while it is active."""
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Detectron2's, and the scale of float16 gradients."""
        state = super().state_dict()
        if self.grad_scaler.is_enabled():
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up a state; a run that was not scaled before starts with a fresh scale."""
        super().load_state_dict(state_dict)
        self.load_scale(state_dict)

    def load_scale(self, state_dict: Mapping[str, Any]) -> None:
        """Take up the scale alone."""
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
            raise FloatingPointError(named)
        super()._write_metrics(dict(zip(loss_dict, values, strict=True)), data_time, prefix, iter)
