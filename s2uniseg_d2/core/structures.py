"""The values that pass between the parts of S2-UniSeg.

Axes: b pictures or views, q queries, n masks, d embedding width, c channels, h and w rows and columns of a grid.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


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
