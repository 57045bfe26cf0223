"""What an evaluation keeps of the pictures it has done, so that one that was stopped can go on."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.utils import comm

from s2uniseg_d2.evaluation.class_mapping import write_json

logger = logging.getLogger(__name__)

PARTS = "parts"  # name of the folder in OUTPUT_DIR


class KeptPicture(NamedTuple):
    """One picture that is done.

    Attributes:
        seconds: that its prediction took.
        records: by task, what the evaluator keeps of it, JSON-able.
    """

    seconds: float
    records: dict[str, dict[str, Any]]


class EvaluationParts:
    """A folder of finished pictures, in files of some pictures each, written whole or not at all.

    The folder also holds what the pictures were made with; a run with anything else may not go on with them. Each
    process writes files of its own, and may read those of all: a run may go on with another number of processes.

    Args:
        folder: of this evaluation; all processes must see the same one.
        identity: names and JSON-able values of all that the kept pictures depend on.
        every: pictures per file; 0 keeps nothing.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], every: int) -> None:
        self.folder, self.identity, self.every = folder, dict(identity), every

    def open(self, *, resume: bool) -> None:
        """Begin, or go on with what is there; all processes call this together.

        Raises:
            ValueError: if pictures are kept and ``resume`` is false, or they were made with something else.
        """
        if not resume:
            refuse_kept(self.folder)
        if _holds_pictures(self.folder):
            self._check_identity()
            logger.info("--resume: going on after the pictures that are kept in %s", self.folder)
        elif resume:
            logger.warning("--resume: nothing is kept in %s, the evaluation starts anew", self.folder)
        comm.synchronize()
        if self.every and comm.is_main_process():
            write_json(self.folder / "made_with.json", self.identity)

    def part(self, name: str) -> _Part:
        """The pictures of one data set."""
        return _Part(self.folder / name, self.every)

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _check_identity(self) -> None:
        before = _read(self.folder / "made_with.json")
        now = json.loads(json.dumps(self.identity))
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if changed:
            words = ", ".join(f"{key} was {before.get(key)!r} and is {now.get(key)!r}" for key in changed[:3])
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise ValueError(f"the pictures kept in {self.folder} were made with something else: {words}{more}")


def refuse_kept(folder: Path) -> None:
    """Raise a ValueError if a stopped evaluation has left pictures in a folder."""
    if _holds_pictures(folder):
        raise ValueError(
            f"{folder} holds pictures of an evaluation that was stopped: add --resume to go on, delete the folder, or "
            f"name another OUTPUT_DIR"
        )


def _holds_pictures(folder: Path) -> bool:
    return any(folder.glob("*/*.json"))


class _Part:
    def __init__(self, folder: Path, every: int) -> None:
        self._folder, self._every = folder, every
        self._fresh: dict[int, KeptPicture] = {}

    def load(self) -> dict[int, KeptPicture]:
        """All finished pictures, by their place in the data set."""
        pictures = {}
        for path in sorted(self._folder.glob("*.json")):
            for place, (seconds, records) in _read(path).items():
                pictures[int(place)] = KeptPicture(seconds, records)
        return pictures

    def add(self, place: int, picture: KeptPicture) -> None:
        """Keep one more; files are written when enough have come together."""
        if self._every:
            self._fresh[place] = picture
            if len(self._fresh) >= self._every:
                self.flush()

    def flush(self) -> None:
        """Write what has come since the last file."""
        if self._fresh:
            write_json(self._folder / f"{min(self._fresh):08d}.json", self._fresh)
            self._fresh = {}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} of a stopped evaluation cannot be read ({error}): delete it to go on without"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} of a stopped evaluation must hold an object, got a {type(content).__name__}")
    return content
