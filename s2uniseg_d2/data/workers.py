"""Data workers: begun as Detectron2 has them begin, deaf to a signal that the whole run gets, watched, and ended."""

from __future__ import annotations

import functools
import itertools
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from torch.utils.data import DataLoader

NAME = "data worker"
LATE, DEAD = "no batch in time: ", "DataLoader worker (pid(s) "  # the latter as PyTorch says it
TICK_S = 1.0  # of the watch: what a run is suspended for counts as one
END_S = 10.0  # that a killed process has to end
_STATES = {"T": "stopped", "t": "stopped", "D": "waiting for a disk", "Z": "dead", "X": "dead"}


class WatchedLoader(DataLoader[Any]):
    """A loader that waits for a batch of its workers no longer than it may.

    PyTorch's own ``timeout`` ends only the wait for a worker's message: whoever reads the message waits without a limit
    for a worker that is stopped within it, or before it has handed the tensors over that the message names.

    Attributes:
        limit_s: seconds for a batch; 0 is no limit.
    """

    limit_s: float = 0.0

    def __iter__(self) -> Any:
        """Batches in order.

        Raises:
            RuntimeError: if a batch took too long, with ``LATE`` and which worker it was; all have been killed then. If
                a worker died.
        """
        batches = super().__iter__()
        workers = list(getattr(batches, "_workers", ()))
        for number, worker in enumerate(workers):
            worker.name = f"{NAME} {number} of {len(workers)}"
        return _Batches(batches, workers, self.limit_s) if workers else batches


class _Batches(Iterator[Any]):
    def __init__(self, batches: Iterator[Any], workers: Sequence[multiprocessing.Process], limit_s: float) -> None:
        self._batches, self._workers, self._limit_s = batches, workers, limit_s
        self._count = 0

    def __next__(self) -> Any:
        awaited = self._workers[self._count % len(self._workers)]  # they take turns
        self._count += 1
        try:
            with _Watch(self._workers, awaited, self._limit_s):
                return next(self._batches)
        except (OSError, EOFError) as error:
            # a worker that dies while it hands tensors over is first a connection that ends
            if not multiprocessing.connection.wait([worker.sentinel for worker in self._workers], TICK_S):
                raise
            dead = ", ".join(str(worker.pid) for worker in self._workers if not worker.is_alive())
            raise RuntimeError(f"{DEAD}{dead}) exited unexpectedly") from error


class _Watch:
    """Kills workers when a block around one of their batches is not over in time, which ends every wait for them."""

    def __init__(
        self, workers: Sequence[multiprocessing.Process], awaited: multiprocessing.Process, limit_s: float
    ) -> None:
        self._workers, self._awaited, self._limit_s = workers, awaited, limit_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._found = ""

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        try:
            self._is_over.set()
            self._thread.join()
        except RuntimeError as killed:  # PyTorch raises it at a worker's death, wherever the main thread is
            error = error or killed
            self._thread.join()
        if self._found:
            raise RuntimeError(self._found) from error

    def _wait(self) -> None:
        for _ in range(math.ceil(self._limit_s / TICK_S)) if self._limit_s else itertools.count():
            if self._is_over.wait(TICK_S):
                return
        self._found = f"{LATE}{self._awaited.name} (process {self._awaited.pid}, {_state_of(self._awaited.pid)})"
        for worker in self._workers:
            worker.kill()
        left = [worker.sentinel for worker in self._workers]
        while left and (ended := multiprocessing.connection.wait(left, END_S)):
            left = [sentinel for sentinel in left if sentinel not in ended]


def _state_of(pid: int | None) -> str:
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "in an unknown state"
    return _STATES.get(letter, "alive")


def set_up_workers(loader: DataLoader, cfg: CfgNode) -> DataLoader:
    """The loader, whose workers outlive a signal to the whole process group and are not waited for without end.

    Args:
        loader: is changed.
        cfg: reads ``DATALOADER.TIMEOUT_S``.
    """
    if loader.num_workers:
        loader.__class__ = WatchedLoader  # Detectron2's builders take no class
        loader.limit_s = float(cfg.DATALOADER.TIMEOUT_S)
        loader.worker_init_fn = functools.partial(_begin, loader.worker_init_fn)
    return loader


def end_workers() -> None:
    """Kill all data workers of this process: Python waits for them at its end, for one that hangs without end."""
    # PyTorch raises an error at every data worker that is killed
    is_main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if is_main else None
    workers = [child for child in multiprocessing.active_children() if child.name.startswith(NAME)]
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join(END_S)
    if is_main:
        signal.signal(signal.SIGCHLD, previous)


def _begin(before: Callable[[int], Any] | None, number: int) -> None:
    """Outlive a SIGTERM that the process that started this worker handles, unless it comes from that process.

    SLURM sends SIGTERM to all processes of a run. With PyTorch's handler a worker dies of it, and the run with the
    worker, before it could finish its step. At its end the run's process ends its workers by the same signal.
    """
    if callable(signal.getsignal(signal.SIGTERM)) and hasattr(signal, "sigwaitinfo"):
        # blocked, so that the thread takes it, and sees who has sent it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_heed_parent, daemon=True).start()
    if before is not None:
        before(number)


def _heed_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
