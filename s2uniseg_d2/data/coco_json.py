"""Checking COCO annotation files before they are used."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import Any, NoReturn

from .segmentation import segmentation_fault

_MOST_PIXELS = 2**30  # of a picture, whose masks take a byte each
_EXAMPLES = 3  # how many faulty items an error names
_REQUIRED = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "segmentation", "area", "bbox", "iscrowd"),
    "categories": ("id", "name"),
}


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        ValueError: if the file is missing, is no JSON, or holds something other than an object.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"cannot read annotation file {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # malformed JSON, bytes that are no text, or brackets without end
        raise ValueError(f"annotation file {path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"annotation file {path} must hold a JSON object, got a {type(content).__name__}")
    return content


def check_coco_json(json_path: Path, image_dir: Path) -> dict[str, Any]:
    """Return the content of a COCO instance file, once it is known to be sound.

    Checked: the three lists and their keys, unique ids, references between them, segmentations (polygons, compressed
    and uncompressed run lengths; crowds included), and that every picture is in ``image_dir``. Pictures are not opened.

    Raises:
        ValueError: for the first rule that is broken, with the number of faulty items and the first few.
    """
    content = read_json(json_path)
    check_coco_content(json_path, content, image_dir)
    return content


def check_coco_content(json_path: Path, content: dict[str, Any], image_dir: Path) -> None:
    """Check what :func:`check_coco_json` checks, on content that was read already; ``json_path`` is for messages.

    Raises:
        ValueError: for the first rule that is broken, with the number of faulty items and the first few.
    """
    missing = [key for key in _REQUIRED if key not in content]
    if missing:
        raise ValueError(
            f"annotation file {json_path} lacks {_listed(missing)}; COCO's format has images, annotations, categories"
        )
    for name, keys in _REQUIRED.items():
        check_items(json_path, name, content[name], keys)
    for name in ("images", "categories"):
        if not content[name]:
            raise ValueError(f"annotation file {json_path} holds no {name}: the list is empty")
    _check_references(json_path, content)
    _check_segmentations(json_path, content)
    check_files(json_path, "images", [image["file_name"] for image in content["images"]], image_dir)


def check_inside(source: Path | str, names: Sequence[str], kind: str = "annotation file") -> None:
    """Check that no file name of ``source`` leads out of the folder it counts from.

    Raises:
        ValueError: if one is no text, is absolute, climbs by "..", or holds a NUL.
    """
    for name in names:
        path = PurePath(name) if isinstance(name, str) else None
        if path is None or not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
            raise ValueError(f"{kind} {source} must name files inside their folder, got {str(name)[:200]!r}")


def check_files(source: Path, what: str, names: Sequence[str], folder: Path, kind: str = "annotation file") -> None:
    """Check that each file that ``source`` names is in a folder; each sub-folder is listed once.

    Args:
        source: the file with the names.
        what: the files, in the plural.
        names: relative to ``folder``.
        folder: which holds them.
        kind: of ``source``.

    Raises:
        ValueError: if the folder is missing, a name leads out of it, itself or by a link, or files are missing, with
            their number and the first few. The folder itself may be a link.
    """
    check_inside(source, names, kind)
    if not folder.is_dir():
        raise ValueError(f"folder {folder}, for the {what} of {kind} {source}, does not exist")
    root = folder.resolve()
    present: dict[str, dict[str, bool]] = {}
    absent = []
    for name in names:
        head, tail = os.path.split(name)
        if head not in present:
            _refuse_links_out(source, root, head, kind)
            present[head] = _names_and_links(root / head)
        if tail not in present[head]:
            absent.append(name)
        elif present[head][tail]:
            _refuse_links_out(source, root, name, kind)
    if absent:
        refuse_absent(source, what, absent, len(names), folder, kind)


def _names_and_links(folder: Path) -> dict[str, bool]:
    """The names in a folder, and whether each is a link; none if there is no such folder."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {entry.name: entry.is_symlink() for entry in entries}


def _refuse_links_out(source: Path, root: Path, name: str, kind: str) -> None:
    """Refuse a name that a link leads out of the folder: whoever wrote the name may have written the link too."""
    place = (root / name).resolve()
    if not place.is_relative_to(root):
        raise ValueError(f"{kind} {source} must name files inside their folder, but {name!r} is a link to {place}")


def refuse_absent(source: Path, what: str, absent: Sequence[str], count: int, folder: Path, kind: str) -> NoReturn:
    """Raise the error of :func:`check_files` for files that are missing, out of ``count``."""
    raise ValueError(
        f"{kind} {source} names {count} {what}, of which {len(absent)} are missing in {folder}: {_listed(absent)}"
    )


def check_items(path: Path, name: str, items: Any, keys: Sequence[str]) -> None:
    """Check a list of objects: that it is one, the keys and their values, and that no id is used twice.

    Raises:
        ValueError: for the first rule that is broken, with the number of faulty items and the first few.
    """
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError(f"{name} of annotation file {path} must be a list of objects")
    for key in keys:
        _refuse(path, name, items, partial(_lacks, key), f"lack {key!r}")
    for key in keys:
        if key in _VALUES:
            rule, holds = _VALUES[key]
            _refuse(path, name, items, partial(_breaks, key, holds), f"have a {key} that is not {rule}")
    if name == "images":
        _refuse(path, name, items, _is_vast, f"have more than {_MOST_PIXELS} pixels")
    if "id" in keys:
        kind = int if name == "categories" or any(isinstance(item["id"], int) for item in items) else str
        _refuse(
            path, name, items, lambda item: not isinstance(item["id"], kind), f"have an id that is no {kind.__name__}"
        )
        uses = Counter(item["id"] for item in items)
        _refuse(path, name, items, lambda item: uses[item["id"]] > 1, "share their id with another")


def _lacks(key: str, item: dict[str, Any]) -> bool:
    return key not in item


def _breaks(key: str, holds: Callable[[Any], bool], item: dict[str, Any]) -> bool:
    return not holds(item[key])


def _is_vast(item: dict[str, Any]) -> bool:
    return "height" in item and item["height"] * item["width"] > _MOST_PIXELS


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < _MOST_PIXELS  # neither is NaN


def _is_name(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63)


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


_VALUES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "id": ("a whole number or text", _is_name),
    "image_id": ("a whole number or text", _is_name),
    "category_id": ("a whole number or text", _is_name),
    "file_name": ("text", lambda value: isinstance(value, str)),
    "name": ("text", lambda value: isinstance(value, str)),
    "height": ("a whole number from 1", _is_side),
    "width": ("a whole number from 1", _is_side),
    "area": ("a number", _is_number),
    "bbox": ("four numbers", _is_box),
    "iscrowd": ("0 or 1", lambda value: value in (0, 1)),
    "isthing": ("0 or 1", lambda value: value in (0, 1)),
    "segments_info": (
        "a list of objects",
        lambda value: isinstance(value, list) and all(isinstance(part, dict) for part in value),
    ),
}


def _check_references(path: Path, content: dict[str, Any]) -> None:
    annotations = content["annotations"]
    images = {image["id"] for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    _refuse(path, "annotations", annotations, lambda a: a["image_id"] not in images, "name an image_id not in images")
    _refuse(
        path,
        "annotations",
        annotations,
        lambda a: a["category_id"] not in categories,
        "name a category_id not in categories",
    )
    _refuse(path, "annotations", annotations, lambda a: a.get("ignore"), "set 'ignore', which Detectron2 cannot read")


def _check_segmentations(path: Path, content: dict[str, Any]) -> None:
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    _refuse(
        path,
        "annotations",
        content["annotations"],
        lambda a: not _is_segmentation(a["segmentation"], sizes[a["image_id"]]),
        "have a segmentation that is neither polygons of at least 3 points nor run lengths of the picture's size",
    )


def _is_segmentation(segmentation: Any, size: tuple[int, int]) -> bool:
    return bool(segmentation) and segmentation_fault(segmentation, *size) is None


def _refuse(
    path: Path, name: str, items: list[dict[str, Any]], is_faulty: Callable[[dict[str, Any]], Any], fault: str
) -> None:
    faulty = [item for item in items if is_faulty(item)]
    if faulty:
        examples = _listed([f"id {item['id']}"[:60] if "id" in item else str(item)[:60] for item in faulty])
        raise ValueError(f"{len(faulty)} of {len(items)} {name} of annotation file {path} {fault}: {examples}")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_EXAMPLES])
    return f"{shown}, ..." if len(names) > _EXAMPLES else shown
