from __future__ import annotations

import json

import numpy as np
import pytest
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES, COCO_CATEGORIES

from s2uniseg_d2.data.class_tables import (
    CITYSCAPES_LABELS,
    COCOSTUFF27,
    PANOPTIC15,
    CoarseClass,
    cityscapes_labels,
    cocostuff27_lookup,
    panoptic95_category_of,
)

# Coarse class of the values 0 to 181, read off STEGO's src/data.py: runs of things, then stuff one by one.
STEGO_THINGS = [(9, 1), (11, 8), (8, 6), (7, 10), (6, 8), (10, 10), (5, 8), (2, 10), (3, 10), (0, 6), (1, 6), (4, 8)]
STEGO_STUFF = """
17 17 22 20 20 22 15 25 16 13 12 12 17 17 23 15 15 17 15 21 15 25 13 13 13 13 13 22 26 14 14 15 22 21 21 24 20 22 15 17
16 15 22 24 21 17 25 16 21 17 22 16 21 21 25 21 26 21 24 20 17 14 21 26 15 23 20 21 24 15 24 22 25 15 20 17 17 22 14 18
18 18 18 18 18 18 26 26 19 19 24
"""


@pytest.fixture(scope="module")
def coco_categories(shared_data):
    """COCO's 133 panoptic categories as its own file has them, with their supercategories."""
    return json.loads((shared_data / "panoptic2" / "panoptic.json").read_text())["categories"]


def test_there_are_12_things_and_15_stuff_with_names_of_their_own():
    assert [coarse.is_thing for coarse in COCOSTUFF27] == [True] * 12 + [False] * 15
    assert len({coarse.name for coarse in COCOSTUFF27}) == 27
    assert all(max(c.fine_ids) <= 91 if c.is_thing else min(c.fine_ids) >= 92 for c in COCOSTUFF27)


def test_lookup_is_that_of_stego():
    expected = [coarse for coarse, length in STEGO_THINGS for _ in range(length)] + [
        int(n) for n in STEGO_STUFF.split()
    ]
    assert len(expected) == 182
    lookup = cocostuff27_lookup()
    assert lookup.dtype == np.uint8
    np.testing.assert_array_equal(lookup[:182], expected)
    assert set(lookup[182:].tolist()) == {255}


def test_members_are_of_their_class_in_coco_s_own_hierarchy(coco_categories):
    coarse_of = {fine: coarse for coarse in COCOSTUFF27 for fine in coarse.fine_ids}
    shared = [category for category in coco_categories if category["id"] in coarse_of]
    assert len(shared) == 116  # 80 things, and the 36 stuff classes that panoptic truth does not merge
    for category in shared:
        coarse = coarse_of[category["id"]]
        assert (coarse.supercategory, coarse.is_thing) == (category["supercategory"], bool(category["isthing"]))


@pytest.mark.parametrize(
    ("classes", "faulty"),
    [
        (COCOSTUFF27[:-1], r"\[120, 148, 155, 178, 179\]"),
        ((*COCOSTUFF27, CoarseClass("again", "again", False, (3,))), r"\[3\]"),
        ((*COCOSTUFF27, CoarseClass("beyond", "beyond", False, (183,))), r"\[183\]"),
    ],
)
def test_a_table_with_gaps_or_doubles_is_refused(classes, faulty):
    with pytest.raises(ValueError, match=f"must be in exactly one class, which is not so for {faulty}"):
        cocostuff27_lookup(classes)


def test_supercategories_of_panoptic_stuff_are_coco_s(coco_categories):
    become = panoptic95_category_of(coco_categories)
    stuff = {c["id"]: c["supercategory"] for c in coco_categories if not c["isthing"]}
    names = list(PANOPTIC15)
    assert {fine: names[become[fine] - 201] for fine in stuff} == stuff
    assert all(become[c["id"]] == c["id"] for c in coco_categories if c["isthing"])
    assert len(set(become.values())) == 95


def test_panoptic_stuff_covers_the_53_that_detectron2_knows():
    known = [category["id"] for category in COCO_CATEGORIES if not category["isthing"]]
    assert sorted(fine for ids in PANOPTIC15.values() for fine in ids) == known
    assert (len(known), len(PANOPTIC15)) == (53, 15)


def test_cityscapes_labels_are_those_that_detectron2_knows():
    known = [(c["id"], c["name"], bool(c["isthing"])) for c in CITYSCAPES_CATEGORIES]
    assert [(label.id, label.name, label.is_thing) for label in cityscapes_labels(19)] == known
    assert [label.id for label in CITYSCAPES_LABELS] == list(range(7, 34))
    assert sum(label.is_thing for label in cityscapes_labels(27)) == 10
    with pytest.raises(ValueError, match="num_classes must be 19 or 27, got 7"):
        cityscapes_labels(7)
