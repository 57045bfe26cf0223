from __future__ import annotations

import json
import os
import time

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools import mask as mask_util

from s2uniseg_d2.data import resolve_dataset

TRIANGLE = [[1, 1, 30, 1, 1, 30]]


@pytest.fixture
def coco(tmp_path, write_noise):
    """A sound COCO file with polygon, compressed and uncompressed truth, as (content, function that names it)."""
    images = []
    for number in (1, 2):
        write_noise(f"images/{number}.png", 40, 50)
        images.append({"id": number, "file_name": f"{number}.png", "height": 40, "width": 50})
    square = np.zeros((40, 50), dtype=np.uint8, order="F")
    square[10:20, 10:30] = 1
    packed = mask_util.encode(square)
    packed["counts"] = packed["counts"].decode()
    common = {"area": 200, "bbox": [10, 10, 20, 10], "iscrowd": 0}
    loose = {"size": [40, 50], "counts": [410, 10, 1580]}
    content = {
        "images": images,
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 9, "segmentation": TRIANGLE, **common},
            {"id": 2, "image_id": 1, "category_id": 4, "segmentation": packed, **common},
            {"id": 3, "image_id": 2, "category_id": 4, "segmentation": loose, **common, "iscrowd": 1},
        ],
        "categories": [{"id": 9, "name": "nine"}, {"id": 4, "name": "four"}],
    }

    def name(text=None):
        (tmp_path / "truth.json").write_text(json.dumps(content) if text is None else text)
        return f"coco:{tmp_path}/truth.json:{tmp_path}/images"

    return content, name


def test_folder_lists_pictures_sorted_in_any_depth_and_case(tmp_path, write_noise):
    for name in ("b/2.PNG", "b/10.png", "a.Jpeg", "c/d/e.tif"):
        write_noise(name)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "._a.jpg").write_bytes(b"what another system leaves behind")
    name = resolve_dataset(f"folder:{tmp_path}")
    records = DatasetCatalog.get(name)
    assert [os.path.relpath(r["file_name"], tmp_path) for r in records] == [
        "a.Jpeg",
        "b/10.png",
        "b/2.PNG",
        "c/d/e.tif",
    ]
    assert [record["image_id"] for record in records] == [0, 1, 2, 3]
    assert MetadataCatalog.get(name).evaluator_type == "none"


def test_folder_survives_link_loops_and_sees_new_pictures(tmp_path, write_noise):
    write_noise("a/1.png")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere.png")
    name = f"folder:{tmp_path}"
    assert len(DatasetCatalog.get(resolve_dataset(name))) == 1
    write_noise("a/2.png")
    assert len(DatasetCatalog.get(resolve_dataset(name))) == 2


def test_a_folder_is_listed_again_only_if_a_name_came_or_went(tmp_path, write_noise, monkeypatch):
    write_noise("a/1.png")
    for folder in (tmp_path / "a", tmp_path):
        os.utime(folder, (1e9, 1e9))
    name = f"folder:{tmp_path}"
    resolve_dataset(name)
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", lambda path: pytest.fail("the folder was listed again"))
        assert len(DatasetCatalog.get(resolve_dataset(name))) == 1
    write_noise("a/2.png")
    assert len(DatasetCatalog.get(resolve_dataset(name))) == 2


def test_pictures_are_in_the_order_of_their_paths(tmp_path):
    names = ["a-1/x.png", "a.png", "a/b.png", "a/b-/c.png", "a0.png", "b/z.png", "B.png", "b.png", "ab/c.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    records = DatasetCatalog.get(resolve_dataset(f"folder:{tmp_path}"))
    paths = [record["file_name"] for record in records]
    assert paths == sorted(paths)
    assert len(paths) == len(names)


def test_a_relative_name_follows_the_working_folder(tmp_path, write_noise, monkeypatch):
    write_noise("one/pictures/1.png")
    write_noise("two/pictures/2.png")
    for place, picture in (("one", "1.png"), ("two", "2.png")):
        monkeypatch.chdir(tmp_path / place)
        (record,) = DatasetCatalog.get(resolve_dataset("folder:pictures"))
        assert record["file_name"] == str(tmp_path / place / "pictures" / picture)


def test_a_large_folder_is_listed_without_opening_pictures(tmp_path):
    for number in range(2000):
        os.close(os.open(tmp_path / f"{number}.jpg", os.O_CREAT))
    start = time.process_time()
    assert len(DatasetCatalog.get(resolve_dataset(f"folder:{tmp_path}"))) == 2000
    assert time.process_time() - start < 1  # a hundredth of that is usual


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(ValueError, match=r"picture folder .*/nowhere does not exist"):
        resolve_dataset(f"folder:{tmp_path}/nowhere")
    with pytest.raises(ValueError, match=r"picture folder .* holds no picture \(looked for \.avif"):
        resolve_dataset(f"folder:{tmp_path}")
    (tmp_path / "file.jpg").touch()
    with pytest.raises(ValueError, match=r"file\.jpg is not a folder"):
        resolve_dataset(f"folder:{tmp_path}/file.jpg")


def test_unknown_names_list_the_known_ones():
    with pytest.raises(
        ValueError, match=r"unknown data set 'cocoo_2017_val'; .*folder:PATH.*coco:JSON.*scenes:.*coco_2017_val"
    ):
        resolve_dataset("cocoo_2017_val")
    with pytest.raises(ValueError, match=r"unknown data set 'zip:x'; known are"):
        resolve_dataset("zip:x")
    for name, form in (("folder:", "folder:PATH"), ("coco:", "coco:JSON:IMAGE_DIR"), ("coco:a.json", "coco:JSON")):
        with pytest.raises(ValueError, match=f"data set name '{name}' must .*{form}"):
            resolve_dataset(name)


def test_registered_names_pass_if_their_files_exist(tmp_path):
    DatasetCatalog.register("mine:1", lambda: [{"file_name": "a.png"}])
    assert resolve_dataset("mine:1") == "mine:1"
    MetadataCatalog.get("mine:1").set(json_file=str(tmp_path / "no.json"))
    with pytest.raises(ValueError, match=r"'mine:1' is registered, but its json_file .*no\.json does not exist"):
        resolve_dataset("mine:1")


def test_coco_records_and_metadata(coco, tmp_path):
    _, name = coco
    resolved = resolve_dataset(name())
    first, second = DatasetCatalog.get(resolved)
    assert [first["file_name"], first["height"], first["width"]] == [str(tmp_path / "images/1.png"), 40, 50]
    assert [a["category_id"] for a in first["annotations"]] == [1, 0]
    assert first["annotations"][0]["segmentation"] == TRIANGLE
    assert mask_util.area(first["annotations"][1]["segmentation"]) == 200
    assert second["annotations"][0]["iscrowd"] == 1
    metadata = MetadataCatalog.get(resolved)
    assert (metadata.evaluator_type, metadata.thing_classes) == ("coco", ["four", "nine"])
    assert metadata.thing_dataset_id_to_contiguous_id == {4: 0, 9: 1}
    assert (metadata.json_file, metadata.image_root) == (str(tmp_path / "truth.json"), str(tmp_path / "images"))


def test_coco_is_checked_again_when_the_file_changes(coco):
    content, name = coco
    resolve_dataset(name())
    content["categories"][0]["name"] = "neuf"
    assert MetadataCatalog.get(resolve_dataset(name())).thing_classes == ["four", "neuf"]


def test_coco_paths_may_hold_colons(coco, tmp_path):
    _, name = coco
    name()
    odd = tmp_path / "a:b"
    odd.mkdir()
    (tmp_path / "truth.json").rename(odd / "t.json")
    assert len(DatasetCatalog.get(resolve_dataset(f"coco:{odd}/t.json:{tmp_path}/images"))) == 2


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"images": [', r"truth\.json is not valid JSON: .*line 1"),
        ("", r"truth\.json is not valid JSON"),
        ("[1, 2]", "must hold a JSON object, got a list"),
        ('{"images": []}', "lacks annotations, categories; COCO's format has"),
        ('{"images": [], "annotations": [], "categories": []}', "holds no images: the list is empty"),
        (
            '{"images": {}, "annotations": [], "categories": []}',
            "images of annotation file .* must be a list of objects",
        ),
    ],
)
def test_coco_files_of_the_wrong_form(coco, text, match):
    with pytest.raises(ValueError, match=match):
        resolve_dataset(coco[1](text))


@pytest.mark.parametrize(
    ("where", "change", "match"),
    [
        (("images", 1), {"file_name": "gone.png"}, r"names 2 images, of which 1 are missing in .*/images: gone\.png$"),
        (("images", 1), {"file_name": "sub/gone.png"}, r"of which 1 are missing in .*: sub/gone\.png$"),
        (("images", 1), {"height": None}, r"1 of 2 images of annotation file .* lack 'height': id 2$"),
        (("images", 1), {"id": 1}, "2 of 2 images .* share their id with another: id 1, id 1$"),
        (("annotations", 0), {"segmentation": None}, "1 of 3 annotations .* lack 'segmentation': id 1$"),
        (("annotations", 0), {"iscrowd": None}, "1 of 3 annotations .* lack 'iscrowd'"),
        (("annotations", 0), {"image_id": 77}, "1 of 3 annotations .* name an image_id not in images: id 1"),
        (("annotations", 0), {"category_id": 77}, "1 of 3 annotations .* name a category_id not in categories"),
        (("annotations", 0), {"segmentation": [[1, 2, 3, 4]]}, "1 of 3 annotations .* neither polygons of at least 3"),
        (("annotations", 0), {"segmentation": []}, "1 of 3 annotations .* neither polygons of at least 3"),
        (
            ("annotations", 2),
            {"segmentation": {"size": [50, 40], "counts": [2000]}},
            "run lengths of the picture's size",
        ),
        (("annotations", 0), {"ignore": 1}, "set 'ignore'"),
        (("categories", 0), {"name": None}, "1 of 2 categories .* lack 'name': id 9"),
    ],
)
def test_coco_faults_are_counted_and_named(coco, where, change, match):
    content, name = coco
    item = content[where[0]][where[1]]
    for key, value in change.items():
        if value is None:
            del item[key]
        else:
            item[key] = value
    with pytest.raises(ValueError, match=match):
        resolve_dataset(name())


def test_coco_names_three_of_many_missing_files(coco):
    content, name = coco
    content["images"] += [{"id": n, "file_name": f"{n}.png", "height": 4, "width": 4} for n in range(10, 20)]
    with pytest.raises(
        ValueError, match=r"names 12 images, of which 10 are missing in .*: 10\.png, 11\.png, 12\.png, \.\.\.$"
    ):
        resolve_dataset(name())


def test_coco_without_its_parts(coco, tmp_path):
    coco[1]()
    with pytest.raises(ValueError, match=r"cannot read annotation file .*no\.json: No such file"):
        resolve_dataset(f"coco:{tmp_path}/no.json:{tmp_path}/images")
    with pytest.raises(ValueError, match=r"folder .*/nowhere, for the images of annotation file .* does not exist"):
        resolve_dataset(f"coco:{tmp_path}/truth.json:{tmp_path}/nowhere")


def test_coco_photographs_load(shared_data):
    folder = shared_data / "coco64"
    name = resolve_dataset(f"coco:{folder}/instances.json:{folder}/images")
    records = DatasetCatalog.get(name)
    annotations = [annotation for record in records for annotation in record["annotations"]]
    assert (len(records), len(annotations), sum(a["iscrowd"] for a in annotations)) == (64, 430, 7)
    assert len(MetadataCatalog.get(name).thing_classes) == 80
