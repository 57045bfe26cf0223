from __future__ import annotations

import torch

from s2uniseg_d2.modeling.batches import places_by_padding, view_keys

SIZES = [(96, 96), (96, 64), (65, 90), (96, 33), (96, 32)]
BATCH = [
    {"image": torch.zeros(3, *size), "views": torch.zeros(2, 3, 32, 32), "draw": draw}
    for size, draw in zip(SIZES, (7, 3, 9, 4, 8), strict=True)
]


def test_pictures_go_together_that_need_the_same_padding():
    assert places_by_padding(BATCH, 32) == [[0, 2], [1, 3], [4]]
    assert places_by_padding(BATCH, 64) == [[0, 2], [1, 3, 4]]
    assert places_by_padding(BATCH, 64, 2) == [[0, 2], [1, 3], [4]]
    assert places_by_padding(BATCH, 32, 1) == [[0], [2], [1], [3], [4]]
    assert places_by_padding([], 32) == []


def test_a_view_has_its_key_from_the_seed_and_its_pictures_draw():
    keys = view_keys(BATCH, 0, torch.device("cpu"))
    assert keys.dtype == torch.int64
    assert len(set(keys.tolist())) == 10
    assert torch.equal(view_keys(BATCH[3:], 0, torch.device("cpu")), keys[6:])
    assert not set(view_keys(BATCH, 1, torch.device("cpu")).tolist()) & set(keys.tolist())
