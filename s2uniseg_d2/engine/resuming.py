"""What a resumed run needs, beside its checkpoint, to go on as if it had not been stopped."""

from __future__ import annotations

import random

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

from s2uniseg_d2.core.draws import seed_at


class StepDrawsHook(HookBase):
    """Seeds the global generators of PyTorch, numpy and Python before every step, by (seed, iteration, rank).

    Stochastic depth draws from PyTorch's own. A checkpoint therefore needs no state of any generator, and what an
    evaluation or a picture draws between two steps changes neither. Nothing waits for the device.

    Args:
        seed: of the run; negative leaves the generators alone, and no two runs are alike.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_step(self) -> None:
        """Seed all three."""
        if self.seed >= 0:
            seed = seed_at(self.seed, self.trainer.iter, comm.get_rank())
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
