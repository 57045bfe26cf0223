from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as mask_coding

from s2uniseg_d2.labeling import rle
from s2uniseg_d2.labeling.rle import encode_cells, encode_pixels


def expect(pixels):
    coded = mask_coding.encode(np.asfortranarray(pixels.transpose(1, 2, 0).astype(np.uint8)))
    texts = [item["counts"].decode() for item in coded]
    return texts, mask_coding.area(coded).tolist(), mask_coding.toBbox(coded).tolist()


def random_case(seed):
    """Cells and the cell of every row and column of pixels; some cells are skipped, some repeated."""
    generator = np.random.default_rng(seed)
    h, w = generator.integers(1, 9, 2)
    height, width = generator.integers(1, 60, 2)
    masks = generator.random((generator.integers(1, 6), h, w)) < generator.random()
    if seed % 5 == 0:
        masks[:] = seed % 2
    return masks, np.sort(generator.integers(0, h, height)), np.sort(generator.integers(0, w, width))


@pytest.mark.parametrize("seed", range(40))
def test_cells_give_the_same_letters_as_pycocotools_gives_for_pixels(seed, monkeypatch):
    if seed % 3 == 0:
        monkeypatch.setattr(rle, "_CHUNK_CELLS", 1)
    masks, rows, columns = random_case(seed)
    texts, areas, boxes = expect(masks[:, rows[:, None], columns])
    coded = encode_cells(masks, rows, columns)
    assert coded.counts == texts
    assert coded.areas.tolist() == areas
    assert coded.boxes.tolist() == boxes


def test_long_runs_take_several_letters():
    masks = np.zeros((2, 2, 3), dtype=bool)
    masks[0, 1, 1] = masks[1, :, 2] = True
    rows, columns = np.repeat([0, 1], [700, 900]), np.repeat([0, 1, 2], [1000, 1, 1200])
    assert encode_cells(masks, rows, columns).counts == expect(masks[:, rows[:, None], columns])[0]


def test_pixels_are_coded_with_area_and_box():
    masks, rows, columns = random_case(7)
    pixels = masks[:, rows[:, None], columns]
    coded = encode_pixels(pixels)
    assert (coded.counts, coded.areas.tolist(), coded.boxes.tolist()) == expect(pixels)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
def test_a_segmentation_is_what_pycocotools_decodes():
    masks, rows, columns = random_case(11)
    pixels = masks[:, rows[:, None], columns]
    segmentation = encode_cells(masks, rows, columns).segmentation(0, pixels.shape[1:])
    assert (mask_coding.decode(segmentation) == pixels[0]).all()


@pytest.mark.parametrize("encode", [lambda masks: encode_cells(masks, np.arange(4), np.arange(5)), encode_pixels])
def test_no_masks_give_no_texts(encode):
    coded = encode(np.zeros((0, 4, 5), dtype=bool))
    assert coded.counts == []
    assert coded.areas.shape == (0,)
    assert coded.boxes.shape == (0, 4)
