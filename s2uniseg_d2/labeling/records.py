"""From the masks of a picture to what a COCO file says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from s2uniseg_d2.core.ops.upscale import maps_to_pixels
from s2uniseg_d2.core.structures import PseudoMasks
from s2uniseg_d2.data.pictures import Picture

from .coco import KINDS
from .maker import GridLabels, PseudoMaskMaker
from .rle import RunLengths, encode_cells, encode_pixels

_CHUNK_PIXELS = 2**25  # pixels of masks held at a time where outlines are smoothed


@dataclass(frozen=True)
class Selection:
    """Which masks are kept.

    Attributes:
        kinds: "instance", "semantic" or both, in this order.
        min_score: smallest score.
        max_masks: most masks per picture and kind, those with the highest scores; 0 keeps all.

    Raises:
        ValueError: a value is unknown or outside its range.
    """

    kinds: tuple[str, ...] = KINDS
    min_score: float = 0.0
    max_masks: int = 0

    def __post_init__(self) -> None:
        if not self.kinds or self.kinds != tuple(kind for kind in KINDS if kind in self.kinds):
            raise ValueError(f"kinds must be among {KINDS}, each once and in this order, got {self.kinds}")
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"min_score must lie in [0, 1], got {self.min_score}")
        if self.max_masks < 0:
            raise ValueError(f"max_masks must not be negative, got {self.max_masks}")

    def keep(self, scores: torch.Tensor) -> torch.Tensor:
        """Indices of the masks that are kept, in their order; of equal scores the earlier mask is."""
        best = scores.argsort(descending=True, stable=True)[: self.max_masks or None]
        return best[scores[best] >= self.min_score].sort().values


class PictureRecord(NamedTuple):
    """One picture in COCO's terms.

    Attributes:
        annotations: without ids.
        embeddings: ``(n, d)`` float32, one row per annotation.
        vanished: how many masks cover no pixel and were left out.
    """

    annotations: list[dict[str, Any]]
    embeddings: NDArray[np.float32]
    vanished: int


def record_picture(
    maker: PseudoMaskMaker, grid: GridLabels, image_id: int, selection: Selection, image: Picture | None = None
) -> PictureRecord:
    """The annotations of one picture: instance masks before semantic ones, each fine to coarse.

    Args:
        maker: how masks become pixels.
        grid: the masks.
        image_id: of the picture.
        selection: which masks are kept.
        image: the picture, which the upscaling "edges" reads.
    """
    annotations, embeddings, vanished = [], [], 0
    for category, kind in enumerate(KINDS, start=1):
        if kind not in selection.kinds:
            continue
        found, scores = getattr(grid.labels, kind), grid.scores[category - 1]
        kept = selection.keep(scores)
        found, scores = PseudoMasks(*(value[kept] for value in found)), scores[kept]
        coded = _encode(maker, grid, found.masks, image)
        visible = [index for index, area in enumerate(coded.areas.tolist()) if area]
        vanished += len(kept) - len(visible)
        embeddings.append(found.embeddings[visible].float().numpy())
        for index in visible:
            annotations.append(
                {
                    "id": 0,
                    "image_id": image_id,
                    "category_id": category,
                    "iscrowd": 0,
                    "area": int(coded.areas[index]),
                    "bbox": coded.boxes[index].tolist(),
                    "segmentation": coded.segmentation(index, grid.size),
                    "kind": kind,
                    "level": int(found.level[index]),
                    "score": round(float(scores[index]), 4),
                }
            )
    return PictureRecord(annotations, np.concatenate(embeddings), vanished)


def _encode(maker: PseudoMaskMaker, grid: GridLabels, masks: torch.Tensor, image: Picture | None) -> RunLengths:
    if maker.upscale == "nearest":
        lines = [
            maps_to_pixels(torch.arange(cells)[:, None], (valid, 1.0), (pixels, 1))[:, 0].numpy()
            for cells, valid, pixels in zip(masks.shape[1:], grid.valid, grid.size, strict=True)
        ]
        return encode_cells(masks.numpy(), lines[0], lines[1])
    step = max(1, _CHUNK_PIXELS // (grid.size[0] * grid.size[1]))
    parts = [encode_pixels(maker.masks_to_pixels(part, grid, image)) for part in masks.split(step)]
    return RunLengths(
        [text for part in parts for text in part.counts],
        np.concatenate([part.areas for part in parts]),
        np.concatenate([part.boxes for part in parts]),
    )
