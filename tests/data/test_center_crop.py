from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import CenterCrop as TorchCrop
from torchvision.transforms import InterpolationMode, Resize

from s2uniseg_d2.data.center_crop import CenterCrop


@pytest.mark.parametrize(
    ("height", "width"), [(480, 640), (640, 427), (333, 500), (320, 320), (100, 61), (17, 999), (7, 5), (1, 3)]
)
@pytest.mark.parametrize(("short", "crop"), [(320, 320), (64, 33), (50, 50)])
def test_it_is_what_torchvision_gives(height, width, short, crop):
    picture = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    resize = Resize(short, InterpolationMode.NEAREST)
    expected = np.asarray(TorchCrop(crop)(resize(Image.fromarray(picture))))
    cut = CenterCrop(short, crop)
    np.testing.assert_array_equal(cut(picture), expected)
    labels = picture[..., 0]
    np.testing.assert_array_equal(cut(labels), expected[..., 0])
    wide = labels.astype(np.int64) * 1000 - 1
    assert cut(wide).dtype == np.int64
    np.testing.assert_array_equal(cut(wide), expected[..., 0].astype(np.int64) * 1000 - 1)


def test_defaults_are_stegos():
    assert CenterCrop() == CenterCrop(short_side_px=320, crop_px=320)
    assert CenterCrop()(np.zeros((30, 70))).shape == (320, 320)


@pytest.mark.parametrize(("short", "crop"), [(320, 321), (320, 0)])
def test_bad_lengths(short, crop):
    with pytest.raises(ValueError, match=r"crop_px must lie in \[1, short_side_px = 320\], got"):
        CenterCrop(short, crop)


@pytest.mark.parametrize("shape", [(4,), (0, 4), (4, 0, 3), (1, 2, 3, 4)])
def test_bad_arrays(shape):
    with pytest.raises(ValueError, match=r"array must be \(H, W\) or \(H, W, C\) with pixels, got shape"):
        CenterCrop(8, 8)(np.zeros(shape))
