"""Masks over a picture, drawn to please: tints in stable colours, lines and numbers that fit the picture's size."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from s2uniseg_d2.data.pictures import Picture
from s2uniseg_d2.engine.drawing import FONT, Masks, as_masks, check_image, paint_index, palette

FILL_ALPHA = 0.45
LINE_SHARE = 1 / 500  # width of an outline, of the picture's longer side
TEXT_SHARE = 1 / 45  # height of a number
SMALLEST_TEXT_PX = 9  # in which a number can be read


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
    check_image(image)
    array = as_masks(masks)
    if array.shape[1:] != image.shape[:2]:
        raise ValueError(f"masks must have the image's size {image.shape[:2]}, got {array.shape[1:]}")
    if len(clusters) != len(array):
        raise ValueError(f"clusters must hold one number per mask ({len(array)}), got {len(clusters)}")
    if len(array) == 0:
        return image.copy()
    label = np.asarray(clusters, dtype=np.int64)
    index = stack_masks(array, order)
    colours = palette(label)
    tinted = paint_index(image, index, colours, FILL_ALPHA, outline=False)
    line_px = max(1, round(max(image.shape[:2]) * LINE_SHARE))
    canvas = _outline(tinted, index, colours, line_px)
    return _write_numbers(canvas, index, label) if has_numbers else canvas


def stack_masks(masks: NDArray[np.bool_], order: Sequence[int] | None = None) -> NDArray[np.int64]:
    """The number of the uppermost mask at every pixel, ``(H, W)``, -1 where there is none."""
    if order is None:
        order = np.argsort(-mask_areas(masks), kind="stable").tolist()
    index = np.full(masks.shape[1:], -1, dtype=np.int64)
    for number in order:
        index[masks[number]] = number
    return index


def mask_areas(masks: Masks) -> NDArray[np.int64]:
    """The pixels of each of ``(n, H, W)`` bool masks; some tens of times sooner than a sum of bools."""
    array = as_masks(masks)
    return np.array([np.count_nonzero(mask) for mask in array], dtype=np.int64)


def _outline(canvas: Picture, index: NDArray[np.int64], colours: Picture, line_px: int) -> Picture:
    """Bright lines of each mask's own colour on its inner side, on a thin dark seam."""
    kernel = np.ones((2 * line_px + 1,) * 2, dtype=np.uint8)
    labels = index.astype(np.float32)
    high, low = cv2.dilate(labels, kernel), cv2.erode(labels, kernel)
    inner = (high != low) & (index >= 0)
    seam_kernel = np.ones((3, 3), dtype=np.uint8)
    seam = (cv2.dilate(labels, seam_kernel) != cv2.erode(labels, seam_kernel)) & (index < 0)
    bright = (colours.astype(np.float32) * 0.55 + 255 * 0.45)[index[inner]]
    result = canvas.astype(np.float32)
    result[inner] += 0.9 * (bright - result[inner])
    result[seam] *= 0.45
    return np.rint(result).astype(np.uint8)


def _write_numbers(canvas: Picture, index: NDArray[np.int64], clusters: NDArray[np.int64]) -> Picture:
    """Cluster numbers at the innermost point of each mask that has room for one."""
    height_px = max(SMALLEST_TEXT_PX, round(max(index.shape) * TEXT_SHARE))
    thickness = max(1, round(height_px / 10))
    scale = cv2.getFontScaleFromHeight(FONT, height_px, thickness)
    canvas = np.ascontiguousarray(canvas)
    for number, box in enumerate(find_objects(index + 1)):
        if box is None:
            continue
        top, left = box[0].start, box[1].start
        part = np.pad((index[box] == number).astype(np.uint8), 1)  # the picture's border is a border of the mask
        _, room_px, _, (x, y) = cv2.minMaxLoc(cv2.distanceTransform(part, cv2.DIST_L2, 3))
        text = str(clusters[number])
        (width, height), _ = cv2.getTextSize(text, FONT, scale, thickness)
        if room_px < 0.6 * max(width, height):
            continue
        corner = (int(x + left - 1 - width / 2), int(y + top - 1 + height / 2))
        cv2.putText(canvas, text, corner, FONT, scale, (15, 15, 15), thickness + max(2, thickness * 2), cv2.LINE_AA)
        cv2.putText(canvas, text, corner, FONT, scale, (255, 255, 255), thickness, cv2.LINE_AA)
    return canvas
