from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from s2uniseg_d2.data.panoptic_json import load_panoptic, panoptic_classes, read_panoptic_json
from s2uniseg_d2.evaluation.png_maps import read_ids, read_labels
from s2uniseg_d2.gallery.page import PageFacts
from s2uniseg_d2.gallery.results import NO_CLUSTER, ResultFiles, check_output

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
FACTS = PageFacts("title", ["Facts."], 0.5, [])
ALL = ("instance", "semantic", "panoptic")


@pytest.fixture
def folder(tmp_path, found, picture):
    files = ResultFiles(tmp_path / "out", ALL, 8)
    for name in ("a/x.png", "a/x.jpg", "b/x.png"):
        files.add(name, picture, found, 0.25)
    files.skip("bad.png", "cannot read picture bad.png: it is none")
    files.finish({}, FACTS)
    assert files.masks == 3 * (3 + 2 + 2)
    return tmp_path / "out"


def test_pycocotools_reads_the_instances(folder, found):
    coco = COCO(str(folder / "instances.json"))
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == ["a/x.png", "a/x.jpg", "b/x.png"]
    for image_id in coco.getImgIds():
        items = coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))
        masks = np.array([coco.annToMask(item) for item in items], dtype=bool)
        assert (masks == found.instances.pred_masks.numpy()).all()
        assert [item["category_id"] for item in items] == [3, 1, 3]
        assert [item["area"] for item in items] == [25, 14 * 16, 8 * 12]
        assert items[0]["bbox"] == [5, 5, 5, 5]
        assert items[0]["score"] == pytest.approx(0.9)
        assert coco.loadCats([3])[0]["name"] == "cluster 3"
    assert len({item["id"] for item in coco.dataset["annotations"]}) == 9


def test_the_panoptic_files_are_in_cocos_format(folder, found):
    content = read_panoptic_json(folder / "panoptic.json")
    assert len(content["categories"]) == 16
    (folder / "pictures").mkdir()
    for image in content["images"]:
        path = folder / "pictures" / image["file_name"]
        path.parent.mkdir(exist_ok=True)
        path.touch()
    records = load_panoptic(
        folder / "panoptic.json", folder / "pictures", folder / "panoptic", panoptic_classes(content["categories"])
    )
    assert len(records) == 3
    for annotation in content["annotations"]:
        ids = read_ids(folder / "panoptic" / annotation["file_name"])
        assert (ids == found.panoptic.numpy()).all()
        first, second = annotation["segments_info"]
        assert (first["category_id"], second["category_id"]) == (1, 8 + 3)  # the second is stuff
        assert (first["area"], first["bbox"]) == (14 * 16, [2, 2, 14, 16])
    kinds = {category["id"]: category["isthing"] for category in content["categories"]}
    assert (kinds[1], kinds[11]) == (1, 0)


def test_semantic_maps_hold_clusters(folder, found):
    assert (read_labels(folder / "semantic" / "a" / "x.png", NO_CLUSTER) == found.semantic.numpy()).all()


def test_equal_names_get_files_of_their_own(folder):
    for kind in ALL:
        names = sorted(
            path.relative_to(folder / "overlays" / kind).as_posix()
            for path in (folder / "overlays" / kind).rglob("*.jpg")
        )
        assert names == ["a/x.jpg", "a/x.jpg.jpg", "b/x.jpg"]
        with Image.open(folder / "overlays" / kind / "b" / "x.jpg") as image:
            assert image.size == (30, 20)


def test_long_names_are_cut_and_stay_apart(tmp_path, found, picture):
    files = ResultFiles(tmp_path, ("semantic",), 8)
    names = [f"{'é' * 124}{letter}.png" for letter in "ab"]
    for name in names:
        files.add(name, picture, found, 0.1)
    files.finish({}, FACTS)
    written = sorted(path.name for path in (tmp_path / "semantic").iterdir())
    assert len(written) == 2
    assert all(name.startswith("é" * 80) and len(name.encode()) <= 180 for name in written)


def write_overlays(folder, names, picture, found):
    """Write the instances of pictures of these names; returns their overlays."""
    files = ResultFiles(folder, ("instance",), 8)
    for name in names:
        files.add(name, picture, found, 0.1)
    files.finish({}, FACTS)
    images = json.loads((folder / "instances.json").read_text())["images"]
    assert [image["file_name"] for image in images] == names
    root = folder / "overlays" / "instance"
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg") if path.is_file())


@pytest.mark.parametrize(
    ("names", "overlays"),
    [
        (["x.png", "x.jpg/y.png"], ["x.jpg", "x.jpg_/y.jpg"]),
        (["x.jpg/y.png", "x.png"], ["x.jpg/y.jpg", "x.png.jpg"]),
        (["a/x.png", "a/x.jpg/b/y.png"], ["a/x.jpg", "a/x.jpg_/b/y.jpg"]),
    ],
)
def test_a_picture_beside_a_folder_with_the_name_of_its_overlay(tmp_path, found, picture, names, overlays):
    assert write_overlays(tmp_path, names, picture, found) == overlays


def test_overlays_make_way_for_what_lies_in_the_output(tmp_path, found, picture):
    root = tmp_path / "overlays" / "instance"
    (root / "x.jpg").mkdir(parents=True)
    (root / "z.jpg").touch()
    assert write_overlays(tmp_path, ["x.png", "z.jpg/y.png"], picture, found) == ["x.png.jpg", "z.jpg_/y.jpg"]


def test_maps_make_way_for_a_folder_as_well(tmp_path, found, picture):
    files = ResultFiles(tmp_path, ("panoptic", "semantic"), 8)
    for name in ("x.jpg", "x.png/y.jpg"):
        files.add(name, picture, found, 0.1)
    files.finish({}, FACTS)
    for kind in ("panoptic", "semantic"):
        root = tmp_path / kind
        assert sorted(path.relative_to(root).as_posix() for path in root.rglob("?.png")) == ["x.png", "x.png_/y.png"]
    annotations = json.loads((tmp_path / "panoptic.json").read_text())["annotations"]
    assert [item["file_name"] for item in annotations] == ["x.png", "x.png_/y.png"]


def test_a_folder_named_like_a_picture_of_an_earlier_gallery_stays(tmp_path, found, picture):
    root = tmp_path / "overlays" / "instance"
    (root / "x.jpg" / "own").mkdir(parents=True)
    (root / "z.jpg").touch()
    assert write_overlays(tmp_path, ["y.png"], picture, found) == ["y.jpg"]
    assert (root / "x.jpg" / "own").is_dir()


def test_a_part_of_a_gallery_is_refused(tmp_path):
    (tmp_path / "overlays").mkdir()
    with pytest.raises(ValueError, match=r"already holds a part of a gallery \(overlays\): add --overwrite"):
        check_output(tmp_path, overwrite=False)


def test_skipped_pictures_are_listed(folder):
    assert (folder / "skipped.txt").read_text() == "bad.png\tcannot read picture bad.png: it is none\n"


def test_only_what_is_asked_for_is_written(tmp_path, found, picture):
    files = ResultFiles(tmp_path, ("semantic",), 8)
    files.add("x.png", picture, found, 0.1)
    files.finish({}, FACTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "overlays", "semantic"]
    assert files.masks == 2


def test_levels_reach_the_annotations(tmp_path, found, picture):
    found.instances.levels = found.instances.pred_classes.clone()
    files = ResultFiles(tmp_path, ("instance",), 8)
    files.add("x.png", picture, found, 0.1)
    files.finish({}, FACTS)
    annotations = json.loads((tmp_path / "instances.json").read_text())["annotations"]
    assert [item["level"] for item in annotations] == [3, 1, 3]


def test_a_picture_without_masks_is_a_picture(tmp_path, found, picture):
    empty = found._replace(
        instances=found.instances[found.instances.scores > 1],
        semantic=found.semantic.clone().fill_(-1),
        panoptic=found.panoptic.clone().zero_(),
        segments=[],
    )
    files = ResultFiles(tmp_path, ALL, 8)
    files.add("x.png", picture, empty, 0.1)
    files.finish({}, FACTS)
    assert COCO(str(tmp_path / "instances.json")).getAnnIds() == []
    assert json.loads((tmp_path / "panoptic.json").read_text())["annotations"][0]["segments_info"] == []
    assert read_ids(tmp_path / "panoptic" / "x.png").max() == 0


def test_an_output_that_holds_a_gallery_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="already holds a gallery: add --overwrite"):
        check_output(folder, overwrite=False)
    check_output(folder, overwrite=True)
    check_output(tmp_path / "new", overwrite=False)
    with pytest.raises(ValueError, match="output must be a folder, got the file"):
        check_output(folder / "skipped.txt", overwrite=True)


def test_more_clusters_than_a_semantic_map_holds_are_refused(tmp_path):
    with pytest.raises(ValueError, match="clusters must be at most 65535 for maps of 16 bits, got 65536"):
        ResultFiles(tmp_path, ("semantic",), 65536)
    ResultFiles(tmp_path, ("instance",), 65536)


def test_unknown_kinds_are_named(tmp_path):
    with pytest.raises(ValueError, match="kinds must be among instance, semantic, panoptic, got things"):
        ResultFiles(tmp_path, ("instance", "things"), 8)
