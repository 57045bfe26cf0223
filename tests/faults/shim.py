"""What a forked command does to itself before it begins: a trace of its events, and a fault of its disk or its clock.

The fault lives here and not in the package, which runs as it is. What is written through Python's own ``open`` counts,
and so do the calls that name, remove and sync files; PyTorch's checkpoints go through it as well.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import pathlib
import signal
import time
from pathlib import Path
from typing import Any

KILL = "kill"


class Trace:
    """A file of events, a line each, that a kill cannot tear."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._pid = os.getpid()

    def note(self, *words: Any) -> None:
        """Append one event, of this process alone: data workers are forks of it."""
        if os.getpid() == self._pid:
            os.write(self._file, (" ".join(map(str, words)) + "\n").encode())


class Disk:
    """Operations on files below a folder, counted, one of which fails.

    Args:
        folder: below which files count.
        trace: gets every operation.
        error: name of the errno that an operation raises, or "kill" for SIGKILL in its middle; "" only counts.
        operation: number of the one that fails, from 1 on; with an errno all later ones fail too. 0 is none.
        after_bytes: that fit; negative is no limit.
        part: of the names of files that count.
    """

    def __init__(
        self, folder: str, trace: Trace, error: str = "", operation: int = 0, after_bytes: int = -1, part: str = ""
    ) -> None:
        self.folder, self.trace, self.error = os.path.abspath(folder), trace, error
        self.operation, self.room = operation, after_bytes
        self.part = part
        self.count = self.bytes = 0
        self._open = io.open

    def install(self) -> None:
        """Put the operations in the places of Python's."""
        builtins.open = io.open = self.open
        for name in ("replace", "rename", "unlink", "remove", "mkdir", "rmdir"):
            setattr(os, name, self._watched(name, getattr(os, name)))
            # pathlib of Python 3.10 keeps its own references
            if hasattr(getattr(pathlib, "_NormalAccessor", None), name):
                setattr(pathlib._NormalAccessor, name, staticmethod(getattr(os, name)))
        if hasattr(pathlib, "_NormalAccessor"):
            pathlib._NormalAccessor.open = staticmethod(self.open)
        sync = os.fsync

        def fsync(handle: int) -> None:
            path = os.readlink(f"/proc/self/fd/{handle}") if os.path.isdir("/proc/self/fd") else ""
            if self.is_ours(path):
                self.step("fsync", path)
            sync(handle)

        os.fsync = fsync

    def is_ours(self, path: Any) -> bool:
        """Whether a file counts."""
        if not isinstance(path, (str, os.PathLike)):
            return False
        return f"{os.path.abspath(path)}/".startswith(f"{self.folder}/") and self.part in os.path.basename(path)

    def step(self, kind: str, path: Any) -> bool:
        """Count one operation; says whether it is the one that a kill comes in."""
        self.count += 1
        self.trace.note("disk", self.count, self.bytes, kind, os.path.basename(path))
        if not self.operation or self.count < self.operation:
            return False
        if self.error == KILL:
            if kind == "write":
                return True  # first half of the bytes
            os.kill(os.getpid(), signal.SIGKILL)
        if self.error != "ENOSPC" or kind in ("open", "write", "mkdir", "fsync"):
            self.fail(path)
        return False

    def fail(self, path: Any) -> None:
        """Raise as the system would."""
        self.trace.note("failed")
        number = getattr(errno, self.error)
        raise OSError(number, os.strerror(number), str(path))

    def _watched(self, name: str, call: Any) -> Any:
        def watched(path: Any, *words: Any, **more: Any) -> Any:
            if self.is_ours(path) and more.get("dir_fd") is None:
                self.step(name, path)
            return call(path, *words, **more)

        return watched

    def open(
        self, file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
        newline: Any = None, closefd: bool = True, opener: Any = None,
    ) -> Any:  # fmt: skip
        """As Python's, with files that are written below the folder watched."""
        if not (set(mode) & set("wax+") and self.is_ours(file)):
            return self._open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        self.step("open", file)
        raw = _Raw(self, file, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        binary = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return binary
        text = io.TextIOWrapper(binary, encoding, errors, newline, line_buffering=buffering == 1)
        text.mode = mode
        return text


class _Raw(io.FileIO):
    def __init__(self, disk: Disk, path: Any, mode: str) -> None:
        super().__init__(path, mode)
        self._disk = disk

    def write(self, data: Any) -> int:
        disk, size = self._disk, memoryview(data).nbytes
        if disk.step("write", self.name):
            super().write(memoryview(data).cast("B")[: size // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        if disk.room >= 0 and disk.bytes + size > disk.room:
            size = disk.room - disk.bytes
            if size <= 0:
                disk.fail(self.name)
        written = super().write(memoryview(data).cast("B")[:size])
        disk.bytes += written
        return written


class Clock:
    """The system's clock, set forward or back after a step.

    Args:
        by: seconds.
        step: number of the step before which it is set.
    """

    def __init__(self, by: float, step: int) -> None:
        self.by, self.step, self.is_set = by, step, False
        self._time = time.time

    def install(self) -> None:
        """Take the place of ``time.time``; monotonic clocks are not set, on no system."""
        time.time = self.read

    def read(self) -> float:
        """Seconds since 1970, or what the system thinks they are."""
        return self._time() + (self.by if self.is_set else 0.0)


def install(fault: dict[str, Any]) -> None:
    """Trace this process, and set up the fault that a request describes."""
    trace = Trace(fault["trace"])
    clock = Clock(**fault["clock"]) if "clock" in fault else None
    if "disk" in fault:
        Disk(trace=trace, **fault["disk"]).install()
    if clock:
        clock.install()
    _trace_training(trace, clock)
    _trace_labelling(trace)


def _trace_training(trace: Trace, clock: Clock | None) -> None:
    from s2uniseg_d2.engine.checkpoint import SafeCheckpointer
    from s2uniseg_d2.engine.prediction import Predictor
    from s2uniseg_d2.engine.trainer import Trainer

    step, save, test, predict = Trainer.run_step, SafeCheckpointer.save, Trainer.test.__func__, Predictor.__call__

    def run_step(self: Any) -> None:
        if clock and self.iter >= clock.step:
            clock.is_set = True
        trace.note("step", self.iter, "begins")
        step(self)
        trace.note("step", self.iter, "done")

    def traced_save(self: Any, name: str, **more: Any) -> None:
        trace.note("save", name, "begins")
        save(self, name, **more)
        trace.note("save", name, "done")

    def traced_test(cls: Any, *words: Any) -> Any:
        trace.note("evaluation", "begins")
        found = test(cls, *words)
        trace.note("evaluation", "done")
        return found

    def traced_predict(self: Any, *words: Any) -> Any:
        trace.note("prediction", "begins")
        return predict(self, *words)

    Trainer.run_step, Trainer.test = run_step, classmethod(traced_test)
    SafeCheckpointer.save, Predictor.__call__ = traced_save, traced_predict


def _trace_labelling(trace: Trace) -> None:
    from s2uniseg_d2.labeling.journal import Journal
    from s2uniseg_d2.labeling.maker import PseudoMaskMaker

    label, append = PseudoMaskMaker.label_grids, Journal.append

    def label_grids(self: Any, *words: Any) -> Any:
        trace.note("batch", "begins")
        return label(self, *words)

    def traced_append(self: Any, *words: Any) -> None:
        append(self, *words)
        trace.note("batch", words[0], "kept")

    PseudoMaskMaker.label_grids, Journal.append = label_grids, traced_append


def events(path: Path) -> list[list[str]]:
    """What a traced process has done so far."""
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []
