"""The teacher's masks as the student's targets: cropped to every local view."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from s2uniseg_d2.core.ops.masks import crop_masks
from s2uniseg_d2.core.ops.transfer import to_device
from s2uniseg_d2.core.structures import Match, PseudoLabels, TargetMasks

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
        ValueError: if an item carries no pseudo-labels.
    """
    cropped: list[Tensor] = []
    embeddings: list[Tensor] = []
    sizes: list[int] = []  # masks of each kind, view by view
    for item in batch:
        if "pseudo" not in item:
            raise ValueError("every item of a training batch must hold 'pseudo' labels; PseudoLabelHook adds them")
        labels = [getattr(item["pseudo"], kind) for kind in KINDS]
        masks = torch.cat([to_device(kind.masks, device) for kind in labels])
        queries = torch.cat([to_device(kind.embeddings, device) for kind in labels])
        for box, flip in zip(item["boxes"], item["flips"].tolist(), strict=True):
            cropped.append(crop_masks(masks, box, flip, grid))
            embeddings.append(queries)
            sizes += [len(kind.masks) for kind in labels]
    all_masks, all_embeddings = torch.cat(cropped), torch.cat(embeddings)
    ends = np.cumsum(sizes)
    seen = np.split((all_masks.flatten(1).sum(dim=1) >= min_cells).cpu().numpy(), ends[:-1])
    targets = {}
    for number, kind in enumerate(KINDS):
        is_wanted = kind in kinds
        rows = [np.flatnonzero(seen[i] & is_wanted) + ends[i] - sizes[i] for i in range(number, len(sizes), len(KINDS))]
        chosen = to_device(torch.from_numpy(np.concatenate(rows)), device)
        masks_of_kind = TargetMasks.of(all_masks[chosen], [len(view) for view in rows])
        targets[kind] = ViewTargets(masks_of_kind, all_embeddings[chosen])
    return targets
