"""What is done of a long run, on disk, so that a kill at any moment loses one batch at most."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

logger = logging.getLogger(__name__)


class Tally(NamedTuple):
    """Counts of one batch, or of a run so far.

    Attributes:
        labelled: pictures with a record, with masks or without.
        skipped: pictures that could not be read.
        annotations: masks.
        vanished: masks left out because they cover no pixel of a picture that is coarser than the token grid.
    """

    labelled: int = 0
    skipped: int = 0
    annotations: int = 0
    vanished: int = 0

    def __add__(self, other: tuple[Any, ...]) -> Tally:
        """Field by field."""
        return Tally(*(mine + yours for mine, yours in zip(self, other, strict=True)))


class Journal:
    """An append-only file of finished batches, with the rows of a side file.

    The first line holds the run's settings, each further one a batch: CRC-32 and length of what follows, the batch's
    tally, a tab, its content. A line reaches the disk after the side file's rows and before the next batch. When a
    journal is opened again, everything from the first line on that is torn, damaged or without its rows is cut off.

    Args:
        path: of the journal; its side file is named ``.rows`` in addition.
        settings: JSON values that the result depends on; a run goes on only under the same.
        row_bytes: size of one row of the side file, one row per annotation; 0 has no side file.

    Raises:
        ValueError: if the journal was begun with other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], row_bytes: int = 0) -> None:
        self.path, self.rows_path = path, side_path(path)
        self.row_bytes = row_bytes
        self.batches, self.total = 0, Tally()
        self._file: BinaryIO = path.open("a+b")
        self._rows: BinaryIO | None = self.rows_path.open("a+b") if row_bytes else None
        try:
            self._recover(json.loads(json.dumps(settings)))
        except ValueError:
            self.close()
            raise

    def append(self, batch: int, tally: Tally, content: bytes, rows: bytes = b"") -> None:
        """Write one batch and wait until the disk has it.

        Args:
            batch: its number, counted from 0; none may be left out.
            tally: its counts.
            content: JSON without line breaks and tabs.
            rows: ``tally.annotations`` rows of the side file.

        Raises:
            ValueError: if the batch is not the next one, or the rows are not as said.
            OSError: if the disk refuses.
        """
        if batch != self.batches:
            raise ValueError(f"batch must be the next one, {self.batches}, got {batch}")
        if len(rows) != tally.annotations * self.row_bytes:
            raise ValueError(f"rows must hold {tally.annotations} x {self.row_bytes} bytes, got {len(rows)}")
        if self._rows is not None:
            _write(self._rows, rows)
        _write(self._file, _frame(json.dumps(tally).encode() + b"\t" + content))
        self.batches += 1
        self.total += tally

    def contents(self) -> Iterator[Any]:
        """The content of every batch, in order, one in memory at a time."""
        with self.path.open("rb") as file:
            next(file)
            for _ in range(self.batches):
                yield json.loads(next(file).partition(b"\t")[2])

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._rows is not None:
            self._rows.close()

    def remove(self) -> None:
        """Close and delete the files, the journal first: without it the rows mean nothing, without them it would."""
        self.close()
        self.path.unlink()
        self.rows_path.unlink(missing_ok=True)

    def _recover(self, settings: dict[str, Any]) -> None:
        available = os.fstat(self._rows.fileno()).st_size // self.row_bytes if self._rows else None
        self._file.seek(0)
        end, dropped = 0, 0
        for line in self._file:
            body = _unframe(line)
            if body is None and end == 0 and line.endswith(b"\n"):
                raise ValueError(f"{self.path} is in the way: it is no record of a run, or a damaged one")
            if body is not None and end == 0:
                refuse_other_settings(self.path, json.loads(body), settings)
            elif body is not None:
                total = self.total + Tally(*json.loads(body.partition(b"\t")[0]))
                if available is not None and total.annotations > available:
                    body = None
                else:
                    self.batches, self.total = self.batches + 1, total
            if body is None:
                dropped = os.fstat(self._file.fileno()).st_size - end
                break
            end += len(line)
        if dropped:
            logger.warning("%s: the last %d bytes are incomplete and are done again", self.path, dropped)
            self._file.truncate(end)
        if self._rows is not None:
            self._rows.truncate(self.total.annotations * self.row_bytes)
        if end == 0:
            _write(self._file, _frame(json.dumps(settings).encode()))


def side_path(path: Path) -> Path:
    """Where the rows of a journal stand."""
    return path.with_name(path.name + ".rows")


def refuse_other_settings(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Compare the settings of a file with those of this run.

    Raises:
        ValueError: if they differ, naming what does.
    """
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if keys:
        changes = ", ".join(f"{key} {_short(old.get(key))}, now {_short(new.get(key))}" for key in keys)
        raise ValueError(
            f"{path} was begun with other settings ({changes}): use those again, name another output, or start anew "
            "with --overwrite"
        )


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Hold the only right to write an output; the system takes it back when the process ends, however it ends.

    Raises:
        ValueError: if another process holds it.
    """
    path = output.with_name(output.name + ".lock")
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            current = os.path.samestat(os.fstat(file.fileno()), path.stat())
        except (BlockingIOError, FileNotFoundError):
            current = False
        if not current:
            raise ValueError(f"output {output} is being written by another process (it holds {path})")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _frame(body: bytes) -> bytes:
    return b"%08x %d " % (zlib.crc32(body), len(body)) + body + b"\n"


def _unframe(line: bytes) -> bytes | None:
    """What a line holds, or None if it is not whole."""
    crc, _, rest = line.partition(b" ")
    length, _, body = rest.partition(b" ")
    body = body[:-1] if body.endswith(b"\n") else b""
    if length != b"%d" % len(body) or crc != b"%08x" % zlib.crc32(body):
        return None
    return body


def _write(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
