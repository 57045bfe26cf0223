"""The pictures that a command line names, and the folder that their names count from."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from s2uniseg_d2.data.picture_folder import SUFFIXES, list_pictures, read_picture_list


class Pictures(NamedTuple):
    """Pictures in the order in which they were named.

    Attributes:
        root: absolute path of the deepest folder that holds them all.
        names: paths below ``root``, with "/" between their parts, each once.
        repeated: how many times a picture was named again.
    """

    root: str
    names: list[str]
    repeated: int

    def path(self, index: int) -> str:
        """Absolute path of one picture."""
        return os.path.join(self.root, self.names[index])

    def digest(self) -> str:
        """SHA-256 of the names in their order: equal on machines that mount the pictures elsewhere."""
        return hashlib.sha256("\0".join(self.names).encode("utf-8", "surrogateescape")).hexdigest()


def find_pictures(inputs: Sequence[str | Path]) -> Pictures:
    """The pictures of files, folders, globs and list files; none is opened.

    A folder gives all pictures below it, sorted. A ``.txt`` file names one picture a line, relative to its own folder
    (:func:`~s2uniseg_d2.data.picture_folder.read_picture_list`). A glob (``**`` goes into folders) gives the files with
    a picture's suffix, sorted. Any other file is taken for a picture. Relative inputs count from the working folder.

    Raises:
        ValueError: if there is no input, or one names nothing or, in a list, what is not there.
    """
    if not inputs:
        raise ValueError("input must name at least one file, folder, glob or list file, got none")
    named = [os.path.abspath(path) for item in inputs for path in _expand(str(item))]
    unique = list(dict.fromkeys(named))
    root = os.path.commonpath([os.path.dirname(path) for path in unique])
    names = [os.path.relpath(path, root).replace(os.sep, "/") for path in unique]
    return Pictures(root, names, len(named) - len(unique))


def _expand(item: str) -> Sequence[str]:
    path = Path(item).expanduser()
    if path.is_dir():
        return list_pictures(path)
    if path.is_file():
        return read_picture_list(path) if path.suffix.lower() == ".txt" else [str(path)]
    if not glob.has_magic(item):
        raise ValueError(f"input {item!r} does not exist")
    found = glob.glob(str(path), recursive=True)
    pictures = [name for name in sorted(found) if Path(name).suffix.lower() in SUFFIXES and Path(name).is_file()]
    if not pictures:
        raise ValueError(f"input {item!r} matches no picture ({len(found)} other files and folders)")
    return pictures
