"""Moving what the host knows to the device, and asking what the device knows."""

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


def ask(*values: Tensor) -> list[list[int]]:
    """The numbers of some int64 vectors on the host, after one wait for the device.

    Args:
        values: one dimension each, on one device.
    """
    numbers, lists = torch.cat(values).tolist(), []
    for part in values:
        lists.append(numbers[: part.numel()])
        numbers = numbers[part.numel() :]
    return lists
