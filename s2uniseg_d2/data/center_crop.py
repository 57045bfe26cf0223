"""STEGO's test geometry: the short side to a fixed length, then the middle square, for pictures and labels alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Sample = TypeVar("Sample", bound=np.generic)


@dataclass(frozen=True)
class CenterCrop:
    """Takes the middle square of an array whose short side is first brought to ``short_side_px``, both nearest.

    The COCOStuff-27 protocol of STEGO (``src/data.py`` and ``configs/eval_config.yml``: ``res: 320``), which is what
    torchvision's ``Resize(short_side_px, NEAREST)`` with ``CenterCrop(crop_px)`` give for a picture of Pillow; every
    pixel of the result is one of the original's. The same object cuts the picture, the truth, and what is drawn.

    Attributes:
        short_side_px: length of the short side after scaling; the long one is rounded down.
        crop_px: side of the square, at most ``short_side_px``.
    """

    short_side_px: int = 320
    crop_px: int = 320

    def __post_init__(self) -> None:
        """Check the lengths.

        Raises:
            ValueError: if ``crop_px`` does not lie in [1, ``short_side_px``].
        """
        if not 1 <= self.crop_px <= self.short_side_px:
            raise ValueError(f"crop_px must lie in [1, short_side_px = {self.short_side_px}], got {self.crop_px}")

    def __call__(self, array: NDArray[Sample]) -> NDArray[Sample]:
        """Return the middle of an ``(H, W)`` or ``(H, W, C)`` array, of the same dtype and ``crop_px`` pixels a side.

        Raises:
            ValueError: if the array has another number of axes or no pixel.
        """
        if array.ndim not in (2, 3) or 0 in array.shape[:2]:
            raise ValueError(f"array must be (H, W) or (H, W, C) with pixels, got shape {array.shape}")
        height, width = array.shape[:2]
        short = min(height, width)
        rows = self._kept(height, self.short_side_px * height // short)
        columns = self._kept(width, self.short_side_px * width // short)
        return array[rows[:, None], columns]

    def _kept(self, length: int, scaled: int) -> NDArray[np.int64]:
        """Positions along one axis of ``length`` pixels that the crop shows, ``(crop_px,)``."""
        # Pillow itself says which pixel is nearest: its rounding at ties is no formula's
        positions = Image.fromarray(np.arange(length, dtype=np.int32)[None])
        nearest = np.asarray(positions.resize((scaled, 1), Image.Resampling.NEAREST), dtype=np.int64)[0]
        start = round((scaled - self.crop_px) / 2)  # torchvision rounds halves to even, as Python does
        return nearest[start : start + self.crop_px]
