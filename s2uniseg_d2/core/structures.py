"""The values that pass between the parts of S2-UniSeg.

Axes: b pictures or views, q queries, n masks, d embedding width, c channels, h and w rows and columns of a grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from s2uniseg_d2.core.ops.transfer import to_device


class FeaturePyramid(NamedTuple):
    """Feature maps of one encoder at strides 4, 8, 16 and 32, each ``(b, c, H / stride, W / stride)``."""

    res2: Tensor
    res3: Tensor
    res4: Tensor
    res5: Tensor


class PseudoMasks(NamedTuple):
    """Masks that a labeler found in one picture, in the order of discovery (fine to coarse).

    Attributes:
        masks: ``(n, h, w)`` bool on the token grid.
        embeddings: ``(n, d)`` float rows of unit length, the teacher queries.
        level: ``(n,)`` int64, the 0-based UniAP layer that made the mask.
    """

    masks: Tensor
    embeddings: Tensor
    level: Tensor


class PseudoLabels(NamedTuple):
    """Instance masks (connected regions) and semantic masks (scattered regions) of one picture."""

    instance: PseudoMasks
    semantic: PseudoMasks


class QueryPrediction(NamedTuple):
    """What the query decoder says after one of its layers.

    Attributes:
        masks: ``(b, q, h, w)`` mask logits at stride 4.
        objectness: ``(b, q, 2)`` logits of (object, no object).
        queries: ``(b, q, c)`` query features after the decoder's final LayerNorm.
    """

    masks: Tensor
    objectness: Tensor
    queries: Tensor


class TargetMasks(NamedTuple):
    """The target masks of all views of a batch, one view's after the other's.

    Attributes:
        masks: ``(n, h, w)`` bool, the views' masks joined.
        counts: masks of each view; their sum is n.
        starts: ``(b,)`` int64, the first row of each view.
        views: ``(n,)`` int64, the view of each row.
    """

    masks: Tensor
    counts: tuple[int, ...]
    starts: Tensor
    views: Tensor

    @classmethod
    def of(cls, masks: Tensor, counts: Sequence[int]) -> TargetMasks:
        """Joined ``masks`` of views with ``counts`` masks each.

        Raises:
            ValueError: if the counts do not add up to the masks.
        """
        if sum(counts) != len(masks):
            raise ValueError(f"counts must add up to the {len(masks)} masks, got {tuple(counts)}")
        lengths = np.array(counts, dtype=np.int64)
        starts = torch.from_numpy(lengths.cumsum() - lengths)
        views = torch.from_numpy(np.arange(len(lengths)).repeat(lengths))
        return cls(masks, tuple(counts), to_device(starts, masks.device), to_device(views, masks.device))

    @classmethod
    def join(cls, masks: Sequence[Tensor]) -> TargetMasks:
        """Masks ``(n_i, h, w)`` of every view; n_i may be 0, but there must be a view."""
        return cls.of(torch.cat(list(masks)), [len(view) for view in masks])

    def rows(self, match: Match) -> Tensor:
        """The row of each matched pair's target, ``(m,)``."""
        return self.starts[match.image] + match.target


class Match(NamedTuple):
    """Matched pairs of a batch, three parallel ``(m,)`` int64 vectors sorted by (image, target).

    Attributes:
        image: which picture or view of the batch.
        query: which student query of it.
        target: which teacher mask of it.
    """

    image: Tensor
    query: Tensor
    target: Tensor
