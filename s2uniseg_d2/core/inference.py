"""From the outputs of the queries to instances, a semantic map and a panoptic map of one picture.

Axes: q queries, n instances, H and W rows and columns of the picture. Memory stays within a few maps beside the inputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from s2uniseg_d2.core.ops.masks import mask_boxes


class InstancePrediction(NamedTuple):
    """Instances of one picture, best first.

    Attributes:
        masks: ``(n, H, W)`` bool, none empty.
        scores: ``(n,)`` float32 in [0, 1].
        classes: ``(n,)`` int64 pseudo-classes.
        boxes: ``(n, 4)`` float32 XYXY in pixels, right and bottom exclusive.
    """

    masks: Tensor
    scores: Tensor
    classes: Tensor
    boxes: Tensor


Segment = dict[str, int | float | bool]


@torch.no_grad()
def instance_inference(
    masks: Tensor, objectness: Tensor, pseudo_class: Tensor, *, top_k: int = 100
) -> InstancePrediction:
    """The ``top_k`` best instances, scored by objectness times the mean probability inside the mask.

    Source: Mask2Former's instance inference for a single class. Differs from it: the best are chosen by the whole
    score, not by the class score alone, because one class leaves nothing else to choose; the pseudo-class comes from
    the head and does not multiply the list. Empty masks are dropped; equal scores keep the order of the queries.

    Args:
        masks: ``(q, H, W)`` logits; a pixel belongs to the mask where its logit is above 0.
        objectness: ``(q, 2)`` logits of (object, no object).
        pseudo_class: ``(q,)`` int64.
        top_k: at most this many come out.

    Raises:
        ValueError: if the inputs do not have one row per query or ``top_k`` is negative.
    """
    _check_queries("masks", masks, objectness, pseudo_class)
    if top_k < 0:
        raise ValueError(f"top_k must be at least 0, got {top_k}")
    scores, areas = score_instances(masks, objectness)
    kept = (areas > 0).nonzero()[:, 0]
    order = kept[scores[kept].sort(descending=True, stable=True).indices[:top_k]]
    chosen = masks[order] > 0
    return InstancePrediction(chosen, scores[order], pseudo_class[order], mask_boxes(chosen))


@torch.no_grad()
def score_instances(masks: Tensor, objectness: Tensor) -> tuple[Tensor, Tensor]:
    """Objectness times the mean probability inside the mask, ``(q,)`` in [0, 1], and the masks' areas in pixels.

    Args:
        masks: ``(q, H, W)`` logits; an empty mask scores 0.
        objectness: ``(q, 2)`` logits of (object, no object).
    """
    # query by query: at full resolution the probabilities of all queries together would take gigabytes
    areas, inside = masks.new_zeros((2, len(masks)), dtype=torch.float32)
    for i, mask in enumerate(masks):
        present = mask > 0
        areas[i] = present.sum()
        inside[i] = mask.float().sigmoid().mul_(present).sum()
    return _object_probability(objectness) * inside / (areas + 1e-6), areas


@torch.no_grad()
def semantic_inference(masks: Tensor, objectness: Tensor, pseudo_class: Tensor) -> Tensor:
    """The pseudo-class of every pixel, ``(H, W)`` int64.

    Source: Mask2Former's semantic inference: the class whose queries have the largest sum of objectness times mask
    probability. Every pixel gets a class; on a tie it is the smallest. Only classes that some query has are looked
    at, so that memory does not grow with K.

    Args:
        masks: ``(q, H, W)`` logits, q at least 1.
        objectness: ``(q, 2)`` logits of (object, no object).
        pseudo_class: ``(q,)`` int64.

    Raises:
        ValueError: if the inputs do not have one row per query, or there is no query.
    """
    _check_queries("masks", masks, objectness, pseudo_class)
    if len(masks) == 0:
        raise ValueError("masks must hold at least one query, got 0")
    weight = _object_probability(objectness)
    members: dict[int, list[int]] = {}
    for query, label in enumerate(pseudo_class.tolist()):
        members.setdefault(label, []).append(query)
    best = masks.new_full(masks.shape[1:], -1.0, dtype=torch.float32)
    winner = torch.zeros(masks.shape[1:], dtype=torch.int64, device=masks.device)
    for label in sorted(members):
        score = torch.zeros_like(best)
        for query in members[label]:
            score += weight[query] * masks[query].float().sigmoid()
        winner = torch.where(score > best, label, winner)
        best = torch.maximum(best, score)
    return winner


@torch.no_grad()
def panoptic_inference(
    ins_masks: Tensor,
    ins_objectness: Tensor,
    ins_class: Tensor,
    sem_masks: Tensor,
    sem_objectness: Tensor,
    sem_class: Tensor,
    *,
    object_threshold: float = 0.8,
    overlap_threshold: float = 0.8,
) -> tuple[Tensor, list[Segment]]:
    """Segments that do not overlap: things from the instance queries, stuff from the semantic ones.

    Source: Mask2Former's panoptic inference. Queries of objectness above ``object_threshold`` compete for every pixel
    with objectness times mask probability. A segment is dropped when the pixels it won are less than
    ``overlap_threshold`` of the pixels where its own probability is at least 0.5; what remains of it is where both
    hold. Stuff of equal pseudo-class becomes one segment, things never merge. The paper is silent on things and
    stuff: the groups decide. On a tie the earlier query wins, instance queries before semantic ones.

    Args:
        ins_masks: ``(q_i, H, W)`` logits.
        ins_objectness: ``(q_i, 2)`` logits of (object, no object).
        ins_class: ``(q_i,)`` int64 pseudo-classes.
        sem_masks: ``(q_s, H, W)`` logits on the same grid.
        sem_objectness: ``(q_s, 2)``.
        sem_class: ``(q_s,)``.
        object_threshold: in [0, 1]; the objectness must be greater.
        overlap_threshold: in [0, 1].

    Returns:
        The map, ``(H, W)`` int32 with 0 for void, and its segments in the order of the queries: ``id`` (1, 2, ...),
        ``isthing``, ``category_id`` (the pseudo-class), ``score`` (objectness, of merged stuff the highest) and
        ``area`` in pixels. Without a query above the threshold the map is all void and there are no segments.

    Raises:
        ValueError: if the inputs do not fit or a threshold is outside [0, 1].
    """
    _check_queries("ins_masks", ins_masks, ins_objectness, ins_class)
    _check_queries("sem_masks", sem_masks, sem_objectness, sem_class)
    if ins_masks.shape[1:] != sem_masks.shape[1:]:
        raise ValueError(
            f"ins_masks and sem_masks must share their grid, got {tuple(ins_masks.shape)} and {tuple(sem_masks.shape)}"
        )
    for name, threshold in (("object_threshold", object_threshold), ("overlap_threshold", overlap_threshold)):
        if not 0 <= threshold <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {threshold}")
    num_things = len(ins_masks)
    probability = _object_probability(torch.cat([ins_objectness, sem_objectness]))
    scores = probability.tolist()
    labels = torch.cat([ins_class, sem_class]).tolist()
    candidates = [query for query, kept in enumerate((probability > object_threshold).tolist()) if kept]
    logits = [ins_masks[query] if query < num_things else sem_masks[query - num_things] for query in candidates]
    winner, won, own, final = _compete(logits, probability[candidates], ins_masks)

    segments: list[Segment] = []
    stuff: dict[int, Segment] = {}
    # candidate -> segment id; the last entry stands for pixels that nobody holds
    ids = [0] * (len(candidates) + 1)
    for i, query in enumerate(candidates):
        if own[i] == 0 or final[i] == 0 or won[i] / own[i] < overlap_threshold:
            continue
        is_thing = query < num_things
        segment = None if is_thing else stuff.get(labels[query])
        if segment is None:
            segment = {
                "id": len(segments) + 1,
                "isthing": is_thing,
                "category_id": labels[query],
                "score": scores[query],
                "area": final[i],
            }
            segments.append(segment)
            if not is_thing:
                stuff[labels[query]] = segment
        else:
            segment["score"] = max(segment["score"], scores[query])
            segment["area"] += final[i]
        ids[i] = int(segment["id"])
    return torch.tensor(ids, dtype=torch.int32, device=winner.device)[winner], segments


def _compete(logits: list[Tensor], weight: Tensor, like: Tensor) -> tuple[Tensor, list[int], list[int], list[int]]:
    """Give every pixel to the query with the largest weight times probability.

    Returns:
        The holder of every pixel ``(H, W)``, which is ``len(logits)`` where the winner's own probability is below
        0.5; and of every query the pixels it won, the pixels of its own mask, and the pixels that are both.
    """
    count = len(logits)
    best = like.new_full(like.shape[1:], -1.0, dtype=torch.float32)
    winner = torch.full(like.shape[1:], count, dtype=torch.int64, device=like.device)
    holder = winner.clone()
    own = torch.zeros(count, dtype=torch.int64, device=like.device)
    for i, mask in enumerate(logits):
        # one query at a time keeps memory at a few maps
        present = mask >= 0
        own[i] = present.sum()
        score = weight[i] * mask.float().sigmoid()
        better = score > best
        best = torch.where(better, score, best)
        winner = torch.where(better, i, winner)
        holder = torch.where(better, torch.where(present, i, count), holder)
    won, final = (torch.bincount(indices.flatten(), minlength=count + 1)[:count] for indices in (winner, holder))
    areas = torch.stack([won, own, final]).tolist()
    return holder, areas[0], areas[1], areas[2]


def _object_probability(objectness: Tensor) -> Tensor:
    return objectness.float().softmax(dim=-1)[:, 0]


def _check_queries(name: str, masks: Tensor, objectness: Tensor, pseudo_class: Tensor) -> None:
    queries = len(masks)
    if masks.dim() != 3 or objectness.shape != (queries, 2) or pseudo_class.shape != (queries,):
        raise ValueError(
            f"{name} (q, H, W), objectness (q, 2) and pseudo-classes (q,) must have one row per query, "
            f"got {tuple(masks.shape)}, {tuple(objectness.shape)} and {tuple(pseudo_class.shape)}"
        )
