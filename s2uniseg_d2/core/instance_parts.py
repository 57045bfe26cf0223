"""Instances out of query masks that hold several, or the same one again.

Neither step is in the paper; both are off in its recipes. Axes: q queries, n parts, H and W rows and columns.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

# a logit that no probability survives, for pixels of a query's mask that belong to its other parts
OUTSIDE = -100.0
# of the picture; what is smaller is left out, for a mask's rim crumbles into single pixels
MIN_PART_SHARE = 0.001


@torch.no_grad()
def split_connected(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Mask logits of the connected parts of every query's mask, and the query of each part.

    Differs from the paper, which keeps a query's mask whole: UniAP's instance masks are connected regions, but a young
    student cannot tell two things alike apart and puts both into one mask. Pixels are connected through their sides, as
    UniAP's tokens are. The scan runs on the CPU, mask by mask.

    Args:
        masks: ``(q, H, W)`` logits; a pixel belongs to the mask where its logit is above 0.

    Returns:
        ``(n, H, W)`` logits, those of the query inside the part and OUTSIDE elsewhere, and ``(n,)`` int64; by query,
        then by first pixel. Parts below MIN_PART_SHARE of the picture are left out; n may be 0.

    Raises:
        ValueError: if ``masks`` does not have three axes.
    """
    if masks.dim() != 3:
        raise ValueError(f"masks must have shape (q, H, W), got {tuple(masks.shape)}")
    least = MIN_PART_SHARE * masks.shape[1] * masks.shape[2]
    parts, queries = [masks[:0]], []
    for query, mask in enumerate(masks):
        numbers, _ = ndimage.label((mask > 0).cpu().numpy())
        areas = np.bincount(numbers.ravel())
        places = torch.from_numpy(numbers).to(masks.device)
        for number in (np.flatnonzero(areas[1:] >= least) + 1).tolist():
            parts.append(mask.masked_fill(places != number, OUTSIDE)[None])
            queries.append(query)
    return torch.cat(parts), torch.tensor(queries, dtype=torch.int64, device=masks.device)


@torch.no_grad()
def drop_duplicates(masks: Tensor, scores: Tensor, iou: float) -> Tensor:
    """Places of the masks that stay, best first: each overlaps every better one that stays by at most ``iou``.

    Differs from the paper, whose one-to-one matching is to keep queries apart: UniAP's layers hold nearly equal masks
    of one thing, and the student learns each of them with a query of its own.

    Args:
        masks: ``(n, H, W)`` bool; n may be 0.
        scores: ``(n,)``; equal ones keep their order.
        iou: intersection over union, in [0, 1]; 1 keeps all.

    Raises:
        ValueError: if ``iou`` is outside [0, 1] or there is not one score per mask.
    """
    if not 0 <= iou <= 1:
        raise ValueError(f"iou must lie in [0, 1], got {iou}")
    if scores.shape != masks.shape[:1]:
        raise ValueError(f"scores must hold one value for each of {len(masks)} masks, got {tuple(scores.shape)}")
    order = scores.sort(descending=True, stable=True).indices
    if iou == 1:
        return order
    flat = masks[order].flatten(1).float()
    overlap = flat @ flat.T
    areas = overlap.diagonal()
    # on the CPU: the greedy choice asks for one number after the other
    beyond = (overlap > iou * (areas[:, None] + areas[None, :] - overlap)).cpu().numpy()
    kept: list[int] = []
    for place in range(len(beyond)):
        if not beyond[place, kept].any():
            kept.append(place)
    return order[torch.tensor(kept, dtype=torch.int64, device=order.device)]
