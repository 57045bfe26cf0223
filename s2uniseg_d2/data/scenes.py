"""Folders that hold instance, semantic and panoptic truth of the same pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from .coco_json import check_coco_json, check_files, read_json
from .panoptic_json import contiguous_segments, panoptic_classes


class SceneTruth(NamedTuple):
    """What a folder of scenes holds beside its instances.

    Attributes:
        metadata: Detectron2's metadata of all three truths.
        extras: by image id, the keys that the panoptic and the semantic truth add to a record.
    """

    metadata: dict[str, Any]
    extras: dict[int, dict[str, Any]]


def read_scenes(folder: Path) -> SceneTruth:
    """Read and check a folder as ``datasets/make_scenes.py`` writes it.

    It holds ``images/``, ``instances.json`` (things), ``panoptic.json`` with ``panoptic/`` (ids as R + 256 G + 65536 B)
    and ``semantic/`` (class numbers, things in the order of their ids, then stuff; 255 is void), whose pictures bear
    the names of those in ``panoptic/``.

    Raises:
        ValueError: if a part is missing or contradicts another.
    """
    if not folder.is_dir():
        raise ValueError(f"scene folder {folder} does not exist; datasets/make_scenes.py makes one")
    instances, panoptic = folder / "instances.json", folder / "panoptic.json"
    absent = [path.name for path in (instances, panoptic) if not path.is_file()]
    if absent:
        raise ValueError(
            f"scene folder {folder} lacks {' and '.join(absent)}; name the folder of one split, such as "
            f"{folder / 'train'}"
        )
    content = check_coco_json(instances, folder / "images")
    truth = _check_panoptic(panoptic, content)
    names = [annotation["file_name"] for annotation in truth["annotations"]]
    for kind in ("panoptic", "semantic"):
        check_files(panoptic, f"{kind} pictures", names, folder / kind)
    metadata = _metadata(folder, truth["categories"])
    return SceneTruth(metadata, {a["image_id"]: _extra(folder, a, metadata) for a in truth["annotations"]})


def _check_panoptic(path: Path, instances: dict[str, Any]) -> dict[str, Any]:
    truth = read_json(path)
    missing = [key for key in ("images", "annotations", "categories") if key not in truth]
    if missing:
        raise ValueError(f"annotation file {path} lacks {', '.join(missing)}")
    pictures = {image["id"] for image in instances["images"]}
    annotated = {annotation["image_id"] for annotation in truth["annotations"]}
    if pictures != annotated:
        raise ValueError(
            f"annotation file {path} and instances.json must describe the same pictures, got {len(annotated)} and "
            f"{len(pictures)}, of which {len(pictures & annotated)} are in both"
        )
    things = {category["id"]: category["name"] for category in truth["categories"] if category["isthing"]}
    if things != {category["id"]: category["name"] for category in instances["categories"]}:
        raise ValueError(f"the things of annotation file {path} must be the categories of instances.json")
    return truth


def _metadata(folder: Path, categories: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "evaluator_type": "coco_panoptic_seg",
        "json_file": str(folder / "instances.json"),
        "image_root": str(folder / "images"),
        "panoptic_json": str(folder / "panoptic.json"),
        "panoptic_root": str(folder / "panoptic"),
        "sem_seg_root": str(folder / "semantic"),
        **panoptic_classes(categories),
    }


def _extra(folder: Path, annotation: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Any]:
    return {
        "sem_seg_file_name": str(folder / "semantic" / annotation["file_name"]),
        "pan_seg_file_name": str(folder / "panoptic" / annotation["file_name"]),
        "segments_info": contiguous_segments(annotation, metadata),
    }
