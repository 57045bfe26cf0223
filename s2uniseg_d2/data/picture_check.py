"""What pictures are like, found by reading them: how many are readable, how large, and which are there twice."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .pictures import UnreadablePictureError, read_picture

SHOWN = 3  # reasons that a summary names


class PictureCheck(NamedTuple):
    """What reading some pictures showed.

    Attributes:
        sizes: rows and columns of each readable picture, by place in the records.
        unreadable: why each other picture could not be read, by place.
    """

    sizes: dict[int, tuple[int, int]]
    unreadable: dict[int, str]

    def summary(self) -> str:
        """Counts, sizes and the first reasons, in a few words."""
        parts = [f"{len(self.sizes)} of {len(self.sizes) + len(self.unreadable)} looked at are readable"]
        if self.sizes:
            shapes = sorted((width * height, f"{width} x {height}") for height, width in self.sizes.values())
            smallest, middle, largest = (shapes[place][1] for place in (0, len(shapes) // 2, -1))
            parts.append(
                f"all {smallest} pixels" if smallest == largest else f"{smallest} to {largest} pixels, middle {middle}"
            )
        parts += list(self.unreadable.values())[:SHOWN]
        if len(self.unreadable) > SHOWN:
            parts.append(f"and {len(self.unreadable) - SHOWN} more")
        return "; ".join(parts)


def draw_sample(total: int, number: int, seed: int) -> list[int]:
    """Places of ``number`` of ``total`` pictures, all if there are no more, in order; the same for the same seed."""
    if number >= total:
        return list(range(total))
    return sorted(np.random.default_rng(seed).choice(total, size=number, replace=False).tolist())


def read_pictures(records: Sequence[Mapping[str, Any]], places: Iterable[int]) -> PictureCheck:
    """Read some pictures whole, as training does, so that damage within a file is found as well.

    Args:
        records: with ``file_name`` and perhaps ``span``.
        places: in the records, of the pictures to read.
    """
    sizes: dict[int, tuple[int, int]] = {}
    unreadable: dict[int, str] = {}
    for place in places:
        record = records[place]
        try:
            height, width = read_picture(record["file_name"], record.get("span")).shape[:2]
            sizes[place] = (height, width)
        except UnreadablePictureError as error:
            unreadable[place] = str(error)
    return PictureCheck(sizes, unreadable)


def find_copies(paths: Sequence[str]) -> dict[int, int]:
    """Which files hold the same bytes as an earlier one: place of the copy, place of the first.

    Files of one length are compared by SHA-256; a file of a length of its own is not read.
    """
    by_length: dict[int, list[int]] = defaultdict(list)
    for place, path in enumerate(paths):
        by_length[os.path.getsize(path)].append(place)
    copies: dict[int, int] = {}
    for alike in by_length.values():
        first: dict[bytes, int] = {}
        for place in alike if len(alike) > 1 else ():
            digest = hashlib.sha256(Path(paths[place]).read_bytes()).digest()
            if first.setdefault(digest, place) != place:
                copies[place] = first[digest]
    return copies
