"""What changes from step to step beside learning rate and momentum: the teacher's temperature and weight decay."""

from __future__ import annotations

from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.engine import HookBase

from s2uniseg_d2.core.schedules import cosine, ramp

from .hooks import unwrap


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
