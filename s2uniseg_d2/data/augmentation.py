"""Global view and local views of one picture: resizing, cropping and DINO's photometric recipe.

DINO's recipe is written for Pillow. Here it runs on OpenCV and torch, several times faster, with the same draws. Tests
hold each operation to Pillow's: brightness and contrast are equal; saturation, grey and the cut differ by one level of
255 at most; hue by 12 and on average one, because both count it in 8 bits; blur by 16 at edges of black and white and
on average 0.6, because Pillow's Gaussian is an approximation and OpenCV's is none.

Pictures are ``(H, W, 3)`` uint8 RGB; boxes are XYXY in pixels, from edge to edge; every draw takes a numpy Generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from .pictures import Picture

_ATTEMPTS = 10  # as RandomResizedCrop: draws before the largest central crop is taken instead
_JITTER_PROB, _GREY_PROB, _BLUR_PROB = 0.8, 0.2, 0.5
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = 0.4, 0.4, 0.2, 0.1
_BLUR_RADIUS = (0.1, 2.0)


class Crop(NamedTuple):
    """A rectangle of whole pixels: columns ``left`` to ``right - 1``, rows ``top`` to ``bottom - 1``."""

    left: int
    top: int
    right: int
    bottom: int

    def reduce(self, factor: int) -> Crop:
        """The nearest rectangle of a picture that was reduced by a whole number."""
        return Crop(*(round(edge / factor) for edge in self))


def choose_reduction(
    height: int, width: int, crops: Sequence[Crop], *, longest_px: int, view_px: int, reductions: Sequence[int]
) -> int:
    """Return by how much a picture may be reduced while it is read, so that nothing is enlarged because of it.

    The largest of the reductions at which the picture's longer side still has ``longest_px`` pixels and each side of
    each crop ``view_px``; 1 if there is none.
    """
    for factor in sorted(reductions, reverse=True):
        sides = [side for crop in crops for side in _sides(crop.reduce(factor))]
        if -(-max(height, width) // factor) >= longest_px and min(sides) >= view_px:
            return factor
    return 1


def _sides(crop: Crop) -> tuple[int, int]:
    return crop.right - crop.left, crop.bottom - crop.top


def resize_longest(picture: Picture, longest_px: int) -> Picture:
    """Return the picture with its longer side at ``longest_px`` and its proportions kept, each side at least 1.

    Shrinking averages areas, enlarging is bilinear.
    """
    height, width = picture.shape[:2]
    scale = longest_px / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    filter_ = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, size, interpolation=filter_), dtype=np.uint8)


def draw_crop(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Crop:
    """Draw the rectangle of a random resized crop.

    The area is uniform in ``scale`` (share of the picture), the ratio width / height log-uniform in ``ratio``. If ten
    draws do not fit, the largest central rectangle whose ratio is allowed is taken, which happens in long, thin
    pictures. At least one pixel.
    """
    for _ in range(_ATTEMPTS):
        area = height * width * rng.uniform(*scale)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = max(1, round(math.sqrt(area * shape))), max(1, round(math.sqrt(area / shape)))
        if w <= width and h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return Crop(left, top, left + w, top + h)
    shape = min(max(width / height, ratio[0]), ratio[1])
    w = min(width, max(1, round(height * shape)))
    h = min(height, max(1, round(width / shape)))
    left, top = (width - w) // 2, (height - h) // 2
    return Crop(left, top, left + w, top + h)


def cut_view(picture: Picture, crop: Crop, view_px: int, *, is_flipped: bool) -> Picture:
    """Return the crop as a ``(view_px, view_px, 3)`` picture, mirrored left to right if ``is_flipped``.

    Bicubic with antialiasing, as in DINO.
    """
    cut = torch.from_numpy(picture[crop.top : crop.bottom, crop.left : crop.right]).permute(2, 0, 1)[None]
    resized = functional.interpolate(cut, (view_px, view_px), mode="bicubic", antialias=True)
    # OpenCV joins planes, and takes them apart again for the model, many times faster than a transposed copy
    view = cv2.merge(list(resized[0].numpy()))
    return _uint8(cv2.flip(view, 1) if is_flipped else view)


def jitter_view(view: Picture, rng: np.random.Generator) -> Picture:
    """Return the view after DINO's recipe for local views, without changing its geometry.

    Brightness, contrast (each factor within 1 ± 0.4), saturation (1 ± 0.2) and hue (± 0.1 of the circle) in random
    order with probability 0.8; grey with 0.2; Gaussian blur of radius 0.1 to 2 pixels with 0.5.
    """
    if rng.random() < _JITTER_PROB:
        for step in rng.permutation(4):
            view = _jitter_one(view, int(step), rng)
    if rng.random() < _GREY_PROB:
        view = _grey(view)
    if rng.random() < _BLUR_PROB:
        radius = rng.uniform(*_BLUR_RADIUS)
        view = _uint8(cv2.GaussianBlur(view, (0, 0), radius, borderType=cv2.BORDER_REPLICATE))
    return view


def _jitter_one(view: Picture, step: int, rng: np.random.Generator) -> Picture:
    if step == 0:
        return _scale_levels(view, rng.uniform(1 - _BRIGHTNESS, 1 + _BRIGHTNESS), around=0)
    if step == 1:
        mean = int(cv2.mean(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY))[0] + 0.5)
        return _scale_levels(view, rng.uniform(1 - _CONTRAST, 1 + _CONTRAST), around=mean)
    if step == 2:
        factor = rng.uniform(1 - _SATURATION, 1 + _SATURATION)
        return _uint8(cv2.addWeighted(view, factor, _grey(view), 1 - factor, 0))
    shift = round(rng.uniform(-_HUE, _HUE) * 255)
    hsv = cv2.cvtColor(view, cv2.COLOR_RGB2HSV_FULL)
    hsv[:, :, 0] += np.uint8(shift % 256)  # hue is a circle: the sum wraps around
    return _uint8(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL))


def _scale_levels(view: Picture, factor: float, around: int) -> Picture:
    """Move all levels away from one, or towards it."""
    levels = around + factor * (np.arange(256) - around)
    return _uint8(cv2.LUT(view, np.clip(levels, 0, 255).astype(np.uint8)))


def _grey(view: Picture) -> Picture:
    return _uint8(cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB))


def _uint8(pixels: NDArray[Any]) -> Picture:
    """What OpenCV returns, under the type that it has."""
    return np.asarray(pixels, dtype=np.uint8)
