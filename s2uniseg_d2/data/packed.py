"""Millions of records in a few arrays, which worker processes share instead of copying."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

Record = dict[str, Any]
Item = TypeVar("Item")


class MadeAnew(Sequence[Item]):
    """A sequence whose items exist only while somebody looks at them; subclasses say how one is made."""

    def make(self, index: int) -> Item:
        """The item at a place from 0."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        """One item, or a list of those in a slice."""
        places = range(len(self))[index]
        return [self.make(place) for place in places] if isinstance(places, range) else self.make(places)


class PackedTexts(MadeAnew[str]):
    """Texts whose letters lie in one array and whose ends in another: a byte a letter and eight a text.

    A list of as many strings takes about 60 bytes more for each, and every worker process that only looks at them gets
    a copy of its own, because looking changes their reference counts. An array's memory stays shared after a fork.

    Args:
        letters: ``(n,)`` uint8, UTF-8 with surrogates for bytes that are no text, as file names may hold.
        ends: ``(m,)`` int64, one after the last letter of every text.
    """

    def __init__(self, letters: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.letters = letters
        self.ends = ends

    @classmethod
    def pack(cls, texts: Iterable[str]) -> PackedTexts:
        """Take up texts one by one; none is held on to."""
        letters, ends = bytearray(), array("q")
        for text in texts:
            letters += text.encode("utf-8", "surrogateescape")
            ends.append(len(letters))
        return cls(np.frombuffer(letters, dtype=np.uint8), np.frombuffer(ends, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def make(self, index: int) -> str:
        """The text at a place from 0."""
        start = self.ends[index - 1] if index else 0
        return self.letters[start : self.ends[index]].tobytes().decode("utf-8", "surrogateescape")


class PicturePaths(MadeAnew[str]):
    """Absolute paths of pictures.

    Args:
        root: absolute path of the folder that the names count from.
        names: relative to it, or absolute themselves.
    """

    def __init__(self, root: str, names: PackedTexts) -> None:
        self.root = root
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def make(self, index: int) -> str:
        """The path at a place from 0."""
        return os.path.normpath(os.path.join(self.root, self.names.make(index)))


class PictureRecords(MadeAnew[Record]):
    """Detectron2's records of pictures without labels: ``file_name``, and ``image_id`` counted from 0."""

    def __init__(self, paths: PicturePaths) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def make(self, index: int) -> Record:
        """The record at a place from 0."""
        return {"file_name": self.paths.make(index), "image_id": index}


class JoinedRecords(MadeAnew[Record]):
    """The records of several data sets, one after the other."""

    def __init__(self, parts: Sequence[Sequence[Record]]) -> None:
        self.parts = tuple(parts)
        self._starts = tuple(accumulate((len(part) for part in self.parts), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def make(self, index: int) -> Record:
        """The record at a place from 0."""
        part = bisect_right(self._starts, index) - 1
        return self.parts[part][index - self._starts[part]]
