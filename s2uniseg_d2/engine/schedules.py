"""What changes from step to step: learning rate, the teacher's temperature and weight decay."""

from __future__ import annotations

from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.solver import LRMultiplier, build_lr_scheduler
from fvcore.common.param_scheduler import ParamScheduler

from s2uniseg_d2.core.schedules import cosine, ramp, warmup_then_cosine

from .hooks import unwrap

WARMUP_THEN_COSINE = "WarmupThenCosineLR"


class WarmupThenCosine(ParamScheduler):
    """:func:`warmup_then_cosine` as the multiplier that Detectron2's ``LRMultiplier`` asks for."""

    def __init__(self, *, warmup_iters: int, total_iters: int, start: float, end: float) -> None:
        self.warmup_iters, self.total_iters, self.start, self.end = warmup_iters, total_iters, start, end

    def __call__(self, where: float) -> float:
        """The multiplier at a share of the run, in [0, 1]."""
        return warmup_then_cosine(
            where * self.total_iters,
            warmup_iters=self.warmup_iters,
            total_iters=self.total_iters,
            start=self.start,
            end=self.end,
        )


def build_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate's course by ``SOLVER.LR_SCHEDULER_NAME``: ours, or one of Detectron2's."""
    if cfg.SOLVER.LR_SCHEDULER_NAME != WARMUP_THEN_COSINE:
        return build_lr_scheduler(cfg, optimizer)
    multiplier = WarmupThenCosine(
        warmup_iters=cfg.SOLVER.WARMUP_ITERS,
        total_iters=cfg.SOLVER.MAX_ITER,
        start=cfg.SOLVER.WARMUP_FACTOR,
        end=cfg.SOLVER.BASE_LR_END / cfg.SOLVER.BASE_LR,
    )
    return LRMultiplier(optimizer, multiplier=multiplier, max_iter=cfg.SOLVER.MAX_ITER)


class Course(NamedTuple):
    """A value's way over a run.

    Attributes:
        start: value at the first iteration.
        end: value at the end of the way.
        iters: of the way; 0 is the whole run.
    """

    start: float
    end: float
    iters: int = 0


class ScheduleHook(HookBase):
    """Sets the teacher's temperature and the weight decay of every step, from its iteration alone.

    The temperature is DINO's: straight over its first iterations, then constant. So is the decay: a cosine over the
    run. A resumed run needs no state of either.

    Args:
        teacher_temp: of QuerySD; ``iters`` 0 is its ``end`` throughout.
        weight_decay: of the parameter groups that are decayed.
    """

    def __init__(self, teacher_temp: Course, weight_decay: Course) -> None:
        self.teacher_temp, self.weight_decay = teacher_temp, weight_decay

    @classmethod
    def from_config(cls, cfg: CfgNode) -> ScheduleHook:
        """Read ``MODEL.QUERY_SD`` and ``SOLVER``."""
        distillation, solver = cfg.MODEL.QUERY_SD, cfg.SOLVER
        decay_end = solver.WEIGHT_DECAY if solver.WEIGHT_DECAY_END < 0 else solver.WEIGHT_DECAY_END
        return cls(
            Course(distillation.TEACHER_TEMP_START, distillation.TEACHER_TEMP, distillation.TEACHER_TEMP_WARMUP_ITERS),
            Course(solver.WEIGHT_DECAY, decay_end),
        )

    def before_step(self) -> None:
        """Set both, and note them."""
        iteration = self.trainer.iter
        temperature = ramp(iteration, self.teacher_temp.iters, self.teacher_temp.start, self.teacher_temp.end)
        decay = cosine(iteration / max(self.trainer.max_iter - 1, 1), self.weight_decay.start, self.weight_decay.end)
        unwrap(self.trainer.model).teacher_temp = temperature
        for group in self.trainer.optimizer.param_groups:
            if group["is_decayed"]:
                group["weight_decay"] = decay
        self.trainer.storage.put_scalar("teacher_temp", temperature, smoothing_hint=False)
        self.trainer.storage.put_scalar("weight_decay", decay, smoothing_hint=False)
