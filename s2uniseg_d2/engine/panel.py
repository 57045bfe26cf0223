"""The pictures a person looks at: a training batch with its labels, and predictions beside labels and truth."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from s2uniseg_d2.core.ops.masks import crop_masks
from s2uniseg_d2.core.structures import PseudoLabels, PseudoMasks

from .drawing import (
    PAPER,
    Image,
    Masks,
    as_masks,
    check_image,
    draw_boxes,
    draw_label_map,
    draw_masks,
    grid,
    resize_to,
    upsample_labels,
    upsample_masks,
)

LabelMap = Tensor | NDArray[np.integer]
VIEW_STRIDE = 4  # of the grid on which the student meets the teacher's cropped masks
VIEWS_IN_ONE_ROW = 2  # more local views stand in two rows
GAP_PX = 6


class ComparisonRow(NamedTuple):
    """What is known of one picture; what is None is left white.

    Attributes:
        image: uint8 ``(H, W, 3)`` or ``(3, H, W)``, RGB.
        pseudo_instances: UniAP's instance masks ``(n, h, w)`` bool on any grid.
        instances: the student's masks ``(n, h, w)`` bool on any grid.
        scores: ``(n,)`` of ``instances``; None keeps their order.
        semantic: ``(h, w)`` integer map of pseudo-classes; negative is no class.
        panoptic: ``(h, w)`` integer map of segments; 0 is void.
        truth: annotated instance masks ``(n, h, w)`` bool on any grid.
        semantic_truth: ``(h, w)`` integer map of true classes; negative is no class.
        panoptic_truth: ``(h, w)`` integer map of true segments; 0 is void.
    """

    image: Image | Tensor
    pseudo_instances: Masks | None = None
    instances: Masks | None = None
    scores: Tensor | NDArray[np.floating] | None = None
    semantic: LabelMap | None = None
    panoptic: LabelMap | None = None
    truth: Masks | None = None
    semantic_truth: LabelMap | None = None
    panoptic_truth: LabelMap | None = None


def draw_training_batch(
    item: Mapping[str, Any],
    cropped: Sequence[Masks] | None = None,
    *,
    height_px: int = 240,
) -> Image:
    """One row of pictures that shows what the student learns from, uint8 ``(rows, columns, 3)``.

    From left to right: the global view with the boxes of the local views, UniAP's instances after its first, middle
    and last layer, the semantic masks of the last layer, and the local views with the teacher's instance masks, each
    framed in the colour of its box. An instance mask has one colour in the whole row, unless ``cropped`` is given.

    Args:
        item: one batch item with ``image``, ``views``, ``boxes``, ``flips`` and ``pseudo``.
        cropped: the teacher's masks on each view, ``(n, h, w)`` bool on any grid, coloured by their order; None crops
            the last layer's instances of ``pseudo`` here.
        height_px: height of every picture in the row.

    Raises:
        ValueError: if a key is missing, or ``cropped`` does not hold one entry per view.
    """
    missing = [key for key in ("image", "views", "boxes", "flips", "pseudo") if key not in item]
    if missing:
        raise ValueError(f"item must hold image, views, boxes, flips and pseudo, got none of {', '.join(missing)}")
    pseudo: PseudoLabels = item["pseudo"]
    original = as_picture(item["image"])
    picture = _at_height(original, height_px)
    scale = np.array(picture.shape[1::-1] * 2) / np.array(original.shape[1::-1] * 2)
    boxes = _as_numpy(item["boxes"]).reshape(-1, 4) * scale
    cells, titles = [draw_boxes(picture, boxes)], ["global view, boxes of the local views"]
    for layer in _first_middle_last(pseudo.instance):
        cells.append(_draw_partition(picture, pseudo.instance, layer))
        titles.append("instances: none found" if layer is None else f"instances after layer {layer + 1}")
    last = _first_middle_last(pseudo.semantic)[-1]
    cells.append(_draw_partition(picture, pseudo.semantic, last))
    titles.append("semantic masks: none found" if last is None else f"semantic masks after layer {last + 1}")
    if len(item["views"]):
        cells.append(_draw_views(item, cropped, height_px))
        titles.append("local views, teacher's masks")
    return grid([cells], titles, GAP_PX, height_px=height_px)


def draw_comparison(rows: Sequence[ComparisonRow], *, top: int = 20, height_px: int = 224) -> Image:
    """A table of pictures, one row each: image, UniAP, the student's three results, truth; uint8.

    A column that no row has anything for is left out.

    Args:
        rows: at least one.
        top: how many of the student's instances are drawn, those with the highest scores.
        height_px: height of every picture.

    Raises:
        ValueError: if ``rows`` is empty or ``top`` is below 1.
    """
    if not rows:
        raise ValueError("rows must hold at least one ComparisonRow, got none")
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    titles = [
        "image",
        "UniAP instances",
        f"student: instances (top {top})",
        "student: semantic",
        "student: panoptic",
        "truth: instances",
        "truth: semantic",
        "truth: panoptic",
    ]
    table = [_comparison_cells(row, top, height_px) for row in rows]
    shown = [column for column in range(len(titles)) if any(cells[column] is not None for cells in table)]
    white = np.full((height_px, 1, 3), PAPER, dtype=np.uint8)
    pictures = [[white if cell is None else cell for cell in (cells[column] for column in shown)] for cells in table]
    return grid(pictures, [titles[column] for column in shown], height_px=height_px)


def write_png(path: str | Path, image: Image) -> None:
    """Put the picture at ``path`` at once: a reader sees the old file or the whole new one.

    The folder is made if it does not exist.

    Raises:
        ValueError: if the name does not end in ``.png``, or the picture is not uint8 of shape (H, W, 3).
        OSError: if the file cannot be written.
    """
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise ValueError(f"path must end in .png, got {target.name!r}")
    check_image(image)
    _, data = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data.tobytes())
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def as_picture(image: Image | Tensor) -> Image:
    """The picture as a uint8 array ``(H, W, 3)``, from that or from ``(3, H, W)``.

    Raises:
        ValueError: if it is neither.
    """
    array = _as_numpy(image)
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
        array = np.ascontiguousarray(array.transpose(1, 2, 0))
    check_image(array)
    return array


def _as_numpy(values: Any) -> NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _at_height(image: Image, height: int) -> Image:
    """Resize before masks are drawn, so that their outlines stay thin at the size that is looked at."""
    return resize_to(image, (height, max(1, round(image.shape[1] * height / image.shape[0]))))


def _draw_on(picture: Image, masks: Masks, labels: Sequence[int] | None = None) -> Image:
    return draw_masks(picture, upsample_masks(masks, picture.shape[:2]), labels=labels)


def _first_middle_last(masks: PseudoMasks) -> list[int | None]:
    layers = sorted(set(masks.level.tolist()))
    return [layers[0], layers[len(layers) // 2], layers[-1]] if layers else [None] * 3


def _draw_partition(picture: Image, masks: PseudoMasks, layer: int | None) -> Image:
    """The regions after one layer.

    Regions only grow, so later masks cover the parts that they were made of, and what a later layer left as it was
    still shows: UniAP counts it for the layer that found it first.
    """
    array, level = as_masks(masks.masks), _as_numpy(masks.level)
    index = np.full(array.shape[1:], -1, dtype=np.int64)
    for mask in np.argsort(level, kind="stable"):
        if layer is not None and level[mask] <= layer:
            index[array[mask]] = mask
    return draw_label_map(picture, upsample_labels(index, picture.shape[:2]))


def _draw_views(item: Mapping[str, Any], cropped: Sequence[Masks] | None, height_px: int) -> Image:
    """The local views with masks, in one or two rows that together have the given height."""
    views = [as_picture(view) for view in item["views"]]
    if cropped is not None and len(cropped) != len(views):
        raise ValueError(f"cropped must hold one entry per view ({len(views)}), got {len(cropped)}")
    rows = 1 if len(views) <= VIEWS_IN_ONE_ROW else 2
    height = max(1, (height_px - GAP_PX * (rows - 1)) // rows)
    cells = []
    for number, view in enumerate(views):
        picture = _at_height(view, height)
        picture = _draw_crop(picture, view, item, number) if cropped is None else _draw_on(picture, cropped[number])
        cells.append(draw_boxes(picture, [(0, 0, *picture.shape[1::-1])], labels=[number]))
    columns = -(-len(cells) // rows)
    lines = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    return grid(lines, gap_px=GAP_PX)[GAP_PX:-GAP_PX, GAP_PX:-GAP_PX]


def _draw_crop(picture: Image, view: Image, item: Mapping[str, Any], number: int) -> Image:
    instance: PseudoMasks = item["pseudo"].instance
    rows, columns = (-(-side // VIEW_STRIDE) for side in view.shape[:2])
    masks = crop_masks(instance.masks, item["boxes"][number], bool(item["flips"][number]), (rows, columns))
    return _draw_partition(picture, instance._replace(masks=masks), _first_middle_last(instance)[-1])


def _comparison_cells(row: ComparisonRow, top: int, height_px: int) -> list[Image | None]:
    picture = _at_height(as_picture(row.image), height_px)
    best = None if row.instances is None else _best(row.instances, row.scores, top)
    return [
        picture,
        None if row.pseudo_instances is None else _draw_on(picture, row.pseudo_instances),
        None if best is None else _draw_on(picture, best),
        None if row.semantic is None else _tint(picture, row.semantic, void=-1),
        None if row.panoptic is None else _tint(picture, row.panoptic, void=0),
        None if row.truth is None else _draw_on(picture, row.truth),
        None if row.semantic_truth is None else _tint(picture, row.semantic_truth, void=-1),
        None if row.panoptic_truth is None else _tint(picture, row.panoptic_truth, void=0),
    ]


def _best(masks: Masks, scores: Tensor | NDArray[np.floating] | None, top: int) -> NDArray[np.bool_]:
    array = as_masks(masks)
    if scores is None:
        return array[:top]
    values = _as_numpy(scores)
    if values.shape != (len(array),):
        raise ValueError(f"scores must hold one number per instance ({len(array)}), got shape {values.shape}")
    return array[np.argsort(-values, kind="stable")[:top]]


def _tint(picture: Image, labels: LabelMap, void: int) -> Image:
    return draw_label_map(picture, upsample_labels(_as_numpy(labels), picture.shape[:2]), void=void)
