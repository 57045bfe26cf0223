"""The pictures below a folder, or those that a text file names."""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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


_REMEDY = "to use a picture elsewhere, write its whole path"


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

    Paths are relative to the file's folder, and neither ".." nor a link may lead them out of it; whoever means another
    folder writes the whole path, which is taken as it is. Blank lines and lines that begin with ``#`` are passed over;
    a path that begins so is written ``./#...``. The file is UTF-8. It is read line by line, and each folder is listed
    once.

    Raises:
        ValueError: if the file is missing, is no text, or names no picture, one twice, ones that are missing, or ones
            outside of its folder.
    """
    folders: dict[str, int] = {}
    hashes, folder_of, tails = array("q"), array("q"), array("q")  # of names, their folders, their last parts

    def names() -> Iterator[str]:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                name = line.strip()
                if not name or name.startswith("#"):
                    continue
                if ".." in name and not os.path.isabs(name) and os.path.normpath(name).split("/")[0] == "..":
                    raise ValueError(f"picture list {path} must name pictures in its folder, got {name!r}; {_REMEDY}")
                tail = name.rpartition("/")[2]
                head = name[: len(name) - len(tail)]  # with its "/", so that "1.png" and "/1.png" have not the same
                hashes.append(hash(name))
                folder_of.append(folders.setdefault(head, len(folders)))
                tails.append(hash(tail))
                yield name

    try:
        packed = PackedTexts.pack(names())
    except OSError as error:
        raise ValueError(f"cannot read picture list {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"picture list {path} must be UTF-8 text, got {error}") from error
    if not packed:
        raise ValueError(f"picture list {path} names no picture")
    if (twice := _repeated(packed, np.frombuffer(hashes, dtype=np.int64))) is not None:
        raise ValueError(f"picture list {path} names {len(packed)} pictures, some of them twice, such as {twice}")
    where = [path.parent / head for head in folders]
    absent, links = _look(where, np.frombuffer(folder_of, dtype=np.int64), np.frombuffer(tails, dtype=np.int64))
    if len(absent):
        refuse_absent(
            path, "pictures", [packed.make(i) for i in absent.tolist()], len(packed), path.parent, "picture list"
        )
    _refuse_links_out(path, [*folders, *map(packed.make, links.tolist())])
    return PicturePaths(str(path.parent.absolute()), packed)


def _refuse_links_out(path: Path, names: Sequence[str]) -> None:
    root = path.parent.resolve()
    for name in names:
        place = (root / name).resolve()
        if not os.path.isabs(name) and not place.is_relative_to(root):
            raise ValueError(
                f"picture list {path} must name pictures in its folder, but {name!r} is a link to {place}; {_REMEDY}"
            )


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


def _repeated(names: PackedTexts, hashes: NDArray[np.int64]) -> str | None:
    """The first name that was there before, if any; found by sorting numbers, not by a set of texts."""
    ordered = np.sort(hashes)
    again = ordered[1:][np.diff(ordered) == 0]
    met: set[str] = set()
    # equal hashes are rarely those of different names
    for place in np.flatnonzero(np.isin(hashes, again)) if len(again) else ():
        name = names.make(int(place))
        if name in met:
            return name
        met.add(name)
    return None


def _look(
    folders: Sequence[Path], folder_of: NDArray[np.int64], tails: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of the names that are not in their folder, and of those that are links there.

    One folder's names are held at a time, as hashes.
    """
    order = np.argsort(folder_of, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(folder_of[order])) + 1)
    missing, linked = [], []
    for folder, members in zip(folders, groups, strict=True):
        present, links = array("q"), array("q")
        if folder.is_dir():
            with os.scandir(folder) as entries:
                for entry in entries:
                    present.append(hash(entry.name))
                    if entry.is_symlink():
                        links.append(present[-1])
        missing.append(members[~np.isin(tails[members], np.frombuffer(present, dtype=np.int64))])
        linked.append(members[np.isin(tails[members], np.frombuffer(links, dtype=np.int64))])
    return np.sort(np.concatenate(missing)), np.concatenate(linked)
