from __future__ import annotations

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from pycocotools import mask as mask_coding

from s2uniseg_d2.data import resolve_dataset
from s2uniseg_d2.evaluation import AgnosticCOCOEvaluator

HEIGHT, WIDTH = 20, 30
THINGS = [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]


def rle(top, left, size=5):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[top : top + size, left : left + size] = 1
    coded = mask_coding.encode(mask)
    return {"size": coded["size"], "counts": coded["counts"].decode()}


@pytest.fixture
def dense(root, files):
    """Two videos of three and two frames in UVO's video format: a person, a dog that leaves, and something else."""
    names = [f"vid{v}/{f}.png" for v, length in ((1, 3), (2, 2)) for f in range(length)]
    for seed, name in enumerate(names):
        files.photo(root / "uvo/uvo_videos_dense_frames" / name, HEIGHT, WIDTH, seed)
    videos = [
        {"id": 11, "ytid": "vid1", "width": WIDTH, "height": HEIGHT, "length": 3, "file_names": names[:3]},
        {"id": 12, "ytid": "vid2", "width": WIDTH, "height": HEIGHT, "length": 2, "file_names": names[3:]},
    ]
    tracks = [
        {"id": 1, "video_id": 11, "category_id": 1, "segmentations": [rle(0, 0), rle(1, 1), rle(2, 2)], "iscrowd": 0},
        {"id": 2, "video_id": 11, "category_id": 18, "segmentations": [rle(9, 9), None, None], "iscrowd": 0},
        {"id": 3, "video_id": 12, "category_id": 91, "segmentations": [rle(4, 4), rle(4, 5)], "iscrowd": 0},
    ]
    content = {"videos": videos, "annotations": tracks, "categories": [*THINGS, {"id": 91, "name": "other"}]}
    return content, root / "uvo/VideoDenseSet/UVO_video_val_dense_with_label.json"


@pytest.fixture
def sparse(root, files):
    """Two frames in CutLER's form, one object without area and box."""
    for name in ("a.jpg", "b.jpg"):
        files.photo(root / "uvo/all_UVO_frames" / name, HEIGHT, WIDTH)
    content = {
        "images": [
            {"id": i, "file_name": name, "height": HEIGHT, "width": WIDTH} for i, name in enumerate(("a.jpg", "b.jpg"))
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 0,
                "category_id": 1,
                "segmentation": rle(1, 2),
                "area": 25,
                "bbox": [2, 1, 5, 5],
                "iscrowd": 0,
            },
            {"id": 2, "image_id": 1, "category_id": 1, "segmentation": rle(3, 4, 6)},
        ],
        "categories": [{"id": 1, "name": "object"}],
    }
    return content, root / "uvo/annotations/val_sparse_cleaned_cls_agnostic.json"


def test_dense_frames_become_pictures_with_the_objects_visible_in_them(run, dense, files):
    files.truth(dense[1], dense[0])
    status, said, errors = run("prepare_uvo", "dense", "--other", "left_out")
    assert (status, errors, said.count("uvo_dense_val_other")) == (0, "", 1)
    assert "5 frames, 6 objects, 2 of them 'other', written to" in said
    records = DatasetCatalog.get(resolve_dataset("uvo_dense_val"))
    assert [record["file_name"].rpartition("frames/")[2] for record in records] == [
        name for video in dense[0]["videos"] for name in video["file_names"]
    ]
    classes = MetadataCatalog.get("uvo_dense_val").thing_classes
    assert [[classes[a["category_id"]] for a in record["annotations"]] for record in records] == [
        ["person", "dog"],
        ["person"],
        ["person"],
        [],
        [],
    ]
    annotation = records[2]["annotations"][0]
    assert annotation["bbox"] == [2, 2, 5, 5]
    assert mask_coding.area(annotation["segmentation"]) == 25


def test_other_is_left_out_ignored_or_a_class_of_its_own(run, dense, files, root):
    files.truth(dense[1], dense[0])
    assert run("prepare_uvo", "dense")[0] == 0
    found = {}
    for name in ("uvo_dense_val", "uvo_dense_val_other_ignored", "uvo_dense_val_other_class"):
        annotations = [a for record in DatasetCatalog.get(resolve_dataset(name)) for a in record["annotations"]]
        others = [a["iscrowd"] for a in annotations if a["category_id"] == 80]
        found[name] = (len(MetadataCatalog.get(name).thing_classes), len(annotations), others)
    assert found == {
        "uvo_dense_val": (80, 4, []),
        "uvo_dense_val_other_ignored": (81, 6, [1, 1]),
        "uvo_dense_val_other_class": (81, 6, [0, 0]),
    }
    info = json.loads((root / "uvo/annotations/uvo_dense_val_other_ignored.json").read_text())["info"]
    assert info["other"] == "ignored"
    before = files.snapshot(root)
    assert run("prepare_uvo", "dense")[1].count("already in") == 3
    assert files.snapshot(root) == before


def test_category_numbers_of_the_file_do_not_matter_but_names_do(run, dense, files):
    content, path = dense
    content["categories"] = [{"id": c["id"] + 100, "name": c["name"]} for c in content["categories"]]
    for track in content["annotations"]:
        track["category_id"] += 100
    files.truth(path, content)
    assert run("prepare_uvo", "dense")[0] == 0
    assert [a["category_id"] for a in DatasetCatalog.get("uvo_dense_val")[0]["annotations"]] == [0, 16]
    content["categories"] = [{"id": number, "name": "object"} for number in (101, 118, 191)]
    files.truth(path, content)
    status, _, errors = run("prepare_uvo", "dense")
    assert status == 1
    assert (
        "must be COCO's 80 and 'other', got object beside them: use the file whose name ends in _with_label" in errors
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c["annotations"][0]["segmentations"].pop(), "for each of the 3 frames of video 11, got 2"),
        (lambda c: c["annotations"][0].update(video_id=5), "is not in UVO's video format: KeyError(5)"),
        (lambda c: c["annotations"][0].update(category_id=12), "is not in UVO's video format: KeyError(12)"),
        (lambda c: c.pop("videos"), "is not in UVO's video format: KeyError('videos')"),
        (lambda c: c["videos"][1].update(id=11), "videos must have different ids, got 11 twice"),
        (lambda c: c["videos"][0]["file_names"].__setitem__(0, "vid1/7.png"), "1 are missing in"),
        (lambda c: c["videos"][1].update(height=21), "run lengths of the picture's size"),
    ],
)
def test_faults_of_the_dense_file(run, dense, files, root, change, match):
    content, path = dense
    change(content)
    files.truth(path, content)
    status, said, errors = run("prepare_uvo", "dense", "--other", "class")
    assert (status, said) == (1, "")
    assert match in errors
    assert not (root / "uvo/annotations").exists()


def test_sparse_frames_of_cutler(run, sparse, files):
    files.truth(sparse[1], sparse[0])
    status, said, _ = run("prepare_uvo", "sparse")
    assert (status, "2 frames, 2 objects, written to" in said) == (0, True)
    second = DatasetCatalog.get(resolve_dataset("uvo_sparse_val_agnostic"))[1]["annotations"][0]
    assert (second["bbox"], second["iscrowd"]) == ([4, 3, 6, 6], 0)
    assert MetadataCatalog.get("uvo_sparse_val_agnostic").thing_classes == ["fg"]
    AgnosticCOCOEvaluator("uvo_sparse_val_agnostic")  # which refuses truth without areas


def test_sparse_file_of_another_name_is_recorded(run, sparse, files, root):
    path = files.truth(root / "elsewhere/UVO_frame_val.json", sparse[0])
    assert run("prepare_uvo", "sparse", "--sparse-json", path)[0] == 0
    info = json.loads((root / "uvo/annotations/uvo_sparse_val_agnostic.json").read_text())["info"]
    assert info["made_from"] == "UVO_frame_val.json"


def test_what_is_missing_is_named_with_its_page(run, root):
    status, said, errors = run("prepare_uvo", partial=False)
    assert (status, said, errors.count("\n")) == (1, "", 2)
    for part in (
        "val_sparse_cleaned_cls_agnostic.json is missing",
        "facebookresearch/CutLER",
        "VideoDenseSet",
        "sites.google",
    ):
        assert part in errors
    with pytest.raises(
        ValueError, match=r"its json_file .* does not exist; 'python datasets/prepare_uvo\.py' makes it"
    ):
        resolve_dataset("uvo_dense_val_other_class")


def test_the_published_number_of_videos_is_asked_for(run, dense, files):
    files.truth(dense[1], dense[0])
    assert "expected the 256 videos that are published, got 2" in run("prepare_uvo", "dense", partial=False)[2]
