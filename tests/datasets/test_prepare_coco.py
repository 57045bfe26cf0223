from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from s2uniseg_d2.data import resolve_dataset
from s2uniseg_d2.evaluation import MappedPanopticEvaluator

ANNOTATIONS = "coco/annotations"


@pytest.fixture
def instances(root, files):
    """Two pictures with three objects of two classes, one of them a crowd, in COCO's place and format."""
    files.photo(root / "coco/val2017/000000000007.jpg", 30, 40)
    files.photo(root / "coco/val2017/000000000009.jpg", 20, 25)
    common = {"area": 25.0, "bbox": [1, 1, 5, 5]}
    square = [[1, 1, 6, 1, 6, 6, 1, 6]]
    content = {
        "info": {"year": 2017},
        "licenses": [{"id": 1}],
        "images": [
            {"id": 7, "file_name": "000000000007.jpg", "height": 30, "width": 40, "license": 1},
            {"id": 9, "file_name": "000000000009.jpg", "height": 20, "width": 25, "license": 1},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "segmentation": square, "iscrowd": 0, **common},
            {"id": 2, "image_id": 7, "category_id": 18, "segmentation": square, "iscrowd": 0, **common},
            {
                "id": 3,
                "image_id": 9,
                "category_id": 1,
                "segmentation": {"size": [20, 25], "counts": [10, 90, 400]},
                "iscrowd": 1,
                **common,
            },
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
    }
    return content, files.truth(root / ANNOTATIONS / "instances_val2017.json", content)


@pytest.fixture
def panoptic(root, shared_data):
    """COCO's own panoptic truth of two pictures, in COCO's place."""
    source = shared_data / "panoptic2"
    shutil.copytree(source / "images", root / "coco/val2017")
    shutil.copytree(source / "panoptic", root / "coco/panoptic_val2017")
    (root / ANNOTATIONS).mkdir()
    shutil.copy(source / "panoptic.json", root / ANNOTATIONS / "panoptic_val2017.json")
    return json.loads((source / "panoptic.json").read_text())


def test_agnostic_truth_has_one_class_and_all_objects(run, instances, root, files):
    status, said, errors = run("prepare_coco", "agnostic")
    assert (status, errors) == (0, "")
    assert "2 pictures, 3 objects (1 of them crowds), written to" in said
    first, second = DatasetCatalog.get(resolve_dataset("coco_2017_val_agnostic"))
    assert [a["category_id"] for a in first["annotations"]] == [0, 0]
    assert second["annotations"][0]["iscrowd"] == 1
    assert MetadataCatalog.get("coco_2017_val_agnostic").thing_classes == ["fg"]
    made = json.loads((root / ANNOTATIONS / "instances_val2017_agnostic.json").read_text())
    assert [{**a, "category_id": 0} for a in made["annotations"]] == [
        {**a, "category_id": 0} for a in instances[0]["annotations"]
    ]
    assert made["images"] == instances[0]["images"]
    assert json.loads(instances[1].read_text()) == instances[0]
    before = files.snapshot(root)
    assert "already in" in run("prepare_coco", "agnostic")[1]
    assert files.snapshot(root) == before


def test_panoptic_truth_of_coco_becomes_95_classes_without_merging(run, panoptic, root):
    assert run("prepare_coco", "panoptic")[0] == 0
    records = DatasetCatalog.get(resolve_dataset("coco_2017_val_panoptic_95"))
    metadata = MetadataCatalog.get("coco_2017_val_panoptic_95")
    assert (len(metadata.thing_classes), len(metadata.stuff_classes)) == (80, 95)
    supercategory = {c["id"]: c["supercategory"] for c in panoptic["categories"]}
    name = {c["id"]: c["name"] for c in panoptic["categories"]}
    merged = 0
    for record, annotation in zip(records, panoptic["annotations"], strict=True):
        assert record["image_id"] == annotation["image_id"]
        with Image.open(record["file_name"]) as picture:
            assert picture.size == (record["width"], record["height"])
        for made, own in zip(record["segments_info"], annotation["segments_info"], strict=True):
            assert (made["id"], made["area"], made["bbox"]) == (own["id"], own["area"], own["bbox"])
            expected = name[own["category_id"]] if made["isthing"] else supercategory[own["category_id"]]
            assert metadata.stuff_classes[made["category_id"]] == expected
        stuff = [s["category_id"] for s in record["segments_info"] if not s["isthing"]]
        merged += len(stuff) - len(set(stuff))
    assert merged > 0  # two segments of one supercategory, still two


def test_perfect_panoptic_predictions_find_all_but_the_segments_that_share_a_supercategory(run, panoptic):
    run("prepare_coco", "panoptic")
    evaluator = MappedPanopticEvaluator("coco_2017_val_panoptic_95", num_clusters=95, strategies=("majority",))
    records = DatasetCatalog.get("coco_2017_val_panoptic_95")
    for record in records:
        with Image.open(record["pan_seg_file_name"]) as picture:
            colours = np.asarray(picture.convert("RGB"), dtype=np.int64)
        drawn = torch.from_numpy(colours @ np.asarray([1, 256, 65536]))
        segments = [{key: s[key] for key in ("id", "isthing", "category_id")} for s in record["segments_info"]]
        evaluator.process([record], [{"panoptic_seg": (drawn, segments)}])
    results = evaluator.evaluate()["panoptic_mapped"]
    assert results["PQ_th_majority"] == 100
    # each picture has two segments of plants (trees, grass), of which a map of classes can be only one
    assert results["PQ_majority-plant"] < 100
    assert [results[f"PQ_majority-{name}"] for name in ("sky", "ground")] == [100, 100]


def test_one_missing_part_does_not_keep_the_other_from_being_made(run, instances, root):
    status, said, errors = run("prepare_coco")
    assert status == 1
    assert said.startswith("agnostic: 2 pictures")
    assert errors.count("\n") == 1
    for part in ("panoptic_val2017.json is missing", "panoptic_annotations_trainval2017.zip", "cocodataset.org"):
        assert part in errors


def test_published_counts_are_asked_for(run, instances, root):
    status, _, errors = run("prepare_coco", "agnostic", partial=False)
    assert status == 1
    assert "expected the 5000 pictures of val2017 that are published, got 2; --partial accepts others" in errors
    assert not (root / ANNOTATIONS / "instances_val2017_agnostic.json").exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c["images"][0].update(width=41), "must be of height and width (30, 41)"),
        (lambda c: c["images"][1].update(file_name="000000000008.jpg"), "1 are missing in"),
        (lambda c: c["annotations"][0].pop("segmentation"), "lack 'segmentation'"),
        (lambda c: c["annotations"][0].update(category_id=5), "name a category_id not in categories"),
    ],
)
def test_faults_of_instances(run, instances, root, files, change, match):
    content, path = instances
    change(content)
    files.truth(path, content)
    status, said, errors = run("prepare_coco", "agnostic")
    assert (status, said) == (1, "")
    assert match in errors
    assert not (root / ANNOTATIONS / "instances_val2017_agnostic.json").exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c["annotations"][0]["segments_info"].pop(), "and is listed with 0"),
        (lambda c: c["annotations"][1]["segments_info"][0].update(area=1), "and is listed with 1"),
        (lambda c: c["annotations"][0]["segments_info"][0].update(category_id=999), "not in categories: [999]"),
        (lambda c: c["categories"].pop(), "80 things and 53 stuff classes, got 80 and 52, with stuff ids [200]"),
        (lambda c: c["categories"][-1].update(supercategory="sky"), "must be of supercategory textile, got sky"),
        (lambda c: c["annotations"][0].update(image_id=5), "name pictures not in images: [5]"),
    ],
)
def test_faults_of_panoptic_truth(run, panoptic, root, files, change, match):
    change(panoptic)
    files.truth(root / ANNOTATIONS / "panoptic_val2017.json", panoptic)
    status, said, errors = run("prepare_coco", "panoptic")
    assert (status, said) == (1, "")
    assert match in errors
