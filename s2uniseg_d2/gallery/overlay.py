"""Masks over a picture, drawn to please: tints in stable colours, lines and numbers that fit the picture's size."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from s2uniseg_d2.data.pictures import Picture
from s2uniseg_d2.engine.drawing import FONT, Masks, as_masks, masks_on, paint_index, palette

FILL_ALPHA = 0.45
LINE_SHARE = 1 / 500  # width of an outline, of the picture's longer side
TEXT_SHARE = 1 / 45  # height of a number
SMALLEST_TEXT_PX = 9  # in which a number can be read
PLACING_PX = 1024  # longer side at which the numbers' places are sought


def draw_overlay(
    image: Picture,
    masks: Masks,
    clusters: Sequence[int],
    *,
    order: Sequence[int] | None = None,
    has_numbers: bool = True,
) -> Picture:
    """The picture with tinted masks, an outline around what is seen of each, and its cluster's number where it fits.

    A cluster has one colour in all pictures. Lines and numbers grow with the picture, so that they look alike at any
    size.

    Args:
        image: ``(H, W, 3)``.
        masks: ``(n, H, W)`` bool.
        clusters: not negative, one per mask.
        order: the masks from bottom to top; None puts small ones above large ones.
        has_numbers: whether clusters' numbers are written.

    Raises:
        ValueError: if shapes, types or ranges are not as said.
    """
    array = masks_on(image, masks)
    if len(clusters) != len(array):
        raise ValueError(f"clusters must hold one number per mask ({len(array)}), got {len(clusters)}")
    return draw_index(image, stack_masks(array, order), clusters, has_numbers=has_numbers)


def draw_index(
    image: Picture, index: NDArray[np.signedinteger], clusters: Sequence[int], *, has_numbers: bool = True
) -> Picture:
    """:func:`draw_overlay` of masks that do not overlap, or were stacked.

    Args:
        image: ``(H, W, 3)``.
        index: ``(H, W)``, the number of the mask that is seen at each pixel, or -1.
        clusters: as there.
        has_numbers: as there.
    """
    label = np.asarray(clusters, dtype=np.int64)
    colours = palette(label)
    canvas = paint_index(image, index, colours, FILL_ALPHA, outline=False)
    if len(label) == 0:
        return canvas
    _outline(canvas, index, colours, max(1, round(max(image.shape[:2]) * LINE_SHARE)))
    if has_numbers:
        _write_numbers(canvas, index, label)
    return canvas


def index_type(count: int) -> type[np.signedinteger]:
    """The smallest type in which ``count`` masks can be told apart, one more and none."""
    return np.int16 if count < np.iinfo(np.int16).max else np.int32


def stack_masks(masks: NDArray[np.bool_], order: Sequence[int] | None = None) -> NDArray[np.signedinteger]:
    """The number of the uppermost mask at every pixel, ``(H, W)``, -1 where there is none."""
    if order is None:
        order = np.argsort(-mask_areas(masks), kind="stable").tolist()
    index = np.full(masks.shape[1:], -1, dtype=index_type(len(masks)))
    for number in order:
        box = _box(masks[number])
        np.copyto(index[box], number, where=masks[number][box])
    return index


def mask_areas(masks: Masks) -> NDArray[np.int64]:
    """The pixels of each of ``(n, H, W)`` bool masks; some tens of times sooner than a sum of bools."""
    array = as_masks(masks)
    return np.array([np.count_nonzero(mask) for mask in array], dtype=np.int64)


def _box(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    return slice(top, top + height), slice(left, left + width)


def _outline(canvas: Picture, index: NDArray[np.signedinteger], colours: Picture, line_px: int) -> None:
    """Draw bright lines of each mask's own colour on its inner side, on a thin dark seam."""
    labels = index if index.dtype == np.int16 else index.astype(np.float32)  # OpenCV knows no more types
    pixels, places = canvas.reshape(-1, 3), index.reshape(-1)
    inner = np.flatnonzero(_differs(labels, line_px) & (index >= 0))
    seam = np.flatnonzero(_differs(labels, 1) & (index < 0))
    bright = (colours.astype(np.float32) * 0.55 + 255 * 0.45)[places[inner]]
    below = pixels[inner].astype(np.float32)
    pixels[inner] = np.rint(below + 0.9 * (bright - below))
    pixels[seam] = np.rint(pixels[seam] * np.float32(0.45))


def _differs(labels: NDArray[np.integer | np.floating], reach_px: int) -> NDArray[np.bool_]:
    """Where another label lies within a square around a pixel."""
    kernel = np.ones((2 * reach_px + 1,) * 2, dtype=np.uint8)
    return np.asarray(cv2.dilate(labels, kernel) != cv2.erode(labels, kernel))


def _write_numbers(canvas: Picture, index: NDArray[np.signedinteger], clusters: NDArray[np.int64]) -> None:
    """Write clusters' numbers at the innermost point of each mask that has room for one."""
    height_px = max(SMALLEST_TEXT_PX, round(max(index.shape) * TEXT_SHARE))
    thickness = max(1, round(height_px / 10))
    scale = cv2.getFontScaleFromHeight(FONT, height_px, thickness)
    step = -(-max(index.shape) // PLACING_PX)
    coarse = np.ascontiguousarray(index[::step, ::step])
    for number, box in enumerate(find_objects(coarse + 1)):
        if box is None:
            continue
        top, left = box[0].start, box[1].start
        part = np.pad((coarse[box] == number).astype(np.uint8), 1)  # the picture's border is a border of the mask
        _, room, _, (x, y) = cv2.minMaxLoc(cv2.distanceTransform(part, cv2.DIST_L2, 3))
        text = str(clusters[number])
        (width, height), _ = cv2.getTextSize(text, FONT, scale, thickness)
        if room * step < 0.6 * max(width, height):
            continue
        corner = (int((x + left - 1) * step - width / 2), int((y + top - 1) * step + height / 2))
        cv2.putText(canvas, text, corner, FONT, scale, (15, 15, 15), thickness + max(2, thickness * 2), cv2.LINE_AA)
        cv2.putText(canvas, text, corner, FONT, scale, (255, 255, 255), thickness, cv2.LINE_AA)
