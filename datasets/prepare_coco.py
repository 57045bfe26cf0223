#!/usr/bin/env python
"""Make COCO's val2017 truth for class-agnostic instances and for panoptic segmentation with 95 classes.

* `agnostic`: `instances_val2017.json` with one category, "fg" (id 1), as CutLER's JSON has it; crowds stay crowds.
* `panoptic`: `panoptic_val2017.json` with its 53 stuff classes in 15 supercategories (ids 201 to 215), as U2Seg's has
  it: segments of one supercategory are not merged, the PNGs stay as they are.

    python datasets/prepare_coco.py
    python datasets/prepare_coco.py agnostic --root /data
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

# the shared module lies beside this file, whoever imports it
sys.path.insert(0, str(Path(__file__).resolve().parent))
from preparing import (
    Source,
    check_count,
    check_pictures,
    digest,
    make_parser,
    require,
    run_targets,
    spread,
    write_json,
)

from s2uniseg_d2.data.benchmarks import AGNOSTIC_CATEGORIES, BENCHMARKS, panoptic95_categories
from s2uniseg_d2.data.class_tables import panoptic95_category_of
from s2uniseg_d2.data.coco_json import check_coco_json, check_files
from s2uniseg_d2.data.panoptic_json import read_panoptic_json
from s2uniseg_d2.evaluation.png_maps import read_ids
from s2uniseg_d2.exit_status import run_main

PAGE = "https://cocodataset.org/#download"
NUM_PICTURES = 5000  # "5K val images", https://cocodataset.org/#download


def prepare_agnostic(args: argparse.Namespace) -> str:
    """Write the class-agnostic truth.

    Raises:
        ValueError: if a file is missing, malformed or contradicts another.
    """
    target = BENCHMARKS["coco_2017_val_agnostic"]
    pictures, source = args.root / target.images, args.root / "coco/annotations/instances_val2017.json"
    require(
        Source(pictures, "val2017.zip", PAGE),
        Source(source, "annotations_trainval2017.zip", PAGE),
    )
    content = check_coco_json(source, pictures)
    check_count("pictures of val2017", len(content["images"]), NUM_PICTURES, partial=args.partial)
    check_pictures(source, pictures, content["images"])
    content["annotations"] = [{**annotation, "category_id": 1} for annotation in content["annotations"]]
    content["categories"] = AGNOSTIC_CATEGORIES
    content["info"] = {**content.get("info", {}), "made_by": target.made_by, "made_from_sha256": digest(source)}
    crowds = sum(annotation["iscrowd"] for annotation in content["annotations"])
    what = f"{len(content['images'])} pictures, {len(content['annotations'])} objects ({crowds} of them crowds)"
    return f"{what}, {write_json(args.root / target.truth, content)}"


def prepare_panoptic(args: argparse.Namespace) -> str:
    """Write the panoptic truth with 95 classes.

    Raises:
        ValueError: if a file is missing, malformed or contradicts another.
    """
    target = BENCHMARKS["coco_2017_val_panoptic_95"]
    pictures, maps = args.root / target.images, args.root / target.maps
    source = args.root / "coco/annotations/panoptic_val2017.json"
    require(
        Source(pictures, "val2017.zip", PAGE),
        Source(source, "panoptic_annotations_trainval2017.zip", PAGE),
        Source(maps, "panoptic_val2017.zip, inside panoptic_annotations_trainval2017.zip", PAGE),
    )
    content = read_panoptic_json(source)
    check_count("pictures of val2017", len(content["annotations"]), NUM_PICTURES, partial=args.partial)
    check_pictures(source, pictures, content["images"])
    check_files(source, "panoptic PNGs", [annotation["file_name"] for annotation in content["annotations"]], maps)
    for annotation in spread(content["annotations"]):
        _check_segments(maps / annotation["file_name"], annotation)
    become = panoptic95_category_of(content["categories"])
    for annotation in content["annotations"]:
        for segment in annotation["segments_info"]:
            segment["category_id"] = become[segment["category_id"]]
    content["categories"] = panoptic95_categories()
    content["info"] = {**content.get("info", {}), "made_by": target.made_by, "made_from_sha256": digest(source)}
    segments = sum(len(annotation["segments_info"]) for annotation in content["annotations"])
    what = f"{len(content['annotations'])} pictures, {segments} segments"
    return f"{what}, {write_json(args.root / target.truth, content)}"


def _check_segments(path: Path, annotation: dict[str, Any]) -> None:
    ids, areas = np.unique(read_ids(path), return_counts=True)
    drawn = {number: area for number, area in zip(ids.tolist(), areas.tolist(), strict=True) if number}
    listed = {segment["id"]: segment["area"] for segment in annotation["segments_info"]}
    if drawn != listed:
        number = min(number for number in drawn.keys() | listed.keys() if drawn.get(number) != listed.get(number))
        raise ValueError(
            f"{path} must hold the segments that its JSON lists, but segment {number} covers {drawn.get(number, 0)} "
            f"pixels and is listed with {listed.get(number, 0)}"
        )


TARGETS = {"agnostic": prepare_agnostic, "panoptic": prepare_panoptic}


def main(arguments: list[str] | None = None) -> int:
    """Parse and make; returns the exit status."""
    return run_targets("prepare_coco.py", TARGETS, make_parser(__doc__, [*TARGETS]).parse_args(arguments))


if __name__ == "__main__":
    sys.exit(run_main(main, "prepare_coco.py", "the same words go on"))
