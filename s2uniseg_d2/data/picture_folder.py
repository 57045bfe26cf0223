"""The pictures below a folder."""

from __future__ import annotations

import os
from pathlib import Path

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
