#!/usr/bin/env python
"""Make UVO's validation truth, without classes on the sparse frames and with COCO's classes on the dense ones.

* `sparse`: CutLER's `val_sparse_cleaned_cls_agnostic.json`, checked, with one category, "fg". `--sparse-json` takes
  another file, such as UVO's own `UVO_frame_val.json`: its figures are not comparable with CutLER's.
* `dense`: frames of `UVO_video_val_dense_with_label.json` as a COCO file. UVO labels objects outside COCO's 80 classes,
  and those that annotators were not sure of, as "other". One file for each treatment, or those that `--other` names:
  - `left_out`, which `uvo_dense_val` names: they are in no truth, as COCO's own truth lacks all objects outside its
    classes. AP is over 80 classes, without a rule of ours; what is predicted on such an object is wrong.
  - `ignored`, `uvo_dense_val_other_ignored`: "other" is a class whose objects are all crowds. It has no AP of its own,
    and what is predicted as "other" counts neither way; a pseudo-class can be mapped to it.
  - `class`, `uvo_dense_val_other_class`: "other" is the 81st class. The one for class-agnostic figures of all objects.

    python datasets/prepare_uvo.py
    python datasets/prepare_uvo.py dense --other ignored
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from pycocotools import mask as mask_coding

# the shared module lies beside this file, whoever imports it
sys.path.insert(0, str(Path(__file__).resolve().parent))
from preparing import Source, check_count, check_pictures, digest, make_parser, require, run_targets, write_json

from s2uniseg_d2.data.benchmarks import (
    AGNOSTIC_CATEGORIES,
    BENCHMARKS,
    UVO_OTHER_ID,
    coco_thing_categories,
    uvo_categories,
)
from s2uniseg_d2.data.coco_json import check_coco_content, read_json
from s2uniseg_d2.exit_status import run_main

PAGE = "https://sites.google.com/view/unidentified-video-object/dataset"
CUTLER_PAGE = "https://github.com/facebookresearch/CutLER/blob/main/datasets/README.md"
NUM_DENSE_VIDEOS = 256  # UVO v1.0 kit guide: validation split of VideoDenseSet
DENSE = {
    "left_out": "uvo_dense_val",
    "ignored": "uvo_dense_val_other_ignored",
    "class": "uvo_dense_val_other_class",
}
Annotation = dict[str, Any]


def prepare_sparse(args: argparse.Namespace) -> str:
    """Write the class-agnostic truth of the sparse frames.

    Raises:
        ValueError: if a file is missing, malformed or contradicts another.
    """
    target = BENCHMARKS["uvo_sparse_val_agnostic"]
    pictures = args.root / target.images
    source = args.sparse_json or args.root / "uvo/annotations/val_sparse_cleaned_cls_agnostic.json"
    require(
        Source(pictures, "the frames of FrameSet, cut from Kinetics by UVO's video2frames.py", PAGE),
        Source(source, "CutLER's JSON for UVO", CUTLER_PAGE),
    )
    content = read_json(source)
    try:
        content["annotations"] = [_complete(a) | {"category_id": 1} for a in content["annotations"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{source} is not in COCO's format: {error!r}") from error
    content["categories"] = AGNOSTIC_CATEGORIES
    check_coco_content(source, content, pictures)
    check_pictures(source, pictures, content["images"])
    content["info"] = {"made_by": target.made_by, "made_from": source.name, "made_from_sha256": digest(source)}
    what = f"{len(content['images'])} frames, {len(content['annotations'])} objects"
    return f"{what}, {write_json(args.root / target.truth, content)}"


def prepare_dense(args: argparse.Namespace) -> str:
    """Write the truth of the dense frames, one file for each treatment of "other".

    Raises:
        ValueError: if a file is missing, malformed or contradicts another.
    """
    pictures = args.root / BENCHMARKS["uvo_dense_val"].images
    source = args.dense_json or args.root / "uvo/VideoDenseSet/UVO_video_val_dense_with_label.json"
    require(
        Source(pictures, "the frames of VideoDenseSet, cut from Kinetics by UVO's video2frames.py", PAGE),
        Source(source, "UVO v1.0, VideoDenseSet", PAGE),
    )
    content = read_json(source)
    try:
        check_count("videos", len(content["videos"]), NUM_DENSE_VIDEOS, partial=args.partial)
        become = _category_ids(source, content["categories"])
        images, frame_ids = _frames(content["videos"])
        annotations = _objects(content["annotations"], become, frame_ids)
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{source} is not in UVO's video format: {error!r}") from error
    info = {"made_from": source.name, "made_from_sha256": digest(source)}
    others = sum(annotation["category_id"] == UVO_OTHER_ID for annotation in annotations)
    told = [f"{len(images)} frames, {len(annotations)} objects, {others} of them 'other'"]
    for treatment in args.other:
        target = BENCHMARKS[DENSE[treatment]]
        truth = {
            "info": {**info, "made_by": target.made_by, "other": treatment},
            "images": images,
            "annotations": _treat(annotations, treatment),
            "categories": uvo_categories(with_other=treatment != "left_out"),
        }
        check_coco_content(source, truth, pictures)
        check_pictures(source, pictures, images)
        told.append(write_json(args.root / target.truth, truth))
    return ", ".join(told)


def _category_ids(source: Path, categories: list[dict[str, Any]]) -> dict[int, int]:
    """By UVO's category id, COCO's of the same name, or that of "other"."""
    own = {category["name"]: category["id"] for category in coco_thing_categories()} | {"other": UVO_OTHER_ID}
    if unknown := sorted({category["name"] for category in categories} - own.keys()):
        raise ValueError(
            f"the categories of {source} must be COCO's 80 and 'other', got {', '.join(unknown[:3])} beside them: "
            "use the file whose name ends in _with_label.json"
        )
    return {category["id"]: own[category["name"]] for category in categories}


def _frames(videos: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[int, list[int]]]:
    """All frames as COCO images, and by video the ids of its frames."""
    images: list[dict[str, Any]] = []
    frame_ids: dict[int, list[int]] = {}
    for video in videos:
        if video["id"] in frame_ids:
            raise ValueError(f"videos must have different ids, got {video['id']} twice")
        first = len(images) + 1
        frame_ids[video["id"]] = list(range(first, first + len(video["file_names"])))
        size = {"height": video["height"], "width": video["width"], "video_id": video["id"]}
        images += [{"id": first + i, "file_name": name, **size} for i, name in enumerate(video["file_names"])]
    return images, frame_ids


def _objects(tracks: list[dict[str, Any]], become: dict[int, int], frame_ids: dict[int, list[int]]) -> list[Annotation]:
    """One annotation for each frame in which a tracked object is visible."""
    annotations: list[Annotation] = []
    for track in tracks:
        frames, masks = frame_ids[track["video_id"]], track["segmentations"]
        if len(frames) != len(masks):
            raise ValueError(
                f"object {track['id']} must have a segmentation or null for each of the {len(frames)} frames of video "
                f"{track['video_id']}, got {len(masks)}"
            )
        shared = {"category_id": become[track["category_id"]], "iscrowd": track.get("iscrowd", 0)}
        annotations += [
            _complete({"image_id": frame, "segmentation": mask, "track_id": track["id"], **shared})
            for frame, mask in zip(frames, masks, strict=True)
            if mask is not None
        ]
    return [{"id": number, **annotation} for number, annotation in enumerate(annotations, start=1)]


def _complete(annotation: Annotation) -> Annotation:
    """The annotation with ``iscrowd``, and with area and box measured on the mask where they are absent."""
    annotation = {"iscrowd": 0} | annotation
    mask = annotation["segmentation"]
    if "area" in annotation and "bbox" in annotation:
        return annotation
    if not isinstance(mask, dict):
        raise ValueError(f"an annotation without area or bbox needs run lengths, got {type(mask).__name__}")
    rle = mask if isinstance(mask["counts"], str) else mask_coding.frPyObjects(mask, *mask["size"])
    return annotation | {"area": int(mask_coding.area(rle)), "bbox": mask_coding.toBbox(rle).tolist()}


def _treat(annotations: list[Annotation], treatment: str) -> list[Annotation]:
    if treatment == "class":
        return annotations
    if treatment == "left_out":
        return [annotation for annotation in annotations if annotation["category_id"] != UVO_OTHER_ID]
    return [a | {"iscrowd": 1} if a["category_id"] == UVO_OTHER_ID else a for a in annotations]


TARGETS = {"sparse": prepare_sparse, "dense": prepare_dense}


def main(arguments: list[str] | None = None) -> int:
    """Parse and make; returns the exit status."""
    parser = make_parser(__doc__, [*TARGETS])
    parser.add_argument("--sparse-json", type=Path, metavar="FILE", help="in place of CutLER's")
    parser.add_argument("--dense-json", type=Path, metavar="FILE", help="in place of UVO's below the root")
    parser.add_argument(
        "--other", nargs="+", choices=DENSE, default=[*DENSE], help="treatments of 'other' (default: all)"
    )
    return run_targets("prepare_uvo.py", TARGETS, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(run_main(main, "prepare_uvo.py", "the same words go on"))
