"""One COCO file out of the files of many machines."""

from __future__ import annotations

import heapq
import itertools
import logging
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .coco import (
    committing,
    embeddings_path,
    iterate_items,
    read_info,
    write_coco,
    write_npy_header,
    write_skipped,
)
from .journal import Tally, locked
from .run import Outcome, describe, nothing_readable

logger = logging.getLogger(__name__)


def merge_shards(shards: Sequence[Path], output: Path, *, overwrite: bool = False) -> Outcome:
    """Merge the outputs of all shards of a run: the same bytes as one machine would have written.

    Items stream from file to file; memory does not grow with their number.

    Args:
        shards: the COCO files, in any order, with their side files beside them.
        output: the file to write.
        overwrite: replace a file that is there.

    Raises:
        ValueError: if a shard is missing, is there twice, or was made with other settings; if a file is damaged; or if
            the output is in the way.
    """
    if output.suffix.lower() != ".json":
        raise ValueError(f"output must be a file that ends in .json, got {str(output)!r}")
    if any(output.exists() and shard.exists() and output.samefile(shard) for shard in shards):
        raise ValueError(f"output must not be one of the shards, got {output}")
    if output.exists() and not overwrite:
        raise ValueError(f"output {output} is there already: name another one, or replace it with --overwrite")
    paths, infos = _in_order(shards)
    settings = {**infos[0]["settings"], "shard": "1/1"}
    if len({info["root"] for info in infos}) > 1:
        logger.warning("the shards have different roots; file names count from the first one's, %s", infos[0]["root"])
    skipped = list(heapq.merge(*(info["skipped"] for info in infos), key=operator.itemgetter("id")))
    tally = Tally()
    for info in infos:
        tally += (info["labelled"], len(info["skipped"]), info["annotations"], info["vanished"])
    if not tally.labelled:
        raise ValueError(nothing_readable(skipped))
    output.parent.mkdir(parents=True, exist_ok=True)
    with locked(output):
        if settings["embeddings"]:
            _merge_embeddings(paths, infos, output, tally.annotations)
        else:
            embeddings_path(output).unlink(missing_ok=True)
        write_skipped(output, skipped)
        images = (iterate_items(path, "images") for path in paths)
        annotations = (iterate_items(path, "annotations") for path in paths)
        write_coco(
            output,
            describe(settings, infos[0]["root"], tally, skipped),
            heapq.merge(*images, key=operator.itemgetter("id")),
            heapq.merge(*annotations, key=operator.itemgetter("image_id")),
        )
    return Outcome(tally, skipped, 0)


def _in_order(shards: Sequence[Path]) -> tuple[list[Path], list[dict[str, Any]]]:
    """The files by shard number with their infos, once they are known to make one whole."""
    found: dict[int, tuple[Path, dict[str, Any]]] = {}
    first: tuple[Path, dict[str, Any]] | None = None
    for path in shards:
        info = read_info(path)
        first = first or (path, info)
        part, parts = map(int, info["settings"]["shard"].split("/"))
        own, other = ({**i["settings"], "shard": parts} for i in (info, first[1]))
        other["shard"] = int(first[1]["settings"]["shard"].split("/")[1])
        if changed := [key for key in own if own[key] != other.get(key)]:
            raise ValueError(
                f"shards must come from one run, but {path} and {first[0]} differ in {', '.join(changed)}: "
                f"{', '.join(f'{own[key]} and {other.get(key)}' for key in changed)}"
            )
        if part in found:
            raise ValueError(f"shards must each be there once, but {path} and {found[part][0]} are both {part}/{parts}")
        found[part] = path, info
    if first is None:
        raise ValueError("shards must name at least one file, got none")
    missing = [f"{part}/{parts}" for part in range(1, parts + 1) if part not in found]
    if missing:
        raise ValueError(f"shards must all be there, but of {parts} these are missing: {', '.join(missing)}")
    return [found[part][0] for part in sorted(found)], [found[part][1] for part in sorted(found)]


def _merge_embeddings(paths: Sequence[Path], infos: Sequence[dict[str, Any]], output: Path, count: int) -> None:
    tables = [_open_table(path, info) for path, info in zip(paths, infos, strict=True)]
    settings = infos[0]["settings"]
    owners = (_label(iterate_items(path, "annotations"), number) for number, path in enumerate(paths))
    starts = [0] * len(paths)
    with committing(embeddings_path(output), "wb") as file:
        write_npy_header(file, settings["embeddings"], count, settings["embedding_dim"])
        for (_, number), rows in itertools.groupby(heapq.merge(*owners)):
            start, end = starts[number], starts[number] + sum(1 for _ in rows)
            file.write(tables[number][start:end].tobytes())
            starts[number] = end


def _label(annotations: Any, number: int) -> Any:
    """(picture, shard) of every annotation."""
    return ((item["image_id"], number) for item in annotations)


def _open_table(path: Path, info: dict[str, Any]) -> NDArray[np.floating]:
    side = embeddings_path(path)
    try:
        table: NDArray[np.floating] = np.load(side, mmap_mode="r" if info["annotations"] else None)
    except (OSError, ValueError) as error:
        raise ValueError(f"embeddings {side} of {path} cannot be read: {error}") from error
    expected = (info["annotations"], info["settings"]["embedding_dim"])
    if table.shape != expected:
        raise ValueError(f"embeddings {side} must have the shape {expected} that {path} says, got {table.shape}")
    return table
