"""The picture of a training step: what the teacher labelled, and what the student makes of its views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from s2uniseg_d2.modeling.inspection import MaskPairs, ViewInspection

from .drawing import (
    PAPER,
    Image,
    draw_boxes,
    draw_label_map,
    draw_masks,
    grid,
    resize_to,
    upsample_labels,
    upsample_masks,
)
from .panel import as_picture, draw_training_batch

VIEWS_SHOWN = 4
TITLES = (
    "view",
    "teacher: instances",
    "student: their partners",
    "student: best instances",
    "teacher: semantic, by cluster",
    "student: partners, by cluster",
)


def draw_training_step(item: Mapping[str, Any], views: Sequence[ViewInspection], *, height_px: int = 240) -> Image:
    """The labels of a picture in one row, and below it a row for each of its first four views; uint8.

    A view's row shows the view in the frame of its box; the teacher's coarsest instance masks, and the student's masks
    matched with them in the same colours; the student's best instances, in colours of their own; and the semantic
    masks of the teacher and their partners, each in the colour of its cluster: one colour is one cluster everywhere,
    so equal colours are what QuerySD works for.

    Args:
        item: one batch item with ``image``, ``views``, ``boxes``, ``flips`` and ``pseudo``.
        views: of the same item, in order.
        height_px: height of the first row's pictures; those below have three quarters of it.

    Raises:
        ValueError: if a key is missing, or there is not one inspection per view.
    """
    if len(views) != len(item["views"]):
        raise ValueError(f"views must hold one inspection per view ({len(item['views'])}), got {len(views)}")
    rows = [
        _draw_view(resize_to(as_picture(view), (height_px * 3 // 4,) * 2), number, seen)
        for number, (view, seen) in enumerate(zip(item["views"][:VIEWS_SHOWN], views[:VIEWS_SHOWN], strict=True))
    ]
    # the views have rows of their own
    pages = [draw_training_batch({**item, "views": item["views"][:0]}, height_px=height_px)]
    if rows:
        pages.append(grid(rows, TITLES))
    width = max(page.shape[1] for page in pages)
    return np.concatenate(
        [np.pad(page, ((0, 0), (0, width - page.shape[1]), (0, 0)), constant_values=PAPER) for page in pages]
    )


def _draw_view(picture: Image, number: int, seen: ViewInspection) -> list[Image]:
    order = range(len(seen.instance.masks))
    return [
        draw_boxes(picture, [(0, 0, *picture.shape[1::-1])], labels=[number]),
        _cover(picture, seen.instance.masks, order),
        _cover(picture, seen.instance.partners, order),
        draw_masks(picture, upsample_masks(seen.best, picture.shape[:2])),
        *_by_cluster(picture, seen.semantic),
    ]


def _by_cluster(picture: Image, pairs: MaskPairs) -> list[Image]:
    return [
        _cover(picture, pairs.masks, pairs.clusters.tolist()),
        _cover(picture, pairs.partners, pairs.partner_clusters.tolist()),
    ]


def _cover(picture: Image, masks: Tensor, labels: Sequence[int]) -> Image:
    """Later masks, which are coarser, over the earlier ones."""
    index = np.full(tuple(masks.shape[1:]), -1, dtype=np.int64)
    for mask, label in zip(masks.numpy(), labels, strict=True):
        index[mask] = label
    return draw_label_map(picture, upsample_labels(index, picture.shape[:2]))
