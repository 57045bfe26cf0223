"""The teacher's masks as the student's targets: cropped to every local view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from s2uniseg_d2.core.ops.masks import crop_masks, nonempty
from s2uniseg_d2.core.structures import Match, PseudoMasks


class ViewTargets(NamedTuple):
    """What the student should find in each view of a batch.

    Attributes:
        masks: per view ``(n, h, w)`` bool at stride 4 of the view.
        embeddings: per view ``(n, d)`` teacher queries.
    """

    masks: list[Tensor]
    embeddings: list[Tensor]

    def matched_embeddings(self, match: Match) -> Tensor:
        """The teacher queries of the matched pairs, ``(m, d)``, in the order of the match."""
        counts = torch.tensor([len(embeddings) for embeddings in self.embeddings])
        offsets = (counts.cumsum(0) - counts).to(match.image.device)
        return torch.cat(self.embeddings)[offsets[match.image] + match.target]


def crop_labels_to_views(
    batch: Sequence[Mapping[str, Any]], grid: tuple[int, int], kind: str, device: torch.device
) -> ViewTargets:
    """Teacher masks of one kind, cropped to all views of all pictures; masks that leave no pixel are dropped.

    Source: "Cropped Bipartite Matching" of the paper.

    Args:
        batch: items with ``pseudo``, ``boxes`` and ``flips``.
        grid: rows and columns of the views' stride-4 grid.
        kind: ``instance`` or ``semantic``.
        device: where the targets are wanted; labels of the teacher are there already, offline ones are moved.

    Raises:
        ValueError: if an item carries no pseudo-labels.
    """
    masks: list[Tensor] = []
    embeddings: list[Tensor] = []
    for item in batch:
        if "pseudo" not in item:
            raise ValueError("every item of a training batch must hold 'pseudo' labels; PseudoLabelHook adds them")
        labels = PseudoMasks(*(value.to(device, non_blocking=True) for value in getattr(item["pseudo"], kind)))
        for box, flip in zip(item["boxes"], item["flips"].tolist(), strict=True):
            cropped = crop_masks(labels.masks, box, flip, grid)
            seen = nonempty(cropped)
            masks.append(cropped[seen])
            embeddings.append(labels.embeddings[seen])
    return ViewTargets(masks, embeddings)
