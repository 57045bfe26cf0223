"""DINO's recipe for local views on Pillow, which it was written for; with the package's own draws, step by step."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter


def cut_view(picture, crop, view_px, *, is_flipped):
    cut = Image.fromarray(np.ascontiguousarray(picture[crop.top : crop.bottom, crop.left : crop.right]))
    view = np.array(cut.resize((view_px, view_px), Image.Resampling.BICUBIC))
    return view[:, ::-1] if is_flipped else view


def jitter_view(view, rng):
    image = Image.fromarray(view)
    if rng.random() < 0.8:
        for step in rng.permutation(4):
            image = jitter_one(image, int(step), rng)
    if rng.random() < 0.2:
        image = grey(image)
    if rng.random() < 0.5:
        image = blur(image, rng.uniform(0.1, 2.0))
    return np.array(image)


def jitter_one(image, step, rng):
    if step == 0:
        return ImageEnhance.Brightness(image).enhance(rng.uniform(0.6, 1.4))
    if step == 1:
        return ImageEnhance.Contrast(image).enhance(rng.uniform(0.6, 1.4))
    if step == 2:
        return ImageEnhance.Color(image).enhance(rng.uniform(0.8, 1.2))
    shift = round(rng.uniform(-0.1, 0.1) * 255)
    hue, saturation, value = image.convert("HSV").split()
    hue = hue.point([(level + shift) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def grey(image):
    return image.convert("L").convert("RGB")


def blur(image, radius):
    return image.filter(ImageFilter.GaussianBlur(radius=radius))
