"""Pseudo-masks as a COCO file, one item a line, written and read without holding it in memory.

The file is a usual COCO instance file. Beside COCO's keys an annotation has ``kind`` ("instance" or "semantic"),
``level`` (0-based UniAP layer) and ``score`` in [0, 1]; the kinds are categories too. ``info`` holds ``root`` (the
folder that file names count from), ``settings``, ``labelled``, ``skipped`` (id, file name and reason of each unreadable
picture), ``annotations`` and ``vanished`` (counts) and ``embeddings`` (of the side file, or null): row i belongs to the
annotation with id i + 1. Ids of pictures count the pictures as named, those of annotations have no gaps.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

KINDS = ("instance", "semantic")
CATEGORIES = (
    {"id": 1, "name": "object", "supercategory": "instance"},
    {"id": 2, "name": "semantic region", "supercategory": "semantic"},
)
_SHARD = re.compile(r"[1-9]\d{0,5}/[1-9]\d{0,5}")
_INFO, _IMAGES, _ANNOTATIONS = '{"info": ', '"images": [', '"annotations": ['


@contextmanager
def committing(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file that stands at ``path`` when the block ends, whole and on the disk; after an error the old one stays.

    What a kill leaves of it has one name, so that the next run takes its place. Only one process may write ``path``.
    """
    part = path.with_name(f".{path.name}.part")
    text = (None, None, None) if "b" in mode else ("utf-8", "surrogateescape", "\n")
    try:
        with part.open(mode, -1, *text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def dump(item: Any) -> str:
    """JSON on one line, always the same for the same item."""
    return json.dumps(item, separators=(", ", ": "))


def write_coco(
    path: Path,
    info: Mapping[str, Any],
    images: Iterable[Mapping[str, Any]],
    annotations: Iterable[Mapping[str, Any]],
) -> None:
    """Write a file at once; annotations get their ids here, from 1 on."""
    categories = [CATEGORIES[KINDS.index(kind)] for kind in info["settings"]["kinds"]]
    numbered = ({**item, "id": number} for number, item in enumerate(annotations, start=1))
    with committing(path) as file:
        file.write(f'{_INFO}{dump(info)},\n"categories": {dump(categories)},\n{_IMAGES}')
        _write_items(file, images)
        file.write(f"],\n{_ANNOTATIONS}")
        _write_items(file, numbered)
        file.write("]}\n")


def _write_items(file: IO[str], items: Iterable[Any]) -> None:
    between = "\n"
    for item in items:
        file.write(between + dump(item))
        between = ",\n"
    file.write("\n")


def read_info(path: Path) -> dict[str, Any]:
    """The ``info`` of a file that :func:`write_coco` wrote, without reading the rest.

    Raises:
        ValueError: if the file cannot be read or is another one.
    """
    try:
        with path.open(encoding="utf-8") as file:
            info = _parse(path, file.readline().removeprefix(_INFO))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not _is_info(info):
        raise _not_ours(path)
    return dict(info)


def _is_info(info: Any) -> bool:
    """Whether all that the other parts of the command rely on is there."""
    if not (
        isinstance(info, dict) and isinstance(info.get("settings"), dict) and isinstance(info.get("skipped"), list)
    ):
        return False
    settings = info["settings"]
    kinds = settings.get("kinds")
    return (
        isinstance(settings.get("shard"), str)
        and _SHARD.fullmatch(settings["shard"]) is not None
        and isinstance(kinds, list)
        and all(kind in KINDS for kind in kinds)
        and settings.get("embeddings") in ("", "float16", "float32")
        and isinstance(info.get("root"), str)
        and all(_is_count(info.get(key)) for key in ("labelled", "annotations", "vanished"))
        and _is_count(settings.get("embedding_dim"))
        and all(_is_item(item, "id") for item in info["skipped"])
        and all(isinstance(item.get(key), str) for item in info["skipped"] for key in ("file_name", "reason"))
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**48


def _is_item(item: Any, key: str) -> bool:
    return isinstance(item, dict) and _is_count(item.get(key))


def iterate_items(path: Path, section: str) -> Iterator[dict[str, Any]]:
    """The "images" or "annotations" of a file that :func:`write_coco` wrote, one in memory at a time.

    Raises:
        ValueError: if the file is another one or ends too early.
    """
    key = {"images": "id", "annotations": "image_id"}[section]
    try:
        with path.open(encoding="utf-8") as file:
            if not any(line == f'"{section}": [\n' for line in file):
                raise _not_ours(path)
            for line in file:
                if line.startswith("]"):
                    return
                if line != "\n":
                    item = _parse(path, line)
                    if not _is_item(item, key):
                        raise _not_ours(path)
                    yield item
    except UnicodeDecodeError as error:
        raise _not_ours(path) from error
    raise _not_ours(path)


def _parse(path: Path, line: str) -> Any:
    try:
        return json.loads(line.rstrip().removesuffix(","))
    except (ValueError, RecursionError) as error:
        raise _not_ours(path) from error


def _not_ours(path: Path) -> ValueError:
    return ValueError(f"{path} is no file that pseudo_masks wrote, or a part of one")


def embeddings_path(output: Path) -> Path:
    """Where the embeddings of an output stand."""
    return output.with_suffix(".embeddings.npy")


def write_npy_header(file: IO[bytes], dtype: str, rows: int, width: int) -> None:
    """The head of a ``(rows, width)`` array whose bytes follow."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": (rows, width)}
    np.lib.format.write_array_header_1_0(file, header)


def write_skipped(output: Path, skipped: list[dict[str, Any]]) -> Path | None:
    """List unreadable pictures beside the output, name and reason parted by a tab; None if there are none."""
    path = output.with_suffix(".skipped.txt")
    if not skipped:
        path.unlink(missing_ok=True)
        return None
    with committing(path) as file:
        file.writelines(f"{item['file_name']}\t{item['reason']}\n" for item in skipped)
    return path
