"""Moving what the host knows to the device."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """The values on ``device``, without waiting for the work that a GPU has queued.

    A copy from ordinary memory waits for the queue; from pinned memory it joins it.

    Args:
        values: on the CPU, or on ``device`` already, where nothing is copied.
        device: a GPU or the CPU.
    """
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
