"""What training steps look like from inside, gathered without waiting for the device."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed

from s2uniseg_d2.core.ops.transfer import to_device


class Observed(NamedTuple):
    """What was seen in the steps since the last reading.

    Attributes:
        means: by name, a 0-d or 1-d float32 tensor on the CPU, the mean over the steps of all ranks.
        seconds: by part, of this rank, the mean of a step.
    """

    means: dict[str, Tensor]
    seconds: dict[str, float]


class StepObserver:
    """Sums of figures, and seconds of the parts of a step, that stay where they arise until they are read together.

    Only what comes between ``begin`` and ``end`` counts, so that evaluation leaves no trace. On a GPU, parts are timed
    by events in its own stream: the time that the work took there, or that it waited for the host.
    """

    def __init__(self) -> None:
        self.is_active = False
        self._totals: dict[str, Tensor | float] = {}
        self._counts: dict[str, float] = {}
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._last: float | torch.cuda.Event | None = None
        self._steps = 0
        self._device = torch.device("cpu")

    def begin(self, device: torch.device) -> None:
        """A step begins, on a device."""
        self.is_active, self._device, self._last = True, device, None
        self._steps += 1
        self.lap("")

    def end(self) -> None:
        """The step is over."""
        self.is_active = False

    def lap(self, name: str) -> None:
        """Say that what came since the last lap of the step was the part ``name``; a part may come several times."""
        if not self.is_active:
            return
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            if isinstance(self._last, torch.cuda.Event):
                self._events.append((name, self._last, event))
            self._last = event
            return
        now = time.perf_counter()
        if isinstance(self._last, float):
            self._seconds[name] = self._seconds.get(name, 0.0) + now - self._last
        self._last = now

    def add(self, name: str, total: Tensor | float, count: float = 1.0) -> None:
        """Add to a figure: a sum, and of how many things it is; nothing outside of a step.

        Args:
            name: the figure's; every rank must add to the same ones.
            total: 0-d or 1-d; tensors lie on the step's device.
            count: of things, 0 or more; a figure of nothing is left out.
        """
        if self.is_active:
            value = total.detach().float() if isinstance(total, Tensor) else float(total)
            self._totals[name] = self._totals[name] + value if name in self._totals else value
            self._counts[name] = self._counts.get(name, 0.0) + count

    def state_dict(self) -> dict[str, Any]:
        """The sums of figures so far, on the CPU; seconds are not among them."""
        totals = {name: total.cpu() if isinstance(total, Tensor) else total for name, total in self._totals.items()}
        return {"totals": totals, "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on with sums that ``state_dict`` gave, on the device of the steps to come."""
        self._totals = {
            name: total.to(device) if isinstance(total, Tensor) else total for name, total in state["totals"].items()
        }
        self._counts = dict(state["counts"])

    def take(self) -> Observed:
        """Read and forget everything: one message between the ranks, and one copy to the host, which waits.

        Every rank must call it after the same step.
        """
        observed = Observed(self._take_means(), self._take_seconds())
        self._steps = 0
        return observed

    def _take_means(self) -> dict[str, Tensor]:
        on_device = {name: total for name, total in self._totals.items() if isinstance(total, Tensor)}
        on_host = {name: total for name, total in self._totals.items() if not isinstance(total, Tensor)}
        names = [*on_device, *on_host]
        numbers = torch.tensor([*on_host.values(), *(self._counts[name] for name in names)], dtype=torch.float32)
        vector = torch.cat([*(total.reshape(-1) for total in on_device.values()), to_device(numbers, self._device)])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(vector)
        sizes = [*(total.numel() for total in on_device.values()), *[1] * (len(on_host) + len(names))]
        parts = torch.split(vector.cpu(), sizes)
        means = {}
        for name, total, count in zip(names, parts[: len(names)], parts[len(names) :], strict=True):
            if count > 0:
                kept = self._totals[name]
                means[name] = total.reshape(kept.shape if isinstance(kept, Tensor) else ()) / count[0]
        self._totals, self._counts = {}, {}
        return means

    def _take_seconds(self) -> dict[str, float]:
        seconds, self._seconds = self._seconds, {}
        if self._events:
            self._events[-1][2].synchronize()
        for name, start, end in self._events:
            seconds[name] = seconds.get(name, 0.0) + start.elapsed_time(end) / 1000.0
        self._events = []
        return {name: spent / max(self._steps, 1) for name, spent in seconds.items()}
