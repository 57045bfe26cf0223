"""Scores of the pseudo-classes that one picture's queries have, pixel by pixel.

Axes: q queries, c pseudo-classes that some query has, H and W rows and columns of the picture.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SemanticScores(NamedTuple):
    """The classes of one picture with their score at every pixel.

    Attributes:
        labels: ``(c,)`` int64 pseudo-classes, increasing.
        scores: ``(c, H, W)`` float32, at least 0; a class that is not in ``labels`` scores 0 everywhere.
    """

    labels: Tensor
    scores: Tensor

    def mirrored(self) -> SemanticScores:
        """The scores of the picture's mirror image."""
        return self._replace(scores=self.scores.flip(-1))

    def winner(self) -> Tensor:
        """The class of the highest score at every pixel, ``(H, W)`` int64; on a tie the smallest."""
        # arg-max leaves ties open, so the first class that reaches the maximum is looked for
        reached = self.scores == self.scores.amax(dim=0)
        return self.labels[reached.int().argmax(dim=0)]


@torch.no_grad()
def semantic_scores(masks: Tensor, objectness: Tensor, pseudo_class: Tensor) -> SemanticScores:
    """The sum over the queries of each class of objectness times mask probability.

    Their :meth:`SemanticScores.winner` is what :func:`~s2uniseg_d2.core.inference.semantic_inference` gives with less
    memory.

    Args:
        masks: ``(q, H, W)`` logits, q at least 1.
        objectness: ``(q, 2)`` logits of (object, no object).
        pseudo_class: ``(q,)`` int64.

    Raises:
        ValueError: if there is no query, or the inputs do not have one row per query.
    """
    if not len(masks) or objectness.shape != (len(masks), 2) or pseudo_class.shape != (len(masks),):
        raise ValueError(
            f"masks (q, H, W), objectness (q, 2) and pseudo_class (q,) must have one row per query and one query at "
            f"least, got {tuple(masks.shape)}, {tuple(objectness.shape)} and {tuple(pseudo_class.shape)}"
        )
    weight = objectness.float().softmax(dim=-1)[:, 0]
    classes = pseudo_class.tolist()
    labels = sorted(set(classes))
    scores = masks.new_zeros((len(labels), *masks.shape[1:]), dtype=torch.float32)
    for query, label in enumerate(classes):
        scores[labels.index(label)] += weight[query] * masks[query].float().sigmoid()
    return SemanticScores(torch.tensor(labels, device=masks.device), scores)


def mean_scores(first: SemanticScores, second: SemanticScores) -> SemanticScores:
    """The mean of two scores of the same picture, over the classes of both; a class that one lacks scores 0 there.

    Raises:
        ValueError: if their grids differ.
    """
    if first.scores.shape[1:] != second.scores.shape[1:]:
        raise ValueError(f"grids must be equal, got {tuple(first.scores.shape)} and {tuple(second.scores.shape)}")
    labels = sorted({*first.labels.tolist(), *second.labels.tolist()})
    total = first.scores.new_zeros((len(labels), *first.scores.shape[1:]))
    for part in (first, second):
        total[[labels.index(label) for label in part.labels.tolist()]] += part.scores / 2
    return SemanticScores(torch.tensor(labels, device=total.device), total)
