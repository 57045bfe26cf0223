"""A clean end on SIGTERM or SIGUSR1: the step is finished, a checkpoint written, and what to do next said."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from detectron2.engine import HookBase
from detectron2.utils import comm

from .checkpoint_files import resume_candidates

# SIGTERM, and the warning that SLURM's --signal=USR1@SECONDS sends before a time limit; the exit status is 128 more,
# what shells give to a process that a signal ended
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Terminated(SystemExit):
    """Training was asked to end by a signal and has written a checkpoint; not an error, so no traceback is logged."""

    code: int

    def __init__(self, message: str, signum: int = signal.SIGTERM) -> None:
        super().__init__(128 + signum)
        self.message = message

    def __str__(self) -> str:
        return self.message


def how_to_go_on(folder: Path) -> str:
    """Which checkpoint of a run is the last, and how to go on from it."""
    candidates = resume_candidates(folder)
    if not candidates:
        return f"there is no checkpoint in {folder} yet: the same command starts anew"
    return f"the last checkpoint is {candidates[0]}; the same command with --resume goes on from it"


@contextlib.contextmanager
def passing_termination_on(processes: int) -> Iterator[None]:
    """Hand signals on to the processes that this one starts, instead of dying and leaving them; for more than one."""

    def pass_on(signum: int, frame: FrameType | None) -> None:
        for child in multiprocessing.active_children():
            if child.pid:
                os.kill(child.pid, signum)

    if processes < 2:
        yield
        return
    previous = {asked: signal.signal(asked, pass_on) for asked in SIGNALS}
    try:
        yield
    finally:
        for asked, handler in previous.items():
            signal.signal(asked, handler)


class TerminationHook(HookBase):
    """Ends training after the step in which SIGTERM or SIGUSR1 came, with a checkpoint.

    It stands between checkpoints and evaluation, and its ``after_evaluation`` behind the evaluation, which is cut
    short. All processes end after the same step, whichever of them got the signal. Nothing is stopped after the last
    step, whose checkpoint is the final one.
    """

    def __init__(self) -> None:
        self._requested = 0  # the signal that came first
        self._is_evaluating = False
        self.after_evaluation = EndOfEvaluation(self)
        self._pid = os.getpid()
        self._previous: dict[int, Any] = {}

    def before_train(self) -> None:
        """Take the signals over, where Python allows it."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {asked: signal.signal(asked, self._on_signal) for asked in SIGNALS}

    def after_step(self) -> None:
        """Save and stop if any process was asked to."""
        if self.trainer.iter + 1 < self.trainer.max_iter:
            if asked := max(comm.all_gather(self._requested)):
                self._save()
                comm.synchronize()  # nobody leaves, and has the others killed, before the file is written
                self._leave(asked)
            self._is_evaluating = True

    def end_evaluation(self) -> None:
        """From here to the end of the next step the signal waits: that step's number may be counted already."""
        self._is_evaluating = False

    def after_train(self) -> None:
        """Give the signals back."""
        for asked, handler in self._previous.items():
            signal.signal(asked, handler)
        self._previous = {}

    def _save(self) -> None:
        if comm.is_main_process():
            iteration = self.trainer.iter
            self.trainer.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)

    def _leave(self, asked: int) -> NoReturn:
        name, folder = signal.Signals(asked).name, Path(self.trainer.checkpointer.save_dir)
        raise Terminated(f"stopped by {name} after iteration {self.trainer.iter}; {how_to_go_on(folder)}", asked)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        """Note the signal; leave an evaluation at once.

        No logging here: the signal may have come in the middle of a line.
        """
        is_first, self._requested = not self._requested, self._requested or signum
        if os.getpid() != self._pid:
            # a data worker, forked with this handler: it must live as long as the step, but not longer than its parent
            if not is_first:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
        elif is_first and self._is_evaluating:
            self._save()
            self._leave(signum)


class EndOfEvaluation(HookBase):
    """Tells a :class:`TerminationHook` that no evaluation runs any more."""

    def __init__(self, termination: TerminationHook) -> None:
        self._termination = weakref.proxy(termination)

    def after_step(self) -> None:
        """Tell it."""
        self._termination.end_evaluation()
