from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as mask_coding

from s2uniseg_d2.data.segmentation import decode_segmentation

SQUARE = np.zeros((9, 12), bool)
SQUARE[2:6, 3:10] = True


def run_lengths(mask):
    flat = np.concatenate([[False], mask.T.ravel(), [not mask[-1, -1]]])
    return np.diff(np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1])])).tolist()


def test_every_way_to_write_a_mask_gives_its_pixels():
    packed = mask_coding.encode(np.asfortranarray(SQUARE.astype(np.uint8)))
    text = {**packed, "counts": packed["counts"].decode()}
    plain = {"size": [9, 12], "counts": run_lengths(SQUARE)}
    polygon = [[3, 2, 10, 2, 10, 6, 3, 6]]
    for segmentation in (packed, text, plain, polygon, [polygon[0], [3.0, 2.0, 5.0, 2.0, 5.0, 6.0]]):
        pixels = decode_segmentation(segmentation, 9, 12)
        assert pixels.dtype == bool
        assert np.array_equal(pixels, SQUARE)


def test_another_size_is_refused():
    packed = mask_coding.encode(np.asfortranarray(SQUARE.astype(np.uint8)))
    with pytest.raises(ValueError, match=r"of the picture's size \[12, 9\], got \[9, 12\]"):
        decode_segmentation(packed, 12, 9)
