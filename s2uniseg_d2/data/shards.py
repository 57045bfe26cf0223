"""Pictures inside of uncompressed tar files, read where they lie.

Shards as WebDataset's are read by an index of their members instead of from front to back: training draws pictures in
any order and goes on at any place of its stream after a stop, with the same batches as without one, and neither can be
done with a stream of shards that a shuffle buffer mixes.
"""

from __future__ import annotations

import glob
import logging
import os
import re
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .packed import MadeAnew, PackedTexts, Record
from .picture_folder import SUFFIXES
from .pictures import Span

logger = logging.getLogger(__name__)

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_INDEX_VERSION = 1
_KEEPS_INDEX = ContextVar("keeps_index", default=True)


class ShardIndex(NamedTuple):
    """Where the pictures of one shard lie.

    Attributes:
        names: of the members that are pictures, in their order.
        offsets: ``(n,)`` int64, first byte of each in the file.
        sizes: ``(n,)`` int64, bytes of each.
    """

    names: PackedTexts
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]


class ShardRecords(MadeAnew[Record]):
    """Records of the pictures of several shards, one shard's after the other's.

    A record holds ``file_name``, the shard's path and the member's name below it; ``image_id``, counted from 0; and
    ``span``, where the picture's bytes lie.
    """

    def __init__(self, shards: Sequence[str], indexes: Sequence[ShardIndex]) -> None:
        self.shards = tuple(shards)
        counts = [len(index.names) for index in indexes]
        self._ends = np.cumsum(counts)
        self._names = [index.names for index in indexes]
        self._offsets = np.concatenate([index.offsets for index in indexes])
        self._sizes = np.concatenate([index.sizes for index in indexes])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def make(self, index: int) -> Record:
        """The record at a place from 0."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        place = index - (int(self._ends[shard - 1]) if shard else 0)
        path = self.shards[shard]
        span = Span(path, int(self._offsets[index]), int(self._sizes[index]))
        return {"file_name": f"{path}/{self._names[shard].make(place)}", "image_id": index, "span": span}


def find_shards(pattern: str) -> list[str]:
    """Return the absolute paths of the shards that a pattern names, in order, each once.

    ``{000..146}`` stands for the numbers from the first to the last, with as many digits as the first has; a shard that
    is then missing is an error. ``*``, ``?`` and ``[...]`` match what is there.

    Raises:
        ValueError: if a shard does not exist, or nothing matches.
    """
    shards: list[str] = []
    for name in _expand_ranges(os.path.abspath(os.path.expanduser(pattern))):
        if Path(name).is_file():
            shards.append(name)
        elif glob.has_magic(name):
            shards += sorted(path for path in glob.glob(name, recursive=True) if os.path.isfile(path))
        else:
            raise ValueError(f"tar shard {name} does not exist")
    if not shards:
        raise ValueError(f"no tar shard matches {pattern}")
    return list(dict.fromkeys(shards))


def _expand_ranges(pattern: str) -> Iterator[str]:
    found = _RANGE.search(pattern)
    if found is None:
        yield pattern
        return
    first, last = found.groups()
    for number in range(int(first), int(last) + 1):
        yield from _expand_ranges(f"{pattern[: found.start()]}{number:0{len(first)}d}{pattern[found.end() :]}")


def read_shards(shards: Sequence[str]) -> ShardRecords:
    """Return the records of all pictures in the shards, in the order of the files and their members.

    Raises:
        ValueError: if a shard is no uncompressed tar file, is cut off, or none of them holds a picture.
    """
    records = ShardRecords(shards, [index_shard(shard) for shard in shards])
    if not len(records):
        raise ValueError(f"{len(shards)} tar shards hold no picture, such as {shards[0]}")
    return records


def index_shard(shard: str) -> ShardIndex:
    """Return the index of a shard, from the file beside it or else from its members' headers.

    The index is kept as ``.NAME.index.npz`` beside the shard and made anew when the shard's size or time has changed.
    Where the folder cannot be written it is made at each start, which takes about 30 microseconds a member.

    Raises:
        ValueError: if the file is no uncompressed tar file, or is cut off.
    """
    status = os.stat(shard)
    stamp = np.array([_INDEX_VERSION, status.st_size, status.st_mtime_ns], dtype=np.int64)
    place = Path(shard).with_name(f".{Path(shard).name}.index.npz")
    kept = _load_index(place, stamp)
    if kept is not None:
        return kept
    index = _read_members(shard, status.st_size)
    if _KEEPS_INDEX.get():
        _keep_index(place, stamp, index)
    return index


@contextmanager
def keeping_no_index() -> Iterator[None]:
    """Nothing is written beside shards while this is active."""
    token = _KEEPS_INDEX.set(False)
    try:
        yield
    finally:
        _KEEPS_INDEX.reset(token)


def _read_members(shard: str, size: int) -> ShardIndex:
    offsets: list[int] = []
    sizes: list[int] = []

    def names() -> Iterator[str]:
        with tarfile.open(shard, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile holds on to each, a kilobyte of memory
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"cut off in {member.name}")
                if member.isreg() and not member.issparse() and _is_picture(member.name):
                    offsets.append(member.offset_data)
                    sizes.append(member.size)
                    yield member.name

    try:
        packed = PackedTexts.pack(names())
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"tar shard {shard} must be a sound, uncompressed tar file: {error}") from error
    return ShardIndex(packed, np.array(offsets, dtype=np.int64), np.array(sizes, dtype=np.int64))


def _is_picture(name: str) -> bool:
    stem, suffix = os.path.splitext(os.path.basename(name))
    return suffix.lower() in SUFFIXES and not stem.startswith(".")


def _load_index(place: Path, stamp: NDArray[np.int64]) -> ShardIndex | None:
    try:
        with np.load(place, allow_pickle=False) as kept:
            if not np.array_equal(kept["stamp"], stamp):
                return None
            return ShardIndex(PackedTexts(kept["letters"], kept["ends"]), kept["offsets"], kept["sizes"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("Index %s cannot be read (%s) and is made anew", place, error)
        return None


def _keep_index(place: Path, stamp: NDArray[np.int64], index: ShardIndex) -> None:
    # processes of one run may write at the same time: each its own file, which then takes the name at once
    draft = place.with_name(f"{place.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            np.savez(
                file,
                stamp=stamp,
                letters=index.names.letters,
                ends=index.names.ends,
                offsets=index.offsets,
                sizes=index.sizes,
            )
        os.replace(draft, place)
    except OSError as error:
        draft.unlink(missing_ok=True)
        logger.warning("Index %s cannot be kept (%s): the shard is read at every start", place, error.strerror or error)
