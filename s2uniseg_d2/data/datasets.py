"""Data sets by name: Detectron2's registered ones, and ad hoc ones whose name says where they are."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, DatasetFromList, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets.coco import load_coco_json

from .coco_json import check_coco_json
from .offline_labels import ANNOTATION_KEYS
from .packed import JoinedRecords, PictureRecords, Record
from .picture_folder import list_folder, read_picture_list
from .scenes import read_scenes
from .shards import find_shards, read_shards

FORMS = (
    "folder:PATH (pictures without labels, recursive)",
    "list:FILE (pictures without labels, one path a line, relative to the file's folder)",
    "tar:PATTERN (pictures without labels in uncompressed tar files)",
    "coco:JSON:IMAGE_DIR (COCO instances)",
    "scenes:FOLDER (instance, semantic and panoptic truth, as datasets/make_scenes.py writes it)",
)
Records = list[Record]


def resolve_dataset(name: str) -> str:
    """Return the name under which a data set is registered with Detectron2, registering ad hoc ones under their own.

    ``folder:PATH`` is all pictures below a folder, sorted, without labels (``evaluator_type`` "none").
    ``list:FILE`` is the pictures that a text file names, in its order, without labels (``evaluator_type`` "none").
    ``tar:PATTERN`` is the pictures in tar files, such as ``tar:shards/{000..146}.tar`` (``evaluator_type`` "none").
    ``coco:JSON:IMAGE_DIR`` is a COCO instance file, checked before use (``evaluator_type`` "coco").
    ``scenes:FOLDER`` is a folder with three truths (``evaluator_type`` "coco_panoptic_seg").
    Any other name must be registered already, and the files that its metadata names must exist.

    Relative paths count from the working folder at the time of the call. A name that was resolved before is looked at
    again if its files have changed or the working folder has.

    Raises:
        ValueError: if the name is unknown, or the data it names are missing, empty or malformed.
    """
    kind, separator, place = name.partition(":")
    resolvers = {
        "folder": _register_folder,
        "list": _register_list,
        "tar": _register_shards,
        "coco": _register_coco,
        "scenes": _register_scenes,
    }
    if separator and kind in resolvers and name not in _registered_by_others():
        if not place:
            raise ValueError(f"data set name {name!r} must say where the data are: {_form(kind)}")
        resolvers[kind](name, place)
    elif name in DatasetCatalog:
        _check_registered(name)
    else:
        near = difflib.get_close_matches(name, DatasetCatalog.list(), n=5, cutoff=0.6)
        hint = f"; registered names like it: {', '.join(near)}" if near else ""
        raise ValueError(f"unknown data set {name!r}; known are registered names, {', '.join(FORMS)}{hint}")
    return name


def load_train_records(names: Sequence[str], *, needs_annotations: bool) -> Sequence[Record]:
    """Return the records of resolved data sets, joined, in a form that worker processes share.

    Folders, lists and shards have no annotations and are never turned into dicts all at once.

    Args:
        names: as :func:`resolve_dataset` returns them.
        needs_annotations: whether records keep more than ``file_name`` and ``image_id``.
    """
    parts: list[Sequence[Record]] = []
    for name in names:
        packed = MetadataCatalog.get(name).get("records")
        if packed is None:
            keys = ("file_name", "image_id", *(("height", "width", "annotations") if needs_annotations else ()))
            records = get_detection_dataset_dicts(name, filter_empty=False, check_consistency=False)
            packed = DatasetFromList([{key: record[key] for key in keys if key in record} for record in records])
        parts.append(packed)
    return JoinedRecords(parts)


def _register_folder(name: str, place: str) -> None:
    root = str(_absolute(place))
    metadata = MetadataCatalog.get(name) if name in DatasetCatalog else None
    if metadata is not None and metadata.get("image_root") == root and metadata.get("listing").is_current():
        return
    listing = list_folder(place)
    metadata = {"evaluator_type": "none", "image_root": root, "listing": listing}
    _register_packed(name, PictureRecords(listing.pictures), metadata)


def _register_list(name: str, place: str) -> None:
    path = _absolute(place)
    source = _stamp(path)
    if source and _is_current(name, source):
        return
    records = PictureRecords(read_picture_list(path))
    _register_packed(name, records, {"evaluator_type": "none", "image_root": str(path.parent), "source": source})


def _register_shards(name: str, place: str) -> None:
    shards = find_shards(place)
    source = _stamp(*(Path(shard) for shard in shards))
    if not _is_current(name, source):
        _register_packed(name, read_shards(shards), {"evaluator_type": "none", "source": source})


def _register_packed(name: str, records: Sequence[Record], metadata: dict[str, Any]) -> None:
    """Register records that are dicts only for those who ask Detectron2's catalogue for them."""
    _register(name, partial(list, records), {**metadata, "records": records})


def _register_coco(name: str, place: str) -> None:
    json_path, image_dir = _split_coco_place(name, place)
    source = _stamp(json_path, image_dir)
    if _is_current(name, source):
        return
    content = check_coco_json(json_path, image_dir)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    metadata = {
        "evaluator_type": "coco",
        "json_file": str(json_path),
        "image_root": str(image_dir),
        "thing_classes": [category["name"] for category in categories],
        "thing_dataset_id_to_contiguous_id": {category["id"]: i for i, category in enumerate(categories)},
        "source": source,
    }
    load = partial(load_coco_json, str(json_path), str(image_dir), name, extra_annotation_keys=list(ANNOTATION_KEYS))
    _register(name, load, metadata)


def _split_coco_place(name: str, place: str) -> tuple[Path, Path]:
    if ":" not in place:
        raise ValueError(f"data set name {name!r} must name a JSON file and a folder of pictures: {_form('coco')}")
    # a path may hold colons itself: the first one after which the left side is a file separates
    ends = [index for index, letter in enumerate(place) if letter == ":"]
    end = next((index for index in ends if _absolute(place[:index]).is_file()), ends[0])
    return _absolute(place[:end]), _absolute(place[end + 1 :])


def _register_scenes(name: str, place: str) -> None:
    folder = _absolute(place)
    source = _stamp(folder / "instances.json", folder / "panoptic.json")
    if _is_current(name, source):
        return
    truth = read_scenes(folder)
    _register(name, partial(_load_scenes, name, folder, truth.extras), {**truth.metadata, "source": source})


def _load_scenes(name: str, folder: Path, extras: dict[int, dict[str, Any]]) -> Records:
    records = load_coco_json(str(folder / "instances.json"), str(folder / "images"), name)
    return [record | extras[record["image_id"]] for record in records]


def _register(name: str, load: Callable[[], Records], metadata: dict[str, Any]) -> None:
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
    if name in MetadataCatalog:  # Detectron2 refuses to change a value
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(**metadata, is_ad_hoc=True)


def _registered_by_others() -> set[str]:
    return {name for name in DatasetCatalog if ":" in name and not MetadataCatalog.get(name).get("is_ad_hoc", False)}


def _check_registered(name: str) -> None:
    metadata = MetadataCatalog.get(name)
    command = metadata.get("made_by")
    remedy = f"'python {command}' makes it or says what is missing; all" if command else "Detectron2's own"
    for key in ("json_file", "image_root", "panoptic_json", "panoptic_root", "sem_seg_root", "list_file"):
        place = metadata.get(key)
        if isinstance(place, str) and "://" not in place and not Path(place).exists():
            raise ValueError(
                f"data set {name!r} is registered, but its {key} {place} does not exist; {remedy} data sets "
                "lie below the folder that DETECTRON2_DATASETS names (default: datasets)"
            )


def _stamp(*paths: Path) -> tuple[Any, ...]:
    """What tells one state of the files from another."""
    return tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in paths if path.exists())


def _is_current(name: str, source: tuple[Any, ...]) -> bool:
    return name in DatasetCatalog and MetadataCatalog.get(name).get("source") == source


def _absolute(place: str) -> Path:
    return Path(place).expanduser().absolute()


def _form(kind: str) -> str:
    return next(form for form in FORMS if form.startswith(kind))
