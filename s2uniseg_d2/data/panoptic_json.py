"""Panoptic truth in COCO's format: a JSON of segments beside PNGs whose colours are the segments' ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .coco_json import check_files, check_items, read_json

_REQUIRED = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("image_id", "file_name", "segments_info"),
    "categories": ("id", "name", "isthing"),
}


def panoptic_classes(categories: list[dict[str, Any]]) -> dict[str, Any]:
    """Return Detectron2's metadata of panoptic categories: one list of all classes, things first, then by id.

    This is Detectron2's "standard" form, in which semantic classes, things and stuff share their numbers.
    """
    ordered = sorted(categories, key=lambda category: (not category["isthing"], category["id"]))
    contiguous = {category["id"]: index for index, category in enumerate(ordered)}
    return {
        "ignore_label": 255,
        "label_divisor": 1000,
        "thing_classes": [category["name"] for category in ordered if category["isthing"]],
        "stuff_classes": [category["name"] for category in ordered],
        "thing_dataset_id_to_contiguous_id": {c["id"]: contiguous[c["id"]] for c in ordered if c["isthing"]},
        "stuff_dataset_id_to_contiguous_id": contiguous,
    }


def contiguous_segments(annotation: dict[str, Any], classes: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the segments of one picture with contiguous classes and ``isthing``, as Detectron2's records hold them."""
    things = classes["thing_dataset_id_to_contiguous_id"]
    contiguous = classes["stuff_dataset_id_to_contiguous_id"]
    return [
        {**segment, "isthing": segment["category_id"] in things, "category_id": contiguous[segment["category_id"]]}
        for segment in annotation["segments_info"]
    ]


def read_panoptic_json(path: Path) -> dict[str, Any]:
    """Return the content of a panoptic annotation file, once its references are known to be sound.

    Raises:
        ValueError: if a list or key is missing, ids are used twice, or an annotation names a picture or a category
            that the file does not hold.
    """
    content = read_json(path)
    if missing := [key for key in ("images", "annotations", "categories") if not content.get(key)]:
        raise ValueError(f"annotation file {path} lacks {', '.join(missing)}, or they are empty")
    for name, keys in _REQUIRED.items():
        check_items(path, name, content[name], keys)
    segments = [segment for a in content["annotations"] for segment in a["segments_info"]]
    check_items(path, "segments", segments, ("category_id",))
    images = [image["id"] for image in content["images"]]
    categories = {category["id"] for category in content["categories"]}
    annotated = [(a["image_id"], a["file_name"]) for a in content["annotations"]]
    used = {segment["category_id"] for segment in segments}
    if len(set(images)) < len(images) or len({image_id for image_id, _ in annotated}) < len(annotated):
        raise ValueError(f"annotation file {path} uses the id of a picture twice")
    if strangers := sorted({image_id for image_id, _ in annotated}.difference(images), key=str):
        raise ValueError(
            f"{len(strangers)} annotations of annotation file {path} name pictures not in images: {strangers[:3]}"
        )
    if unknown := sorted(used - categories, key=str):
        raise ValueError(f"segments of annotation file {path} name category ids that are not in categories: {unknown}")
    return content


def load_panoptic(path: Path, image_root: Path, panoptic_root: Path, classes: dict[str, Any]) -> list[dict[str, Any]]:
    """Return Detectron2's records of a panoptic annotation file, in the order of its annotations.

    Args:
        path: of the JSON; its ``images`` name the pictures below ``image_root``.
        image_root: folder of the pictures.
        panoptic_root: folder of the PNGs.
        classes: of :func:`panoptic_classes`.

    Raises:
        ValueError: if the file is malformed, has other categories, or names files that are missing.
    """
    content = read_panoptic_json(path)
    if (held := panoptic_classes(content["categories"])) != classes:
        raise ValueError(
            f"annotation file {path} must hold the categories {classes['stuff_classes'][:3]}, ... "
            f"({len(classes['stuff_classes'])} in all), got {held['stuff_classes'][:3]}, ... "
            f"({len(held['stuff_classes'])}): make it again"
        )
    images = {image["id"]: image for image in content["images"]}
    check_files(path, "pictures", [images[a["image_id"]]["file_name"] for a in content["annotations"]], image_root)
    check_files(path, "panoptic PNGs", [a["file_name"] for a in content["annotations"]], panoptic_root)
    return [
        {
            "file_name": str(image_root / images[annotation["image_id"]]["file_name"]),
            "image_id": annotation["image_id"],
            "height": images[annotation["image_id"]]["height"],
            "width": images[annotation["image_id"]]["width"],
            "pan_seg_file_name": str(panoptic_root / annotation["file_name"]),
            "segments_info": contiguous_segments(annotation, classes),
        }
        for annotation in content["annotations"]
    ]
