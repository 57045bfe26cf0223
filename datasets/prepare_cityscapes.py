#!/usr/bin/env python
"""Make Cityscapes' val truth for panoptic segmentation with 19 and with 27 classes, in COCO's format.

* `19`: the benchmark's classes, 8 things and 11 stuff; all other labels are void.
* `27`: all labels from 7 to 33, 10 things and 17 stuff, as STEGO counts them and CUPS for panoptic segmentation.

Reads `*_gtFine_instanceIds.png` alone, as Cityscapes' createPanopticImgs.py does, and gives what that gives for the 19
classes, pixel for pixel. Objects that annotators could not tell apart ("cargroup") are crowds, which count neither
way. CUPS makes each such region one more object of its picture; `--groups segment` does that.

    python datasets/prepare_cityscapes.py
    python datasets/prepare_cityscapes.py 27 --groups segment
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

# the shared module lies beside this file, whoever imports it
sys.path.insert(0, str(Path(__file__).resolve().parent))
from preparing import (
    Source,
    check_count,
    check_pictures,
    make_parser,
    progress,
    read_labels,
    require,
    run_targets,
    spread,
    write_json,
    write_png,
)

from s2uniseg_d2.data.benchmarks import BENCHMARKS, cityscapes_categories
from s2uniseg_d2.data.class_tables import CityscapesLabel, cityscapes_labels
from s2uniseg_d2.exit_status import run_main

PAGE = "https://www.cityscapes-dataset.com/downloads/"
NUM_PICTURES = 500  # https://www.cityscapes-dataset.com/dataset-overview: 2975 train, 500 val, 1525 test
LAST_ID = 33
SUFFIX = "_gtFine_instanceIds.png"


def prepare(args: argparse.Namespace, num_classes: int) -> str:
    """Write the truth with 19 or 27 classes.

    Raises:
        ValueError: if a file is missing, malformed or contradicts another.
    """
    target = BENCHMARKS[f"cityscapes_val_panoptic_{num_classes}"]
    pictures, fine = args.root / target.images, args.root / "cityscapes/gtFine/val"
    require(
        Source(pictures, "leftImg8bit_trainvaltest.zip", PAGE),
        Source(fine, "gtFine_trainvaltest.zip", PAGE),
    )
    paths = sorted(fine.glob(f"*/*{SUFFIX}"))
    check_count(f"*{SUFFIX} below {fine}", len(paths), NUM_PICTURES, partial=args.partial)
    if not paths:
        raise ValueError(f"{fine} holds no */*{SUFFIX}")
    labels = {label.id: label for label in cityscapes_labels(num_classes)}
    for path in spread(paths):
        _check_semantics(path)
    images, annotations = [], []
    for path in progress(paths, "panoptic PNGs"):
        ids = read_labels(path)
        if ids.max() // 1000 > LAST_ID or ids[ids < 1000].max(initial=0) > LAST_ID:
            raise ValueError(
                f"{path} must hold labels up to {LAST_ID} or 1000 times them plus a number, got {ids.max()}"
            )
        image_id = path.name.removesuffix(SUFFIX)
        name = f"{path.parent.name}/{image_id}_leftImg8bit.png"
        segments, drawn = segment_picture(ids, labels, groups_are_crowds=args.groups == "crowd")
        write_png(args.root / target.maps / f"{image_id}_panoptic.png", drawn)
        images.append({"id": image_id, "file_name": name, "height": ids.shape[0], "width": ids.shape[1]})
        annotations.append({"image_id": image_id, "file_name": f"{image_id}_panoptic.png", "segments_info": segments})
    check_pictures(fine, pictures, images)
    content = {
        "info": {"made_by": target.made_by, "groups": args.groups},
        "images": images,
        "annotations": annotations,
        "categories": cityscapes_categories(num_classes),
    }
    count = sum(len(annotation["segments_info"]) for annotation in annotations)
    crowds = sum(segment["iscrowd"] for annotation in annotations for segment in annotation["segments_info"])
    what = f"{len(images)} pictures, {count} segments ({crowds} of them crowds)"
    return f"{what}, {write_json(args.root / target.truth, content)}"


def segment_picture(
    ids: NDArray[np.int64], labels: dict[int, CityscapesLabel], *, groups_are_crowds: bool
) -> tuple[list[dict[str, Any]], NDArray[np.uint8]]:
    """Return the segments of one picture and the ``(H, W, 3)`` colours that code their ids, R + 256 G.

    Args:
        ids: ``(H, W)``; the label, or 1000 times the label plus a number for a single object.
        labels: by id, those that are scored; all others are void.
        groups_are_crowds: whether things that are not told apart are crowds.
    """
    numbers, places = np.unique(ids, return_inverse=True)
    places = places.reshape(ids.shape)
    areas, windows = np.bincount(places.ravel()).tolist(), find_objects(places + 1)
    segments, kept = [], np.zeros_like(numbers)
    for index, number in enumerate(numbers.tolist()):
        label = labels.get(number if number < 1000 else number // 1000)
        if label is None:
            continue
        rows, columns = windows[index]
        segments.append(
            {
                "id": number,
                "category_id": label.id,
                "area": areas[index],
                "bbox": [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start],
                "iscrowd": int(groups_are_crowds and label.is_thing and number < 1000),
            }
        )
        kept[index] = number
    colours = np.stack([kept % 256, kept // 256, np.zeros_like(kept)], axis=1).astype(np.uint8)
    return segments, colours[places]


def _check_semantics(path: Path) -> None:
    beside = path.with_name(path.name.replace("_instanceIds", "_labelIds"))
    if not beside.is_file():
        return
    ids, semantic = read_labels(path), read_labels(beside)
    if ids.shape != semantic.shape or not np.array_equal(np.where(ids < 1000, ids, ids // 1000), semantic):
        raise ValueError(f"{path} and {beside.name} must hold the same labels in every pixel")


TARGETS = {str(number): partial(prepare, num_classes=number) for number in (19, 27)}


def main(arguments: list[str] | None = None) -> int:
    """Parse and make; returns the exit status."""
    parser = make_parser(__doc__, [*TARGETS])
    parser.add_argument(
        "--groups",
        choices=("crowd", "segment"),
        default="crowd",
        help="what undivided groups are (default %(default)s)",
    )
    return run_targets("prepare_cityscapes.py", TARGETS, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(run_main(main, "prepare_cityscapes.py", "the same words go on"))
