"""Teacher and student side by side in the views of one picture, for a person to look at.

Axes: n masks, h and w rows and columns of the stride-4 grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from s2uniseg_d2.core.inference import score_instances
from s2uniseg_d2.core.losses.matching import MatchingProblem, match_masks
from s2uniseg_d2.core.structures import QueryPrediction

from .s2uniseg import GROUPS, S2UniSeg

NO_PARTNER = -1


class MaskPairs(NamedTuple):
    """The teacher's masks in a view and the student's masks that are matched with them, on the CPU.

    Attributes:
        masks: ``(n, h, w)`` bool, the teacher's, fine to coarse.
        clusters: ``(n,)`` int64, the teacher's cluster of each.
        partners: ``(n, h, w)`` bool; empty where there is no partner.
        partner_clusters: ``(n,)`` int64, the student's cluster; -1 where there is no partner.
    """

    masks: Tensor
    clusters: Tensor
    partners: Tensor
    partner_clusters: Tensor


class ViewInspection(NamedTuple):
    """What teacher and student say about one view.

    Attributes:
        instance: pairs of the instance group.
        semantic: pairs of the semantic group.
        best: ``(k, h, w)`` bool, the student's instance masks of the highest scores, best first, on the CPU.
    """

    instance: MaskPairs
    semantic: MaskPairs
    best: Tensor


@torch.no_grad()
def inspect_views(model: S2UniSeg, item: Mapping[str, Any], top: int = 20) -> list[ViewInspection]:
    """What the student, in evaluation mode, makes of the views of a labelled training item, beside its teacher.

    Neither weights nor statistics change, and no random number is drawn.

    Args:
        model: in any mode, which it keeps.
        item: of the mapper, with ``pseudo`` labels.
        top: most masks in ``best``.
    """
    was_training = model.training
    model.eval()
    views = (item["views"].to(model.device) - model.pixel_mean) / model.pixel_std
    final = model.sem_seg_head(model.backbone(views))[-1]
    clusters = model.student_head(model.query_proj(final.queries)).argmax(dim=-1)
    model.train(was_training)
    targets, slices = model.crop_targets([item]), model.sem_seg_head.slices
    own = {group: QueryPrediction(*(value[:, slices[group]] for value in final)) for group in GROUPS}
    matches = match_masks({group: MatchingProblem(own[group].masks, targets[group].masks) for group in GROUPS})
    pairs: dict[str, list[MaskPairs]] = {}
    for group in GROUPS:
        masks, match = targets[group].masks.masks, matches[group]
        rows = targets[group].masks.rows(match)
        partners = torch.zeros_like(masks)
        partner_clusters = torch.full((len(masks),), NO_PARTNER, device=masks.device)
        partners[rows] = own[group].masks[match.image, match.query] > 0
        partner_clusters[rows] = clusters[:, slices[group]][match.image, match.query]
        teachers = (model.teacher_head(targets[group].embeddings) - model.center.center).argmax(dim=-1)
        counts = list(targets[group].masks.counts)
        parts = (torch.split(value.cpu(), counts) for value in (masks, teachers, partners, partner_clusters))
        pairs[group] = [MaskPairs(*view) for view in zip(*parts, strict=True)]
    best = [_best(own["ins"], view, top) for view in range(len(views))]
    return [ViewInspection(*of_view) for of_view in zip(pairs["ins"], pairs["sem"], best, strict=True)]


def _best(prediction: QueryPrediction, view: int, top: int) -> Tensor:
    masks = prediction.masks[view]
    scores, _ = score_instances(masks, prediction.objectness[view])
    return (masks[scores.argsort(descending=True)[:top]] > 0).cpu()
