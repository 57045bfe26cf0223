"""What the parts of a run take in memory: counted where it can be, measured where it cannot."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from .hooks import unwrap
from .observation import memory_gib

# what the modules of S2UniSeg are, in the order of a report; the centre of QuerySD has no parameters
PARTS = {
    "student's encoder": ("backbone",),
    "student's decoder": ("sem_seg_head",),
    "student's heads": ("query_proj", "student_head"),
    "teacher's encoder": ("teacher_backbone",),
    "teacher's head": ("teacher_head",),
}


class Memory(NamedTuple):
    """Memory of a process while it trains, in bytes.

    Attributes:
        peak: the most that was in use: resident on the CPU, allocated by PyTorch on a GPU.
        before: in use before the first step: libraries, model, data.
        standing: gradients and the optimizer's state, which stay between steps.
        reserved: the most that PyTorch had taken from a GPU; 0 on the CPU.
        available: of the GPU or of the machine.
    """

    peak: int
    before: int
    standing: int
    reserved: int
    available: int

    def describe(self, text: Callable[[float], str]) -> str:
        """In words; ``text`` makes a number of bytes readable."""
        where = "allocated on the GPU" if self.reserved else "resident"
        rest = max(0, self.peak - self.before - self.standing)
        words = f"at most {text(self.peak)} {where}: {text(self.before)} before the first step, "
        words += f"{text(self.standing)} gradients and optimizer, up to {text(rest)} activations and work space"
        if self.reserved:
            words += f"; {text(self.reserved)} taken from the GPU"
        return f"{words}; the {'GPU' if self.reserved else 'machine'} has {text(self.available)}"


class MemoryMeter:
    """Measures from its making to :meth:`read`.

    Args:
        model: that is trained.
        optimizer: likewise.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._device = next(model.parameters()).device
        self._optimizer = optimizer
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        else:
            self._before = _resident_now()

    def read(self) -> Memory:
        """What was used since; of a process on the CPU, the peak of its whole life."""
        trained = [value for group in self._optimizer.param_groups for value in group["params"]]
        gradients = sum(value.numel() * value.element_size() for value in trained)
        standing = gradients + optimizer_bytes(self._optimizer)
        if self._device.type == "cuda":
            return Memory(
                peak=torch.cuda.max_memory_allocated(self._device),
                before=self._before,
                standing=standing,
                reserved=torch.cuda.max_memory_reserved(self._device),
                available=torch.cuda.mem_get_info(self._device)[1],
            )
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        # the kernel counts the peak of a process and its present size apart, and not to the page
        peak = max(int(memory_gib()["memory/resident_gib"] * 2**30), self._before)
        return Memory(peak, self._before, standing, 0, total)


def part_sizes(model: nn.Module) -> dict[str, int]:
    """Numbers in the parameters of each part of an S2UniSeg, teacher included."""
    inner = unwrap(model)
    return {
        name: sum(value.numel() for module in modules for value in getattr(inner, module).parameters())
        for name, modules in PARTS.items()
    }


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors in the optimizer's state; 0 before its first step."""
    states = optimizer.state.values()
    tensors = (value for state in states for value in state.values() if isinstance(value, torch.Tensor))
    return sum(value.numel() * value.element_size() for value in tensors)


def _resident_now() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no such file outside of Linux: what was the most so far is the next best
        return int(memory_gib()["memory/resident_gib"] * 2**30)
