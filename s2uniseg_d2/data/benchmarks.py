"""The benchmarks by name: where their files lie, what classes they have, and which command makes them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.coco import load_coco_json

from .class_tables import (
    COCOSTUFF27_CLASSES,
    COCOSTUFF27_IGNORE,
    PANOPTIC15,
    PANOPTIC15_FIRST_ID,
    cityscapes_labels,
)
from .coco_json import check_files, read_json
from .panoptic_json import load_panoptic, panoptic_classes

logger = logging.getLogger(__name__)

Records = list[dict[str, Any]]
Categories = list[dict[str, Any]]

AGNOSTIC_CATEGORIES: Categories = [{"id": 1, "name": "fg", "supercategory": "fg"}]
UVO_OTHER_ID = 91  # after COCO's 90, where UVO's own files have it


@dataclass(frozen=True)
class Benchmark:
    """One data set with truth.

    Attributes:
        kind: "instances" (a COCO file), "panoptic" (a COCO panoptic file and PNGs) or "semantic" (a list of pictures in
            COCO's ``images`` form and PNGs of class numbers).
        truth: the JSON, relative to the root.
        images: folder of the pictures, relative to the root.
        categories: as the JSON holds them; for "semantic", as its PNGs number them.
        made_by: the command that makes the JSON.
        maps: folder of the PNGs, relative to the root; "" for "instances".
    """

    kind: str
    truth: str
    images: str
    categories: Categories
    made_by: str
    maps: str = ""


def coco_thing_categories() -> Categories:
    """Return COCO's 80 things: id and name."""
    return [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]


def panoptic95_categories() -> Categories:
    """Return COCO's 80 things and the 15 supercategories of its stuff, whose ids are 201 to 215."""
    stuff = [{"id": PANOPTIC15_FIRST_ID + i, "name": name, "isthing": 0} for i, name in enumerate(PANOPTIC15)]
    return [{**category, "isthing": 1} for category in coco_thing_categories()] + stuff


def uvo_categories(*, with_other: bool) -> Categories:
    """Return COCO's 80 things, and "other" behind them where it is asked for."""
    return coco_thing_categories() + ([{"id": UVO_OTHER_ID, "name": "other"}] if with_other else [])


def cityscapes_categories(num_classes: int) -> Categories:
    """Return the 19 or 27 classes of Cityscapes, with Cityscapes' own ids."""
    return [{"id": c.id, "name": c.name, "isthing": int(c.is_thing)} for c in cityscapes_labels(num_classes)]


def _cocostuff27(truth: str) -> Benchmark:
    categories = [{"id": number, "name": name} for number, name in enumerate(COCOSTUFF27_CLASSES)]
    command = "datasets/prepare_cocostuff27.py"
    return Benchmark("semantic", truth, "coco/val2017", categories, command, "coco/cocostuff27_val2017")


def _uvo_dense(treatment: str) -> Benchmark:
    truth = f"uvo/annotations/uvo_dense_val_other_{treatment}.json"
    categories = uvo_categories(with_other=treatment != "left_out")
    return Benchmark("instances", truth, "uvo/uvo_videos_dense_frames", categories, "datasets/prepare_uvo.py")


def _cityscapes(num_classes: int) -> Benchmark:
    truth = f"cityscapes/gtFine/panoptic_val_{num_classes}"
    categories = cityscapes_categories(num_classes)
    command = "datasets/prepare_cityscapes.py"
    return Benchmark("panoptic", f"{truth}.json", "cityscapes/leftImg8bit/val", categories, command, truth)


BENCHMARKS: dict[str, Benchmark] = {
    "coco_2017_val_agnostic": Benchmark(
        "instances",
        "coco/annotations/instances_val2017_agnostic.json",
        "coco/val2017",
        AGNOSTIC_CATEGORIES,
        "datasets/prepare_coco.py",
    ),
    "coco_2017_val_panoptic_95": Benchmark(
        "panoptic",
        "coco/annotations/panoptic_val2017_95.json",
        "coco/val2017",
        panoptic95_categories(),
        "datasets/prepare_coco.py",
        "coco/panoptic_val2017",
    ),
    "cocostuff27_val": _cocostuff27("coco/annotations/cocostuff27_val2017.json"),
    "cocostuff27_val_full": _cocostuff27("coco/annotations/cocostuff27_val2017_full.json"),
    "uvo_sparse_val_agnostic": Benchmark(
        "instances",
        "uvo/annotations/uvo_sparse_val_agnostic.json",
        "uvo/all_UVO_frames",
        AGNOSTIC_CATEGORIES,
        "datasets/prepare_uvo.py",
    ),
    "uvo_dense_val": _uvo_dense("left_out"),
    "uvo_dense_val_other_ignored": _uvo_dense("ignored"),
    "uvo_dense_val_other_class": _uvo_dense("class"),
    "cityscapes_val_panoptic_19": _cityscapes(19),
    "cityscapes_val_panoptic_27": _cityscapes(27),
}


def default_root() -> Path:
    """Return the folder of all data sets: ``DETECTRON2_DATASETS``, or ``datasets`` in the working folder."""
    return Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))


def register_benchmarks(root: str | Path | None = None, replace: bool = True) -> None:
    """Register :data:`BENCHMARKS` with Detectron2.

    Nothing is read until the records of a name are asked for, so a data set that is not on disk is no error.

    Args:
        root: folder of all data sets; None is :func:`default_root`.
        replace: whether to take the place of what others have registered under these names; the log says what is kept.
    """
    folder = default_root() if root is None else Path(root)
    for name, benchmark in BENCHMARKS.items():
        if not replace and name in DatasetCatalog and not MetadataCatalog.get(name).get("made_by"):
            logger.warning("data set %s is registered already and stays as it is", name)
            continue
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
        if name in MetadataCatalog:  # Detectron2 refuses to change a value
            MetadataCatalog.remove(name)
        load, metadata = _REGISTRATIONS[benchmark.kind](name, benchmark, folder)
        DatasetCatalog.register(name, load)
        MetadataCatalog.get(name).set(image_root=str(folder / benchmark.images), made_by=benchmark.made_by, **metadata)


Registration = tuple[Callable[[], Records], dict[str, Any]]


def _register_instances(name: str, benchmark: Benchmark, folder: Path) -> Registration:
    truth, ids = folder / benchmark.truth, [category["id"] for category in benchmark.categories]
    metadata = {
        "evaluator_type": "coco",
        "json_file": str(truth),
        "thing_classes": [category["name"] for category in benchmark.categories],
        "thing_dataset_id_to_contiguous_id": {number: index for index, number in enumerate(ids)},
    }
    return partial(_load_instances, name, truth, folder / benchmark.images), metadata


def _load_instances(name: str, truth: Path, images: Path) -> Records:
    records = load_coco_json(str(truth), str(images), name)
    check_files(truth, "images", [os.path.relpath(record["file_name"], images) for record in records], images)
    return records


def _register_panoptic(name: str, benchmark: Benchmark, folder: Path) -> Registration:
    truth, maps, images = (folder / place for place in (benchmark.truth, benchmark.maps, benchmark.images))
    classes = panoptic_classes(benchmark.categories)
    metadata = {"evaluator_type": "coco_panoptic_seg", "panoptic_json": str(truth), "panoptic_root": str(maps)}
    return partial(load_panoptic, truth, images, maps, classes), metadata | classes


def _register_semantic(name: str, benchmark: Benchmark, folder: Path) -> Registration:
    truth, maps, images = (folder / place for place in (benchmark.truth, benchmark.maps, benchmark.images))
    metadata = {
        "evaluator_type": "sem_seg",
        "list_file": str(truth),
        "sem_seg_root": str(maps),
        "stuff_classes": [category["name"] for category in benchmark.categories],
        "stuff_dataset_id_to_contiguous_id": {category["id"]: category["id"] for category in benchmark.categories},
        "ignore_label": COCOSTUFF27_IGNORE,
    }
    return partial(_load_semantic, truth, images, maps), metadata


def _load_semantic(truth: Path, images: Path, maps: Path) -> Records:
    listed = read_json(truth).get("images")
    if not listed or not all({"id", "file_name", "height", "width"} <= image.keys() for image in listed):
        raise ValueError(f"{truth} must list images, each with id, file_name, height and width: make it again")
    names = [image["file_name"] for image in listed]
    labels = [str(Path(name).with_suffix(".png")) for name in names]
    check_files(truth, "images", names, images)
    check_files(truth, "label maps", labels, maps)
    return [
        {
            "file_name": str(images / name),
            "sem_seg_file_name": str(maps / label),
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
        }
        for image, name, label in zip(listed, names, labels, strict=True)
    ]


_REGISTRATIONS: dict[str, Callable[[str, Benchmark, Path], Registration]] = {
    "instances": _register_instances,
    "panoptic": _register_panoptic,
    "semantic": _register_semantic,
}
