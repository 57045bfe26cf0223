"""Overlays of pseudo-masks for a person to look at."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from s2uniseg_d2.data.pictures import Picture
from s2uniseg_d2.engine.drawing import draw_label_map, grid, resize_to

from .maker import GridLabels, MaskSet, PseudoMaskMaker

HEIGHT_PX = 320
LONGEST_PX = 640


def draw_preview(maker: PseudoMaskMaker, labels: GridLabels, image: Picture) -> Picture:
    """A row of pictures: the picture, its instances with the finest or the coarsest on top, its semantic masks."""
    height, width = image.shape[:2]
    scale = min(HEIGHT_PX / height, LONGEST_PX / width)
    small = resize_to(image, (max(1, round(height * scale)), max(1, round(width * scale))))
    instance, semantic = maker.to_pixels(labels._replace(size=small.shape[:2]), small)
    coarse_last = range(len(instance.masks))
    cells = [
        small,
        draw_label_map(small, _paint(instance, reversed(coarse_last))),
        draw_label_map(small, _paint(instance, coarse_last)),
        draw_label_map(small, _paint(semantic, range(len(semantic.masks)))),
    ]
    titles = ["picture", "instances, fine on top", "instances, coarse on top", "semantic, coarse on top"]
    return grid([cells], titles)


def _paint(found: MaskSet, order: Iterable[int]) -> NDArray[np.int64]:
    """The number of the last mask in an order that covers each pixel, -1 where none does."""
    index = np.full(found.masks.shape[1:], -1, dtype=np.int64)
    for number in order:
        index[found.masks[number]] = number
    return index
