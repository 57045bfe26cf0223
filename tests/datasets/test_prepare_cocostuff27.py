from __future__ import annotations

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from s2uniseg_d2.data import resolve_dataset
from s2uniseg_d2.evaluation import MappedSemSegEvaluator

# fine id minus 1, as stuffthingmaps have it -> the class it must become
EXPECTED = {0: "person", 1: "vehicle", 94: "building", 104: "textile", 181: "solid", 178: "water", 17: "animal"}
NAMES = ("000000000139", "000000000285", "000000000632")


@pytest.fixture
def maps(root, files):
    """Three pictures with pixel maps; the curated list names the last and the first."""
    values = [*EXPECTED, 255]
    for seed, name in enumerate(NAMES):
        files.photo(root / f"coco/val2017/{name}.jpg", 12, 16 + seed)
        labels = np.random.default_rng(seed).choice(values, (12, 16 + seed)).astype(np.uint8)
        files.picture(root / f"coco/stuffthingmaps/val2017/{name}.png", labels)
    curated = root / "coco/curated/val2017/Coco164kFull_Stuff_Coarse_7.txt"
    curated.parent.mkdir(parents=True)
    curated.write_text(f"{NAMES[2]}\n{NAMES[0]}\n\n")
    return root / "coco/stuffthingmaps/val2017"


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_labels_become_27_classes_for_the_list_and_for_all(run, maps, root, files):
    status, said, errors = run("prepare_cocostuff27")
    assert (status, errors) == (0, "")
    assert "curated: 2 pictures, 7 of 27 classes seen, 1" in said
    assert "full: 3 pictures" in said
    for name, pictures in (("cocostuff27_val", [2, 0]), ("cocostuff27_val_full", [0, 1, 2])):
        records = DatasetCatalog.get(resolve_dataset(name))
        metadata = MetadataCatalog.get(name)
        assert [record["image_id"] for record in records] == [int(NAMES[index]) for index in pictures]
        assert (metadata.ignore_label, len(metadata.stuff_classes)) == (255, 27)
        for record, index in zip(records, pictures, strict=True):
            fine, coarse = pixels(maps / f"{NAMES[index]}.png"), pixels(record["sem_seg_file_name"])
            assert coarse.dtype == np.uint8
            assert coarse.shape == fine.shape == (record["height"], record["width"])
            for value, expected in EXPECTED.items():
                assert {metadata.stuff_classes[c] for c in np.unique(coarse[fine == value])} == {expected}
            assert set(np.unique(coarse[fine == 255])) == {255}
    before = files.snapshot(root)
    assert run("prepare_cocostuff27")[1].count("already in") == 2
    assert files.snapshot(root) == before


def test_perfect_predictions_have_no_fault(run, maps):
    torch = pytest.importorskip("torch")
    run("prepare_cocostuff27", "curated")
    evaluator = MappedSemSegEvaluator("cocostuff27_val", num_clusters=27, strategies=("majority",))
    for record in DatasetCatalog.get("cocostuff27_val"):
        labels = pixels(record["sem_seg_file_name"]).astype(np.int64)
        labels[labels == 255] = 3
        evaluator.process([record], [{"sem_seg_labels": torch.from_numpy(labels)}])
    results = evaluator.evaluate()["sem_seg_mapped"]
    assert (results["PixelAcc_majority"], results["mIoU_majority"]) == (100, 100)


def test_without_the_list_only_the_whole_set_is_made(run, maps, root):
    (root / "coco/curated/val2017/Coco164kFull_Stuff_Coarse_7.txt").unlink()
    status, said, errors = run("prepare_cocostuff27")
    assert (status, said.startswith("full: 3 pictures")) == (1, True)
    for part in (
        "Coco164kFull_Stuff_Coarse_7.txt is missing",
        "in COCOStuff164kCurated.tar.gz, https://github.com/xu-ji",
    ):
        assert part in errors
    with pytest.raises(ValueError, match=r"its list_file .*'python datasets/prepare_cocostuff27\.py' makes it or says"):
        resolve_dataset("cocostuff27_val")


def test_the_list_has_its_published_length(run, maps):
    status, _, errors = run("prepare_cocostuff27", partial=False)
    assert status == 1
    assert "expected the 2175 pictures of the curated list that are published, got 2" in errors
    assert "expected the 5000 pictures of val2017 that are published, got 3" in errors


def test_faults_of_pixel_maps(run, maps, root, files):
    files.picture(maps / f"{NAMES[0]}.png", np.full((12, 16), 182, np.uint8))
    assert "must hold labels below 182 or 255, got [182]" in run("prepare_cocostuff27", "full")[2]
    files.picture(maps / f"{NAMES[0]}.png", np.zeros((12, 16, 3), np.uint8))
    assert "must have one channel of labels, got 3 channels" in run("prepare_cocostuff27", "full")[2]
    files.picture(maps / f"{NAMES[0]}.png", np.zeros((12, 15), np.uint8))
    assert "must be of height and width (12, 15)" in run("prepare_cocostuff27", "full")[2]
    (maps / f"{NAMES[0]}.png").write_bytes(b"\x89PNG")
    assert "cannot be read as a picture" in run("prepare_cocostuff27", "full")[2]
    (maps / f"{NAMES[0]}.png").unlink()
    assert "names 3 pixel maps, of which 1 are missing" in run("prepare_cocostuff27", "full")[2]
    assert not (root / "coco/annotations/cocostuff27_val2017_full.json").exists()


def test_a_truth_that_lost_a_picture_is_refused_when_it_is_asked_for(run, maps, root):
    run("prepare_cocostuff27", "full")
    (root / f"coco/val2017/{NAMES[1]}.jpg").unlink()
    with pytest.raises(ValueError, match=f"names 3 images, of which 1 are missing in .*: {NAMES[1]}.jpg"):
        DatasetCatalog.get("cocostuff27_val_full")
    path = root / "coco/annotations/cocostuff27_val2017_full.json"
    path.write_text(json.dumps({"images": [{"id": 1}]}))
    with pytest.raises(ValueError, match="must list images, each with id, file_name, height and width"):
        DatasetCatalog.get("cocostuff27_val_full")
