"""Rows of features: their sums by label, in float32 with a certain error, and their directions."""

from __future__ import annotations

import torch
from torch import Tensor

# A vector shorter than this has no direction in float64 arithmetic; L2N makes it zero.
SHORTEST = 1e-9
ROW_CHUNK = 512
# Rows that float32 adds up before float64 takes over.
SHORT_SUM = 16


def take_rows(rows: Tensor, index: Tensor) -> Tensor:
    """Return the chosen rows; on a CPU PyTorch copies them several times faster so than by ``rows[index]``."""
    return rows.index_select(0, index)


def subtract_rows(rows: Tensor, pairs: Tensor) -> Tensor:
    """Return rows[i] − rows[j] of every pair ``(2, e)``."""
    return take_rows(rows, pairs[0]).sub_(take_rows(rows, pairs[1]))


def normalise_rows(rows: Tensor) -> Tensor:
    """Return rows of unit length; rows shorter than 1e-9 become zero."""
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return torch.where(length > SHORTEST, rows / length.clamp_min(SHORTEST), torch.zeros_like(rows))


def sum_rows(rows: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return the ``(count, d)`` float64 sums of float32 rows by label; SHORT_SUM of them at a time in float32.

    Args:
        rows: ``(k, d)`` float32.
        labels: ``(k,)`` int64 in [0, count).
        count: number of sums.
    """
    order = labels.argsort(stable=True)
    ordered = labels[order]
    counts = torch.bincount(labels, minlength=count)
    rank = torch.arange(labels.numel(), device=labels.device) - (counts.cumsum(0) - counts)[ordered]
    first = rank % SHORT_SUM == 0
    part = torch.empty_like(labels)
    part[order] = first.cumsum(0) - 1
    owners = ordered[first]
    partial = rows.new_zeros(owners.numel(), rows.shape[1]).index_add_(0, part, rows)
    sums = torch.zeros(count, rows.shape[1], dtype=torch.float64, device=rows.device)
    for start in range(0, owners.numel(), ROW_CHUNK):
        chunk = slice(start, start + ROW_CHUNK)
        sums.index_add_(0, owners[chunk], partial[chunk].double())
    return sums
