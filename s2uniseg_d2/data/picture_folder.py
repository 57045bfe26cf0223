"""The pictures below a folder, or those that a text file names."""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .coco_json import refuse_absent
from .packed import PackedTexts, PicturePaths

# fmt: off
SUFFIXES = frozenset({
    ".avif", ".bmp", ".dib", ".gif", ".hdr", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
})
# fmt: on


# A folder that changed so shortly before it was listed may change again at the same time: file systems' clocks tick.
_SETTLED_SECONDS = 2.0


class FolderListing(NamedTuple):
    """The pictures below a folder, and what tells whether they are still the same.

    Attributes:
        pictures: their paths, sorted.
        stamp: path and time of the last change, in ns, of every folder listed; () if one changed just before.
    """

    pictures: PicturePaths
    stamp: tuple[tuple[str, int], ...]

    def is_current(self) -> bool:
        """Whether no folder has got or lost a name since; what is in the files does not matter."""
        try:
            return bool(self.stamp) and all(os.stat(path).st_mtime_ns == changed for path, changed in self.stamp)
        except OSError:
            return False


def list_pictures(folder: str | Path) -> PicturePaths:
    """Return the paths of all pictures below a folder, sorted, without opening any.

    A picture is a file with one of :data:`SUFFIXES`, in upper or lower case. Links are followed, each folder is visited
    once. Names that begin with a dot are passed over.

    Raises:
        ValueError: if the folder is missing, is no folder, cannot be listed, or holds no picture.
    """
    return list_folder(folder).pictures


def list_folder(folder: str | Path) -> FolderListing:
    """As :func:`list_pictures`, with what tells whether the listing still holds.

    Raises:
        ValueError: likewise.
    """
    root = Path(folder).expanduser()
    if not root.exists():
        raise ValueError(f"picture folder {root} does not exist")
    if not root.is_dir():
        raise ValueError(f"picture folder {root} is not a folder")
    start = time.time()
    stamp: dict[str, int] = {}
    try:
        names = PackedTexts.pack(_walk(str(root.absolute()), stamp))
    except OSError as error:
        raise ValueError(f"picture folder {root} cannot be listed: {error}") from error
    if not names:
        raise ValueError(
            f"picture folder {root} holds no picture (looked for {' '.join(sorted(SUFFIXES))}, recursively)"
        )
    is_settled = max(stamp.values()) < (start - _SETTLED_SECONDS) * 1e9
    return FolderListing(PicturePaths(str(root.absolute()), names), tuple(stamp.items()) if is_settled else ())


def read_picture_list(path: Path) -> PicturePaths:
    """Return the paths of the pictures that a text file names, one a line, in its order, without opening any.

    Paths are relative to the file's folder. Blank lines and lines that begin with ``#`` are passed over; a path that
    begins so is written ``./#...``. The file is UTF-8. It is read line by line, and each folder is listed once.

    Raises:
        ValueError: if the file is missing, is no text, or names no picture, one twice or ones that are missing.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            stripped = (line.strip() for line in lines)
            names = PackedTexts.pack(line for line in stripped if line and not line.startswith("#"))
    except OSError as error:
        raise ValueError(f"cannot read picture list {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"picture list {path} must be UTF-8 text, got {error}") from error
    if not names:
        raise ValueError(f"picture list {path} names no picture")
    if (twice := _repeated(names)) is not None:
        raise ValueError(f"picture list {path} names {len(names)} pictures, some of them twice, such as {twice}")
    _check_present(path, names)
    return PicturePaths(str(path.parent.absolute()), names)


def _walk(root: str, stamp: dict[str, int]) -> Iterator[str]:
    """Names below ``root`` of all pictures, in the order of their paths; each folder's time goes into ``stamp``."""
    visited: set[tuple[int, int]] = set()
    # what is still to come, the next one last: a folder's name ends in "/", as in the paths below it
    waiting = [""]
    while waiting:
        name = waiting.pop()
        if name and not name.endswith("/"):
            yield name
            continue
        path = os.path.join(root, name)
        status = os.stat(path)
        if (status.st_dev, status.st_ino) not in visited:
            visited.add((status.st_dev, status.st_ino))
            stamp[path] = status.st_mtime_ns
            waiting += sorted((name + entry for entry in _scan(path)), reverse=True)


def _scan(path: str) -> Iterator[str]:
    """The folders, each with a "/" behind it, and the pictures in one folder."""
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield entry.name + "/"
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.is_file():
                yield entry.name


def _repeated(names: PackedTexts) -> str | None:
    """The first name that was there before, if any; eight bytes a name, not a set of texts."""
    hashes = np.fromiter((hash(name) for name in names), dtype=np.int64, count=len(names))
    order = np.argsort(hashes, kind="stable")
    again = order[1:][np.diff(hashes[order]) == 0]
    # equal hashes are rarely those of different names
    met: dict[str, int] = {}
    alike = np.flatnonzero(np.isin(hashes, hashes[again])) if len(again) else again
    return next((names[int(place)] for place in alike if met.setdefault(names[int(place)], int(place)) != place), None)


def _check_present(path: Path, names: PackedTexts) -> None:
    """Check that each name is in its folder; a folder's names are held as hashes, and only while it is looked at.

    Raises:
        ValueError: if names are missing, with their number and the first few.
    """
    numbers: dict[str, int] = {}
    folders, tails = array("q"), array("q")
    for name in names:
        head, tail = os.path.split(name)
        folders.append(numbers.setdefault(head, len(numbers)))
        tails.append(hash(tail))
    folder_of, hashes = np.frombuffer(folders, dtype=np.int64), np.frombuffer(tails, dtype=np.int64)
    order = np.argsort(folder_of, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(folder_of[order])) + 1)
    absent = []
    # numbers were given in the order of the names, so groups come in the order of the folders
    for head, members in zip(numbers, groups, strict=True):
        below = path.parent / head
        present = [hash(name) for name in os.listdir(below)] if below.is_dir() else []
        absent.append(members[~np.isin(hashes[members], np.array(present, dtype=np.int64))])
    missing = np.sort(np.concatenate(absent))
    if len(missing):
        refuse_absent(
            path, "pictures", [names[int(place)] for place in missing], len(names), path.parent, "picture list"
        )
