"""Global view and local views of one picture: resizing, cropping and DINO's photometric recipe.

Pictures are ``(H, W, 3)`` uint8 RGB; boxes are XYXY in pixels, from edge to edge; every draw takes a numpy Generator.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

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
    cut = Image.fromarray(np.ascontiguousarray(picture[crop.top : crop.bottom, crop.left : crop.right]))
    view = np.array(cut.resize((view_px, view_px), Image.Resampling.BICUBIC))
    return np.ascontiguousarray(view[:, ::-1]) if is_flipped else view


def jitter_view(view: Picture, rng: np.random.Generator) -> Picture:
    """Return the view after DINO's recipe for local views, without changing its geometry.

    Brightness, contrast (each factor within 1 ± 0.4), saturation (1 ± 0.2) and hue (± 0.1 of the circle) in random
    order with probability 0.8; grey with 0.2; Gaussian blur of radius 0.1 to 2 pixels with 0.5.
    """
    image = Image.fromarray(view)
    if rng.random() < _JITTER_PROB:
        for step in rng.permutation(4):
            image = _jitter_one(image, int(step), rng)
    if rng.random() < _GREY_PROB:
        image = image.convert("L").convert("RGB")
    if rng.random() < _BLUR_PROB:
        image = image.filter(ImageFilter.GaussianBlur(radius=rng.uniform(*_BLUR_RADIUS)))
    return np.array(image)


def _jitter_one(image: Image.Image, step: int, rng: np.random.Generator) -> Image.Image:
    if step == 0:
        return ImageEnhance.Brightness(image).enhance(rng.uniform(1 - _BRIGHTNESS, 1 + _BRIGHTNESS))
    if step == 1:
        return ImageEnhance.Contrast(image).enhance(rng.uniform(1 - _CONTRAST, 1 + _CONTRAST))
    if step == 2:
        return ImageEnhance.Color(image).enhance(rng.uniform(1 - _SATURATION, 1 + _SATURATION))
    shift = round(rng.uniform(-_HUE, _HUE) * 255)
    hue, saturation, value = image.convert("HSV").split()
    hue = hue.point([(level + shift) % 256 for level in range(256)])  # hue is a circle
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")
