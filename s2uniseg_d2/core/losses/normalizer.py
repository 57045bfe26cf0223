"""The divisors of losses that are summed over matched pairs or queries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed

from s2uniseg_d2.core.ops.transfer import to_device


def mean_over_ranks(counts: Sequence[float], device: torch.device) -> Tensor:
    """The mean of each count over all ranks, as a float32 vector.

    Source: Mask2Former's ``num_masks``. Data-parallel training averages gradients over ranks; a loss summed on each
    rank and divided by this mean becomes the mean over what all ranks counted. Without a process group the counts are
    their own means.

    Args:
        counts: of this rank, 0 or more each. Every rank must call, also with zeros, with the same number of counts.
        device: where the process group communicates.

    Raises:
        ValueError: if a count is negative.
    """
    if min(counts, default=0) < 0:
        raise ValueError(f"counts must be at least 0, got {tuple(counts)}")
    means = to_device(torch.tensor(list(counts), dtype=torch.float32), device)
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(means)
        means /= distributed.get_world_size()
    return means
