from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_coding

from s2uniseg_d2.labeling.maker import PseudoMaskMaker
from s2uniseg_d2.labeling.records import Selection, record_picture
from tests.labeling.test_maker import picture

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools


def labelled(maker, image):
    return maker.label_grids([maker.resize(image)], [image.shape[:2]])[0]


@pytest.mark.parametrize("upscale", ["nearest", "bilinear", "edges"])
@pytest.mark.parametrize("size", [(50, 131), (9, 4)])
def test_a_record_holds_the_masks_of_the_python_call(maker, upscale, size, monkeypatch):
    monkeypatch.setattr("s2uniseg_d2.labeling.records._CHUNK_PIXELS", 20000)
    own = PseudoMaskMaker(maker.encoder, maker.labeler, image_size=64, upscale=upscale)
    image = picture(*size)
    grid = labelled(own, image)
    record = record_picture(own, grid, 7, Selection(), image)
    expected = own(image)
    assert record.vanished == sum(len(kind.level) for kind in grid.labels) - len(record.annotations)
    for kind, category in (("instance", 1), ("semantic", 2)):
        found = getattr(expected, kind)
        items = [item for item in record.annotations if item["kind"] == kind]
        assert len(items) == len(found.masks)
        for item, mask in zip(items, found.masks, strict=True):
            assert (mask_coding.decode(item["segmentation"]) == mask).all()
            y, x = mask.nonzero()
            assert item["bbox"] == [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]
            assert (item["category_id"], item["image_id"], item["iscrowd"]) == (category, 7, 0)
        assert [item["area"] for item in items] == found.areas.tolist()
        assert [item["level"] for item in items] == found.levels.tolist()
        np.testing.assert_allclose([item["score"] for item in items], found.scores, atol=1e-4)
    both = np.concatenate([expected.instance.embeddings, expected.semantic.embeddings])
    assert (record.embeddings == both).all()


def test_masks_that_leave_no_pixel_are_counted(maker):
    """A picture that is coarser than the token grid."""
    grid = labelled(maker, picture(3, 3))
    record = record_picture(maker, grid, 1, Selection())
    assert record.vanished > 0
    found = maker(picture(3, 3))
    assert len(record.annotations) == len(found.instance.masks) + len(found.semantic.masks)
    assert (record.embeddings == np.concatenate([found.instance.embeddings, found.semantic.embeddings])).all()


def test_the_best_are_kept_in_their_order():
    scores = torch.tensor([0.5, 0.9, 0.5, 0.1, 0.7])
    assert Selection().keep(scores).tolist() == [0, 1, 2, 3, 4]
    assert Selection(min_score=0.5).keep(scores).tolist() == [0, 1, 2, 4]
    assert Selection(max_masks=3).keep(scores).tolist() == [0, 1, 4]
    assert Selection(min_score=0.6, max_masks=3).keep(scores).tolist() == [1, 4]
    assert Selection().keep(scores[:0]).tolist() == []


def test_one_kind_alone(maker):
    image = picture(50, 70)
    grid = labelled(maker, image)
    parts = [record_picture(maker, grid, 1, Selection(kinds=(kind,))) for kind in ("instance", "semantic")]
    both = record_picture(maker, grid, 1, Selection())
    assert parts[0].annotations + parts[1].annotations == both.annotations
    assert {item["kind"] for item in parts[1].annotations} == {"semantic"}
    assert [len(part.embeddings) for part in parts] == [len(part.annotations) for part in parts]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"kinds": ()}, "kinds must be among"),
        ({"kinds": ("semantic", "instance")}, "kinds must be among"),
        ({"kinds": ("thing",)}, "kinds must be among"),
        ({"min_score": 1.5}, r"min_score must lie in \[0, 1\], got 1.5"),
        ({"min_score": float("nan")}, r"min_score must lie in \[0, 1\], got nan"),
        ({"max_masks": -1}, "max_masks must not be negative, got -1"),
    ],
)
def test_a_bad_selection_is_refused(words, message):
    with pytest.raises(ValueError, match=message):
        Selection(**words)
