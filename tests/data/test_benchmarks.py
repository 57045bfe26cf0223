from __future__ import annotations

import json
import os

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from s2uniseg_d2.data import BENCHMARKS, register_benchmarks, resolve_dataset
from s2uniseg_d2.data.panoptic_json import read_panoptic_json


@pytest.fixture
def root(tmp_path):
    register_benchmarks(tmp_path)
    yield tmp_path
    register_benchmarks()


@pytest.fixture
def panoptic(root):
    """One picture of Cityscapes' form, half road, half a person, as (content, where it is to be written)."""
    benchmark = BENCHMARKS["cityscapes_val_panoptic_19"]
    for place, name in ((benchmark.images, "ulm/a_leftImg8bit.png"), (benchmark.maps, "a_panoptic.png")):
        path = root / place / name
        path.parent.mkdir(parents=True)
        Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(path)
    segments = [{"id": 7, "category_id": 7, "iscrowd": 0}, {"id": 24000, "category_id": 24, "iscrowd": 0}]
    content = {
        "images": [{"id": "a", "file_name": "ulm/a_leftImg8bit.png", "height": 4, "width": 6}],
        "annotations": [{"image_id": "a", "file_name": "a_panoptic.png", "segments_info": segments}],
        "categories": json.loads(json.dumps(benchmark.categories)),
    }
    return content, root / benchmark.truth


@pytest.mark.parametrize("name", BENCHMARKS)
def test_no_data_on_disk_is_no_error_until_it_is_asked_for(name, root):
    metadata = MetadataCatalog.get(name)
    assert metadata.made_by == BENCHMARKS[name].made_by
    with pytest.raises(
        ValueError, match=rf"'{name}' is registered, but its \w+ {root}/.* does not exist; 'python {metadata.made_by}'"
    ):
        resolve_dataset(name)


def test_each_command_that_makes_a_benchmark_exists(repository):
    assert all((repository / benchmark.made_by).is_file() for benchmark in BENCHMARKS.values())


def test_readme_has_every_name_and_every_place(repository):
    text = (repository / "datasets/README.md").read_text()
    assert [name for name in BENCHMARKS if f"`{name}`" not in text] == []
    places = {place for b in BENCHMARKS.values() for place in (b.truth, b.images, b.maps) if place}
    assert [place for place in places if os.path.basename(place) not in text] == []


@pytest.mark.parametrize("name", BENCHMARKS)
def test_metadata_has_what_the_evaluators_read(name):
    benchmark, metadata = BENCHMARKS[name], MetadataCatalog.get(name)
    ids = [category["id"] for category in benchmark.categories]
    assert len(set(ids)) == len(ids)
    if benchmark.kind == "instances":
        assert metadata.json_file.endswith(benchmark.truth)
        assert list(metadata.thing_dataset_id_to_contiguous_id.items()) == list(zip(ids, range(len(ids)), strict=True))
        assert len(metadata.thing_classes) == len(ids)
    if benchmark.kind == "panoptic":
        assert metadata.panoptic_json.endswith(benchmark.truth)
        assert metadata.panoptic_root.endswith(benchmark.maps)
        things = [category["id"] for category in benchmark.categories if category["isthing"]]
        assert sorted(metadata.thing_dataset_id_to_contiguous_id) == sorted(things)
        assert sorted(metadata.stuff_dataset_id_to_contiguous_id.values()) == list(range(len(ids)))
        assert metadata.thing_classes == metadata.stuff_classes[: len(things)]
        assert metadata.get("json_file") is None
    if benchmark.kind == "semantic":
        assert (metadata.ignore_label, len(metadata.stuff_classes)) == (255, 27)


def test_numbers_of_classes():
    counts = {name: len(benchmark.categories) for name, benchmark in BENCHMARKS.items()}
    assert counts == {
        "coco_2017_val_agnostic": 1,
        "coco_2017_val_panoptic_95": 95,
        "cocostuff27_val": 27,
        "cocostuff27_val_full": 27,
        "uvo_sparse_val_agnostic": 1,
        "uvo_dense_val": 80,
        "uvo_dense_val_other_ignored": 81,
        "uvo_dense_val_other_class": 81,
        "cityscapes_val_panoptic_19": 19,
        "cityscapes_val_panoptic_27": 27,
    }


def test_the_root_is_that_of_the_environment(tmp_path, monkeypatch, root):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "elsewhere"))
    register_benchmarks()
    expected = f"{tmp_path}/elsewhere/uvo/annotations/uvo_dense_val_other_left_out.json"
    assert MetadataCatalog.get("uvo_dense_val").json_file == expected


def test_panoptic_records(panoptic):
    content, path = panoptic
    path.write_text(json.dumps(content))
    (record,) = DatasetCatalog.get(resolve_dataset("cityscapes_val_panoptic_19"))
    assert (record["image_id"], record["height"], record["width"]) == ("a", 4, 6)
    assert record["file_name"].endswith("leftImg8bit/val/ulm/a_leftImg8bit.png")
    road, person = record["segments_info"]
    assert (road["isthing"], road["category_id"]) == (False, 8)
    assert (person["isthing"], person["category_id"]) == (True, 0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c.pop("annotations"), "lacks annotations, or they are empty"),
        (lambda c: c["images"][0].pop("id"), "1 of 1 images of annotation file .* lack 'id'"),
        (lambda c: c["images"].append(c["images"][0]), "share their id with another"),
        (lambda c: c["annotations"][0].update(image_id="b"), r"1 annotations .* name pictures not in images: \['b'\]"),
        (lambda c: c["annotations"][0]["segments_info"][0].update(category_id=9), r"not in categories: \[9\]"),
        (lambda c: c["annotations"][0].update(file_name="b.png"), r"names 1 panoptic PNGs, of which 1 are missing"),
        (lambda c: c["images"][0].update(file_name="b.png"), r"names 1 pictures, of which 1 are missing"),
        (
            lambda c: c["categories"][3].update(name="tree"),
            r"must hold the categories .* \(19 in all\).*: make it again",
        ),
    ],
)
def test_faults_of_panoptic_files(panoptic, change, match):
    content, path = panoptic
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=match):
        DatasetCatalog.get("cityscapes_val_panoptic_19")


def test_coco_s_own_panoptic_file_is_sound(shared_data):
    assert len(read_panoptic_json(shared_data / "panoptic2" / "panoptic.json")["annotations"]) == 2


def test_a_users_own_registration_stays_at_import_and_goes_on_request(caplog):
    name = "uvo_dense_val"
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    DatasetCatalog.register(name, list)
    try:
        register_benchmarks(replace=False)
        assert DatasetCatalog.get(name) == []
        assert "stays as it is" in caplog.text
    finally:
        register_benchmarks()
    assert MetadataCatalog.get(name).made_by
