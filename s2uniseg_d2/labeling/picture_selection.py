"""Which pictures of one's own folders a run can learn from, as a list that stays the same when it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from s2uniseg_d2.data.picture_check import PictureCheck, draw_sample, find_copies, read_pictures
from s2uniseg_d2.data.picture_folder import list_pictures
from s2uniseg_d2.evaluation.whole_files import replacing
from s2uniseg_d2.exit_status import counted

LEAST, ADVISED = 10, 100  # usable pictures: fewer are refused, and fewer are warned of
READ_AT_MOST = 2000  # pictures that are read; of more, a seeded sample


class Selection(NamedTuple):
    """Pictures to learn from, and why the others are none.

    Attributes:
        paths: absolute, in the order of their folders.
        found: pictures in the folders.
        check: of those that were read.
        copies: how many hold the same bytes as an earlier one.
        unlistable: how many have names that no list can hold.
    """

    paths: list[str]
    found: int
    check: PictureCheck
    copies: int
    unlistable: int

    def describe(self) -> list[str]:
        """A few sentences for whoever owns the pictures."""
        read = len(self.check.sizes) + len(self.check.unreadable)
        sampled = "" if read == self.found else f" ({read:,} drawn at random; training leaves out what it cannot read)"
        lines = [
            f"{counted(self.found, 'picture')} found, {len(self.paths):,} to learn from",
            f"{self.check.summary()}{sampled}",
        ]
        if self.copies:
            lines.append(f"left out as copies of others, byte by byte: {self.copies:,}")
        if self.unlistable:
            lines.append(f"left out for line breaks, blank ends or no UTF-8 in their names: {self.unlistable:,}")
        if len(self.paths) < ADVISED:
            lines.append(f"fewer than {ADVISED} pictures: the model will know these by heart and little else")
        return lines


def select_pictures(folders: Sequence[str | Path]) -> Selection:
    """Look through folders: readable pictures, each once.

    Up to 2,000 pictures are read whole; of more, a seeded sample of so many. Copies are looked for among all.

    Raises:
        ValueError: if a folder cannot be listed, or fewer than 10 pictures are left; the message counts why.
    """
    named = dict.fromkeys(path for folder in folders for path in list_pictures(folder))
    found = list(named)
    check = read_pictures([{"file_name": path} for path in found], draw_sample(len(found), READ_AT_MOST, seed=0))
    readable = [path for place, path in enumerate(found) if place not in check.unreadable]
    copies = find_copies(readable)
    single = [path for place, path in enumerate(readable) if place not in copies]
    paths = [path for path in single if _is_listable(path)]
    selection = Selection(paths, len(found), check, len(copies), len(single) - len(paths))
    if len(paths) < LEAST:
        raise ValueError(
            f"at least {LEAST} different, readable pictures are needed, got {len(paths)} in "
            f"{', '.join(map(str, folders))}: {'; '.join(selection.describe()[:-1])}"
        )
    return selection


def write_selection(path: Path, selection: Selection) -> None:
    """Write the list for ``list:FILE``, and beside it what could not be read, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text("".join(f"{line}\n" for line in ("# pictures of this run", *selection.paths)), "utf-8")
    if selection.check.unreadable:
        reasons = "".join(f"{' '.join(reason.split())}\n" for reason in selection.check.unreadable.values())
        with replacing(path.with_name("unreadable.txt")) as partial:
            partial.write_text(reasons, "utf-8", "surrogateescape")


def _is_listable(path: str) -> bool:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return path == path.strip() and len(path.splitlines()) == 1
