"""The pictures below a folder, or those that a text file names."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from .coco_json import LIST, check_files

# fmt: off
SUFFIXES = frozenset({
    ".avif", ".bmp", ".dib", ".gif", ".hdr", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
})
# fmt: on


def list_pictures(folder: str | Path) -> list[str]:
    """Return the paths of all pictures below a folder, sorted, without opening any.

    A picture is a file with one of :data:`SUFFIXES`, in upper or lower case. Links are followed, each folder is visited
    once. Names that begin with a dot are passed over.

    Raises:
        ValueError: if the folder is missing, is no folder, cannot be listed, or holds no picture.
    """
    root = Path(folder).expanduser()
    if not root.exists():
        raise ValueError(f"picture folder {root} does not exist")
    if not root.is_dir():
        raise ValueError(f"picture folder {root} is not a folder")
    pictures: list[str] = []
    visited: set[tuple[int, int]] = set()
    waiting = [str(root.absolute())]
    try:
        while waiting:
            path = waiting.pop()
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            waiting += _scan(path, pictures)
    except OSError as error:
        raise ValueError(f"picture folder {root} cannot be listed: {error}") from error
    if not pictures:
        raise ValueError(
            f"picture folder {root} holds no picture (looked for {' '.join(sorted(SUFFIXES))}, recursively)"
        )
    return sorted(pictures)


def read_picture_list(path: Path) -> list[str]:
    """Return the paths of the pictures that a text file names, one a line, in its order, without opening any.

    Paths are relative to the file's folder. Blank lines and lines that begin with ``#`` are passed over; a path that
    begins so is written ``./#...``. The file is UTF-8.

    Raises:
        ValueError: if the file is missing, is no text, or names no picture, one twice or ones that are missing.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise ValueError(f"cannot read picture list {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"picture list {path} must be UTF-8 text, got {error}") from error
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise ValueError(f"picture list {path} names no picture")
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise ValueError(f"picture list {path} names {len(names)} pictures, some of them twice, such as {twice}")
    check_files(path, "pictures", names, path.parent, kind=LIST)
    root = str(path.parent.absolute())
    return [os.path.normpath(os.path.join(root, name)) for name in names]


def _scan(path: str, pictures: list[str]) -> list[str]:
    folders = []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.is_file():
                pictures.append(entry.path)
    # by name, last first, for the stack: which of two links to one folder is visited must not depend on the disk
    return sorted(folders, reverse=True)
