from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from s2uniseg_d2.data import resolve_dataset
from s2uniseg_d2.evaluation import MappedPanopticEvaluator

CITIES = {"frankfurt": "frankfurt_000000_000294", "lindau": "lindau_000000_000019"}
# columns of the picture: out of roi, road, parking, sky, a person, another, a group of cars, a caravan
COLUMNS = [3, 7, 9, 23, 24000, 24001, 26, 29000]


@pytest.fixture
def fine(root, files):
    """Two pictures in Cityscapes' folders and formats, 16-bit ids beside 8-bit labels."""
    for seed, (city, name) in enumerate(CITIES.items()):
        ids = np.repeat(np.asarray(COLUMNS), 2)[None].repeat(6 + seed, 0)
        files.photo(root / f"cityscapes/leftImg8bit/val/{city}/{name}_leftImg8bit.png", *ids.shape)
        beside = root / f"cityscapes/gtFine/val/{city}"
        files.picture(beside / f"{name}_gtFine_instanceIds.png", ids.astype(np.uint16))
        files.picture(beside / f"{name}_gtFine_labelIds.png", np.where(ids < 1000, ids, ids // 1000).astype(np.uint8))
    return root / "cityscapes/gtFine/val"


def ids_of(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.int64) @ np.asarray([1, 256, 65536])


@pytest.mark.parametrize(
    ("num_classes", "kept", "things"),
    [(19, [7, 23, 24000, 24001, 26], 8), (27, [7, 9, 23, 24000, 24001, 26, 29000], 10)],
)
def test_segments_and_pixels(run, fine, num_classes, kept, things):
    status, said, errors = run("prepare_cityscapes", num_classes)
    assert (status, errors) == (0, "")
    assert f"2 pictures, {2 * len(kept)} segments (2 of them crowds), written to" in said
    name = f"cityscapes_val_panoptic_{num_classes}"
    first, second = DatasetCatalog.get(resolve_dataset(name))
    metadata = MetadataCatalog.get(name)
    assert (len(metadata.thing_classes), len(metadata.stuff_classes)) == (things, num_classes)
    assert [first["image_id"], second["image_id"]] == list(CITIES.values())
    assert (second["height"], second["width"]) == (7, 16)
    segments = {segment["id"]: segment for segment in second["segments_info"]}
    assert sorted(segments) == sorted(kept)
    classes = {number: metadata.stuff_classes[segment["category_id"]] for number, segment in segments.items()}
    known = {7: "road", 9: "parking", 23: "sky", 24000: "person", 24001: "person", 26: "car", 29000: "caravan"}
    assert classes == {number: known[number] for number in kept}
    assert [number for number in segments if segments[number]["iscrowd"]] == [26]
    assert {number: segment["isthing"] for number, segment in segments.items()} == {
        n: n not in (7, 9, 23) for n in kept
    }
    drawn = ids_of(second["pan_seg_file_name"])
    np.testing.assert_array_equal(drawn[0], np.repeat([n if n in kept else 0 for n in COLUMNS], 2))
    assert (segments[23]["area"], segments[23]["bbox"]) == (14, [6, 0, 2, 7])


def test_groups_as_segments(run, fine, root):
    assert run("prepare_cityscapes", 27, "--groups", "segment")[0] == 0
    (record, _) = DatasetCatalog.get("cityscapes_val_panoptic_27")
    assert not any(segment["iscrowd"] for segment in record["segments_info"])
    content = json.loads((root / "cityscapes/gtFine/panoptic_val_27.json").read_text())
    assert content["info"]["groups"] == "segment"


def test_both_are_made_once_and_perfect_predictions_have_no_fault(run, fine, root, files):
    assert run("prepare_cityscapes")[0] == 0
    before = files.snapshot(root)
    assert run("prepare_cityscapes")[1].count("already in") == 2
    assert files.snapshot(root) == before
    evaluator = MappedPanopticEvaluator("cityscapes_val_panoptic_27", num_clusters=27, strategies=("hungarian",))
    for record in DatasetCatalog.get("cityscapes_val_panoptic_27"):
        segments = [{key: s[key] for key in ("id", "isthing", "category_id")} for s in record["segments_info"]]
        evaluator.process(
            [record], [{"panoptic_seg": (torch.from_numpy(ids_of(record["pan_seg_file_name"])), segments)}]
        )
    results = evaluator.evaluate()["panoptic_mapped"]
    assert [results[f"{key}_hungarian"] for key in ("PQ", "PQ_th", "PQ_st")] == [100, 100, 100]


def test_published_count_and_missing_files(run, fine, root):
    assert "expected the 500 *_gtFine_instanceIds.png below" in run("prepare_cityscapes", 19, partial=False)[2]
    (root / "cityscapes/leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.png").unlink()
    status, _, errors = run("prepare_cityscapes", 19)
    assert (status, "1 are missing in" in errors) == (1, True)
    with pytest.raises(ValueError, match=r"its panoptic_json .*'python datasets/prepare_cityscapes\.py' makes it"):
        resolve_dataset("cityscapes_val_panoptic_19")


@pytest.mark.parametrize("ids", [34000, 34])
def test_unknown_labels(run, fine, files, ids):
    path = fine / "lindau/lindau_000000_000019_gtFine_instanceIds.png"
    path.with_name(path.name.replace("instanceIds", "labelIds")).unlink()
    files.picture(path, np.full((7, 16), ids, np.uint16))
    assert f"must hold labels up to 33 or 1000 times them plus a number, got {ids}" in run("prepare_cityscapes", 19)[2]


def test_ids_that_contradict_the_labels(run, fine, files):
    files.picture(fine / "lindau/lindau_000000_000019_gtFine_labelIds.png", np.full((7, 16), 7, np.uint8))
    assert "must hold the same labels in every pixel" in run("prepare_cityscapes", 19)[2]
