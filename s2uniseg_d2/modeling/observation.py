"""Figures of a training step that show whether the student learns or collapses.

Axes: b views, q queries, m matched pairs, K prototypes, h and w rows and columns of the stride-4 grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s2uniseg_d2.core.losses.objectness import OBJECT
from s2uniseg_d2.core.observer import StepObserver
from s2uniseg_d2.core.structures import Match, QueryPrediction, TargetMasks

PIXEL_STEP = 4  # every fourth row and column of the masks is looked at


@torch.no_grad()
def observe_group(
    observer: StepObserver, group: str, prediction: QueryPrediction, targets: TargetMasks, match: Match
) -> None:
    """Add the figures of one query group after the last decoder layer.

    ``match/GROUP_queries`` and ``match/GROUP_masks`` are the shares of queries and of the teacher's cropped masks that
    have a partner; ``objectness/GROUP_matched`` and ``..._unmatched`` the mean probability of "object"; ``spread/
    GROUP_views`` and ``..._queries`` the standard deviation of a pixel's mask probability over the views and over the
    queries of a view, in [0, 0.5]: zero where all are the same.

    Args:
        observer: nothing is computed while it is not active.
        group: name of the query group.
        prediction: of its queries.
        targets: the teacher's masks on the views.
        match: the pairs.
    """
    if not observer.is_active:
        return
    views, queries = prediction.masks.shape[:2]
    pairs, masks = len(match.query), sum(targets.counts)
    observer.add(f"match/{group}_queries", pairs, views * queries)
    observer.add(f"match/{group}_masks", pairs, masks)
    is_object = prediction.objectness.float().softmax(dim=-1)[..., OBJECT]
    matched = is_object[match.image, match.query].sum()
    observer.add(f"objectness/{group}_matched", matched, pairs)
    observer.add(f"objectness/{group}_unmatched", is_object.sum() - matched, views * queries - pairs)
    seen = prediction.masks[..., ::PIXEL_STEP, ::PIXEL_STEP].float().sigmoid()
    if views > 1:
        observer.add(f"spread/{group}_views", seen.std(dim=0, correction=0).mean())
    observer.add(f"spread/{group}_queries", seen.std(dim=1, correction=0).mean())


@torch.no_grad()
def observe_distillation(
    observer: StepObserver,
    student_logits: Tensor,
    teacher_logits: Tensor,
    center: Tensor,
    temperatures: tuple[float, float],
) -> None:
    """Add the entropy, in nats, of the matched queries' distributions over prototypes, and the distributions' sum.

    Source: the two terms by whose balance DINO (arXiv 2104.14294, section 5.3) tells its collapses apart.

    Args:
        observer: nothing is computed while it is not active.
        student_logits: ``(m, K)``.
        teacher_logits: ``(m, K)``.
        center: ``(1, K)``, subtracted from the teacher's.
        temperatures: of student and teacher.
    """
    if not observer.is_active:
        return
    logits = {
        "student": student_logits.float() / temperatures[0],
        "teacher": (teacher_logits.float() - center.float()) / temperatures[1],
    }
    for name, scaled in logits.items():
        log_share = scaled.log_softmax(dim=1)
        share = log_share.exp()
        observer.add(f"query_sd/{name}_entropy", -(share * log_share).sum(), len(share))
        observer.add(f"assignment/{name}", share.sum(dim=0), len(share))
