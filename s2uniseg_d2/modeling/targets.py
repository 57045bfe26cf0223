"""The teacher's masks as the student's targets: cropped to every local view."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2uniseg_d2.core.ops.masks import crop_masks_to_views
from s2uniseg_d2.core.ops.transfer import to_device
from s2uniseg_d2.core.structures import Match, PseudoLabels, PseudoMasks, TargetMasks

KINDS = PseudoLabels._fields


class ViewTargets(NamedTuple):
    """What the student should find in the views of a batch.

    Attributes:
        masks: at stride 4 of the views.
        embeddings: ``(n, d)`` the teacher query of each mask.
    """

    masks: TargetMasks
    embeddings: Tensor

    def matched_embeddings(self, match: Match) -> Tensor:
        """The teacher queries of the matched pairs, ``(m, d)``, in the order of the match."""
        return self.embeddings[self.masks.rows(match)]


def crop_labels_to_views(
    batch: Sequence[Mapping[str, Any]],
    grid: tuple[int, int],
    device: torch.device,
    *,
    kinds: Collection[str] = KINDS,
    min_cells: int = 1,
) -> dict[str, ViewTargets]:
    """Teacher masks of each kind, cropped to all views of all pictures; masks that leave too little are dropped.

    Source: "Cropped Bipartite Matching" of the paper, which drops what leaves nothing. Which masks a view still sees is
    read from the device once, for both kinds and all views together.

    Args:
        batch: items with ``pseudo``, ``boxes`` and ``flips``; at least one view.
        grid: rows and columns of the views' stride-4 grid.
        device: where the targets are wanted; labels of the teacher are there already, offline ones are moved.
        kinds: which kinds of masks there are to find; another kind has no targets.
        min_cells: a mask that leaves fewer cells of the grid in a view is dropped there. The paper: 1.

    Returns:
        The targets under ``instance`` and ``semantic``.

    Raises:
        ValueError: if an item carries no pseudo-labels, or masks that are not bool or of two sizes.
    """
    labels = []
    for item in batch:
        if "pseudo" not in item:
            raise ValueError("every item of a training batch must hold 'pseudo' labels; PseudoLabelHook adds them")
        labels.append([getattr(item["pseudo"], kind) for kind in KINDS])
    all_masks, mask, sizes = _crop_to_all_views(batch, labels, grid, device)
    all_embeddings = torch.cat([to_device(kind.embeddings, device) for both in labels for kind in both])
    ends = np.cumsum(sizes)
    seen = np.split((all_masks.flatten(1).sum(dim=1) >= min_cells).cpu().numpy(), ends[:-1])
    targets = {}
    for number, kind in enumerate(KINDS):
        is_wanted = kind in kinds
        rows = [np.flatnonzero(seen[i] & is_wanted) + ends[i] - sizes[i] for i in range(number, len(sizes), len(KINDS))]
        joined = np.concatenate(rows)
        chosen, owners = to_device(torch.from_numpy(np.stack([joined, mask[joined]])), device)
        masks_of_kind = TargetMasks.of(all_masks[chosen], [len(view) for view in rows])
        targets[kind] = ViewTargets(masks_of_kind, all_embeddings[owners])
    return targets


def _crop_to_all_views(
    batch: Sequence[Mapping[str, Any]],
    labels: Sequence[Sequence[PseudoMasks]],
    grid: tuple[int, int],
    device: torch.device,
) -> tuple[Tensor, NDArray[np.int64], list[int]]:
    """Crop all masks of each picture to all its views.

    Returns:
        The masks ``(p, h, w)``, view by view and in each kind by kind; the number of each among the masks of the batch;
        and how many there are of each kind, view by view.
    """
    extents = [(both[0].masks.shape[1], both[0].masks.shape[2]) for both in labels]
    # On one grid for all pictures: what is beyond a picture's own is padding.
    height, width = (max(sides) for sides in zip(*extents, strict=True))
    masks = torch.zeros(
        sum(len(kind.masks) for both in labels for kind in both), height, width, dtype=torch.bool, device=device
    )
    pairs: list[NDArray[np.int64]] = []
    sizes: list[int] = []
    views: list[tuple[int, int]] = []
    first = 0
    for item, both, (rows, columns) in zip(batch, labels, extents, strict=True):
        start = first
        for kind in both:
            if kind.masks.dtype != torch.bool or kind.masks.shape[1:] != (rows, columns):
                raise ValueError(
                    f"masks must be bool of shape (n, {rows}, {columns}) in both kinds of a picture's labels, got "
                    f"{kind.masks.dtype} of shape {tuple(kind.masks.shape)}"
                )
            last = first + len(kind.masks)
            masks[first:last, :rows, :columns] = to_device(kind.masks, device)
            first = last
        for _ in item["boxes"]:
            pairs.append(np.stack([np.arange(start, first), np.full(first - start, len(views))]))
            sizes += [len(kind.masks) for kind in both]
            views.append((rows, columns))
    boxes = torch.cat([item["boxes"] for item in batch])
    flips = torch.cat([item["flips"] for item in batch]).tolist()
    joined = np.concatenate(pairs, axis=1)
    cropped = crop_masks_to_views(masks, boxes, flips, torch.from_numpy(joined), grid, extents=views)
    return cropped, joined[0], sizes
