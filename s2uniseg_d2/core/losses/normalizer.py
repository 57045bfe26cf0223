"""The divisor of losses that are summed over matched pairs."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def global_count(count: int, device: torch.device) -> Tensor:
    """The mean of ``count`` over all ranks and at least 1, as a 0-d float32 tensor.

    Source: Mask2Former's ``num_masks``. Data-parallel training averages gradients over ranks; a loss summed on each
    rank and divided by this mean becomes the mean over the pairs of all ranks. Without a process group it is
    ``max(count, 1)``.

    Args:
        count: matched pairs on this rank, 0 or more. Every rank must call, also with 0.
        device: where the process group communicates.

    Raises:
        ValueError: if ``count`` is negative.
    """
    if count < 0:
        raise ValueError(f"count must be at least 0, got {count}")
    total = torch.full((), float(count), device=device)
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(total)
        total /= distributed.get_world_size()
    return total.clamp(min=1.0)
