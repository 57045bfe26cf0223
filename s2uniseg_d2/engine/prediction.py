"""A model's outputs as evaluations want them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from s2uniseg_d2.core.ops.dense_crf import dense_crf
from s2uniseg_d2.core.semantic_scores import mean_scores

from .hooks import unwrap


class Predictor:
    """Calls a model in evaluation mode; semantic labels may come from more than one look at the picture.

    With ``flip`` they come from the picture and its mirror image, with ``crf`` they are made to agree with its colours.

    Source: STEGO's evaluation takes the mean of the codes of a picture and of its mirror image, turned back, before it
    finds classes. Differs from it: queries of two passes do not correspond, so what has a mean here is each class's
    score at each pixel (:func:`~s2uniseg_d2.core.semantic_scores.semantic_scores`); its dense CRF, with its constants,
    reads these scores as probabilities. Instances and panoptic segments are those of the picture as it is.

    Args:
        model: an S2UniSeg, perhaps inside ``DistributedDataParallel``.
        flip: whether the mirror image is looked at too, at twice the cost.
        crf: whether :func:`~s2uniseg_d2.core.ops.dense_crf.dense_crf` follows.
    """

    def __init__(self, model: nn.Module, *, flip: bool = False, crf: bool = False) -> None:
        self._network, self._flip, self._crf = unwrap(model), flip, crf

    @torch.no_grad()
    def __call__(self, batch: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return what :meth:`S2UniSeg.predict` does.

        Raises:
            ValueError: with ``flip`` or ``crf``, if the model predicts UniAP's labels, which have no scores.
        """
        if not self._flip and not self._crf:
            return self._network.predict(batch)
        settings = self._network.prediction
        if settings.predictor != "decoder":
            raise ValueError(f"flip and crf need the predictor 'decoder', got {settings.predictor!r}")
        self._network.prediction = dataclasses.replace(settings, gives_semantic_scores=True)
        try:
            outputs = self._network.predict(batch)
            turned = [{**item, "image": item["image"].flip(-1)} for item in batch] if self._flip else []
            mirrored = self._network.predict(turned) if turned else [None] * len(outputs)
        finally:
            self._network.prediction = settings
        for item, output, other in zip(batch, outputs, mirrored, strict=True):
            scores = output.pop("sem_seg_scores")
            if other is not None:
                scores = mean_scores(scores, other["sem_seg_scores"].mirrored())
            if self._crf:
                scores = scores._replace(scores=_refine(scores.scores, item["image"]))
            output["sem_seg_labels"] = scores.winner()
        return outputs


def _refine(scores: Tensor, image: Tensor) -> Tensor:
    """Scores after the CRF over the picture at their size."""
    size = (scores.shape[-2], scores.shape[-1])
    picture = image[None].float().to(scores.device)
    if picture.shape[-2:] != size:
        picture = functional.interpolate(picture, size, mode="bilinear", align_corners=False)
    return dense_crf(scores, picture[0])
