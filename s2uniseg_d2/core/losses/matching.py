"""Bipartite matching of student queries and teacher masks.

Axes: b views, q queries, n masks, m matched pairs, h and w rows and columns of the stride-4 grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from s2uniseg_d2.core.structures import Match


def dice_cost(logits: Tensor, targets: Tensor) -> Tensor:
    """One minus the Dice similarity of every query's mask and every target, ``(q, n)`` float32 in [0, 1].

    Source: the matching criterion of Mask2Former, its Dice part, on all pixels; one is added to numerator and
    denominator, so that two empty masks cost nothing. Computed in float32 also under mixed precision.

    Args:
        logits: ``(q, h, w)``.
        targets: ``(n, h, w)`` bool on the same grid; n may be 0.

    Raises:
        ValueError: if the grids differ.
    """
    if logits.dim() != 3 or targets.shape[1:] != logits.shape[1:]:
        raise ValueError(
            f"logits (q, h, w) and targets (n, h, w) must share their grid, "
            f"got {tuple(logits.shape)} and {tuple(targets.shape)}"
        )
    # sums over thousands of pixels overflow or lose their ends in half precision
    with torch.autocast(logits.device.type, enabled=False):
        probabilities = logits.float().sigmoid().flatten(1)
        truth = targets.to(probabilities.dtype).flatten(1)
        overlap = probabilities @ truth.T
        total = probabilities.sum(dim=1)[:, None] + truth.sum(dim=1)[None, :]
    return 1.0 - (2.0 * overlap + 1.0) / (total + 1.0)


@torch.no_grad()
def match_masks(logits: Tensor, targets: Sequence[Tensor]) -> Match:
    """The one-to-one pairs of queries and targets with the least summed Dice cost, view by view.

    Source: "Cropped Bipartite Matching" of the paper: mask Dice similarity alone is the criterion. ``min(q, n_i)``
    pairs come out of view i; surplus targets and queries stay unmatched. The outcome is deterministic; among equal
    sums it is the one that scipy finds first. The paper is silent on views without masks: they have no pairs.

    Args:
        logits: ``(b, q, h, w)`` mask logits.
        targets: for every view ``(n_i, h, w)`` bool; n_i may be 0.

    Returns:
        Pairs sorted by (view, target), on the device of ``logits``.

    Raises:
        ValueError: if there is not one set of targets per view, or the grids differ.
        FloatingPointError: if a cost is not finite, which is a sign of weights or features that are not.
    """
    if logits.dim() != 4 or len(targets) != len(logits):
        raise ValueError(
            f"targets must hold one tensor for each view of logits (b, q, h, w), "
            f"got {len(targets)} for logits of shape {tuple(logits.shape)}"
        )
    num_queries = logits.shape[1]
    costs = [dice_cost(view, masks) for view, masks in zip(logits, targets, strict=True)]
    # the assignment runs on the CPU; each copy waits for the device, so all views travel in one
    flat = torch.cat([cost.flatten() for cost in costs]).cpu().numpy() if costs else np.empty(0, dtype=np.float32)
    if not np.isfinite(flat).all():
        others = int((~np.isfinite(flat)).sum())
        raise FloatingPointError(f"mask logits must give finite matching costs, got {others} others")

    pairs: list[np.ndarray] = [np.empty((3, 0), dtype=np.int64)]
    start = 0
    for view, masks in enumerate(targets):
        end = start + num_queries * len(masks)
        query, target = linear_sum_assignment(flat[start:end].reshape(num_queries, len(masks)))
        order = np.argsort(target)
        pairs.append(np.stack([np.full_like(query, view), query[order], target[order]]))
        start = end
    image, query, target = torch.from_numpy(np.concatenate(pairs, axis=1)).to(logits.device)
    return Match(image, query, target)
