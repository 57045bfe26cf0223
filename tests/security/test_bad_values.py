"""What fuzzing found once stays found."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from s2uniseg_d2.core.labelers.region_embedding import embed_regions
from s2uniseg_d2.core.tensor_files import TensorFileError, read_tensor_file
from s2uniseg_d2.data.coco_json import check_coco_json
from s2uniseg_d2.data.panoptic_json import read_panoptic_json
from s2uniseg_d2.data.segmentation import decode_segmentation
from s2uniseg_d2.evaluation.class_mapping import load_mappings
from s2uniseg_d2.evaluation.png_maps import read_ids, read_map
from s2uniseg_d2.labeling.coco import read_info
from tests.fuzz.annotations import COCO, MAPPINGS, PANOPTIC, label_file


@pytest.mark.parametrize(
    ("segmentation", "fault"),
    [
        ({"size": [8, 8], "counts": [64, -5, 5]}, "whole numbers for each pixel"),
        ({"size": [8, 8], "counts": [63]}, "whole numbers for each pixel"),
        ({"size": [8, 8], "counts": "qq"}, "foreign letters"),
        ({"size": [8, 8], "counts": "1"}, "got others"),
        ({"size": [8, 8], "counts": None}, "foreign letters"),
        ({"size": [9, 8], "counts": "1"}, r"got \[9, 8\]"),
        ([[0, 0, 1e12, 0, 5, 5]], "beyond 16 pixels"),
        ([[0, 0, float("nan"), 0, 5, 5]], "beyond 16 pixels"),
        ([[0, 0, "6", 0, 5, 5]], "not of numbers"),
        ([[0, 0, [1], 0, 5, 5]], "not of numbers"),
        ([3], "without at least 3 points"),
        ("x", "neither polygons nor run lengths"),
    ],
)
def test_masks_that_are_none(segmentation, fault):
    with pytest.raises(ValueError, match=rf"segmentation must .*{fault}"):
        decode_segmentation(segmentation, 8, 8)


@pytest.mark.parametrize(
    ("section", "key", "value", "fault"),
    [
        ("images", "id", {}, "a id that is not a whole number"),
        ("images", "id", "1", "an id that is no int"),
        ("categories", "id", "x", "an id that is no int"),
        ("images", "height", -1, "a height that is not a whole number from 1"),
        ("images", "width", 2**40, "more than 1073741824 pixels"),
        ("images", "file_name", None, "a file_name that is not text"),
        ("annotations", "bbox", [1, 2], "a bbox that is not four numbers"),
        ("annotations", "area", float("nan"), "a area that is not a number"),
        ("annotations", "iscrowd", [], "a iscrowd that is not 0 or 1"),
        ("annotations", "image_id", [1], "a image_id that is not a whole number"),
    ],
)
def test_values_of_coco_files(tmp_path, section, key, value, fault):
    content = json.loads(json.dumps(COCO))
    content[section][0][key] = value
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"{section} of annotation file .*a\.json have {fault}"):
        check_coco_json(tmp_path / "a.json", tmp_path)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("images", "id", {}), ("images", "file_name", 3), ("annotations", "segments_info", [1])],
)
def test_values_of_panoptic_files(tmp_path, section, key, value):
    content = json.loads(json.dumps(PANOPTIC))
    content[section][0][key] = value
    (tmp_path / "p.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"{section} of annotation file .*p\.json have a {key} that is not"):
        read_panoptic_json(tmp_path / "p.json")


def test_endless_brackets_are_no_json(tmp_path):
    (tmp_path / "a.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON"):
        check_coco_json(tmp_path / "a.json", tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        (b'"labelled": 1', b'"labelled": null'),
        (b"1/2", b"x"),
        (b'"instance"', b'"other"'),
        (b'"id": 3', b'"id": {}'),
        (b'"file_name": "b.png"', b'"x": 1'),
    ],
)
def test_infos_of_label_files(tmp_path, change):
    (tmp_path / "a.json").write_bytes(label_file(1))
    assert read_info(tmp_path / "a.json")["labelled"] == 1
    (tmp_path / "a.json").write_bytes(label_file(1).replace(*change, 1))
    with pytest.raises(ValueError, match="is no file that pseudo_masks wrote"):
        read_info(tmp_path / "a.json")


def test_numbers_of_class_mappings(tmp_path):
    content = json.loads(json.dumps(MAPPINGS))
    content["mappings"][0]["assignment"][0] = 10**400
    (tmp_path / "m.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is not a file of class mappings: OverflowError"):
        load_mappings(tmp_path / "m.json")


def test_maps_that_are_none(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    for read in (read_ids, read_map):
        with pytest.raises(ValueError, match=r"cannot read .*a\.png: cannot identify"):
            read(tmp_path / "a.png")
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"map .*a\.png must have one channel of whole numbers"):
        read_map(tmp_path / "a.png")


def test_a_zip_file_with_a_damaged_directory(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"PK\x05\x06" + b"\xff" * 8 + b"\x10\0\0\0" * 2 + b"\0\0")
    with pytest.raises(TensorFileError):
        read_tensor_file(tmp_path / "w.pth")


def test_a_map_without_tokens_has_no_vectors():
    assert embed_regions(torch.zeros(3, 0, 0), torch.zeros(0, 0, 0, dtype=torch.bool), 0.07).shape == (0, 3)
    with pytest.raises(ValueError, match="masks must each hold a token, got none in mask 0"):
        embed_regions(torch.zeros(3, 0, 0), torch.zeros(1, 0, 0, dtype=torch.bool), 0.07)
