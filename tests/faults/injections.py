"""Faults by name: each disturbs a run at a random moment, and says what is wrong afterwards."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults.runs import (
    ITERATIONS,
    PERIOD,
    Data,
    Run,
    damages,
    differences,
    results,
    steps_done,
    steps_kept,
)
from tests.faults.server import PATIENCE_S
from tests.faults.shim import events

TERMINATED = 128 + signal.SIGTERM


class MissedError(Exception):
    """The moment for a fault did not come; not a fault that was survived."""


class Fault(NamedTuple):
    """How to disturb a run.

    Attributes:
        name: in words.
        run: training, evaluation or labelling, which goes on afterwards and must end as if nothing had been; several
            such faults disturb one run. "own" goes on and compares by itself.
        disturb: starts the run, or goes on with it, up to the fault, and looks at what is left.
    """

    name: str
    run: str
    disturb: Callable[[Injection], None]


FAULTS: dict[str, Fault] = {}


def fault(name: str, run: str = "training") -> Callable[[Callable[[Injection], None]], Callable[[Injection], None]]:
    """Register a fault by its name."""

    def add(disturb: Callable[[Injection], None]) -> Callable[[Injection], None]:
        FAULTS[name] = Fault(name, run, disturb)
        return disturb

    return add


@dataclass
class Injection:
    """A run and the faults that disturb it, one after the other.

    Attributes:
        data: gives a place, and starts commands.
        folder: of this run.
        name: training, evaluation or labelling.
        rng: of the next moment.
        problems: what the last fault did wrong, in words; it is survived if there are none.
        lost: iterations that had to be done again after it; None where nothing counts them.
        moment: where it came, in words.
    """

    data: Data
    folder: Path
    name: str = "training"
    rng: random.Random = field(default_factory=random.Random)
    problems: list[str] = field(default_factory=list)
    lost: int | None = None
    moment: str = ""
    seams: set[int] = field(default_factory=set)  # iterations that resumed runs follow
    run: Run | None = None

    def begin(self, fault: dict[str, Any] | None = None, **more: Any) -> Run:
        """Place and start the run, or go on with it, under some settings."""
        words = [word for key, value in more.items() for word in (key.replace("__", "."), value)]
        is_first = self.run is None
        if is_first:
            self.run = self.data.place(self.name, self.folder)
        self.seen, self.kept = len(events(self.run.trace)), steps_kept(self.run)
        self.started = self.data.start(self.run, fault, resume=not is_first, words=words)
        return self.run

    def events(self) -> list[list[str]]:
        """What has been noted since the last start."""
        return events(self.run.trace)[self.seen :]

    def await_event(self, *words: Any, count: int = 1) -> None:
        """Wait until a run has noted an event so many times since it was started."""
        wanted, limit = [str(word) for word in words], time.monotonic() + PATIENCE_S
        while sum(found[: len(wanted)] == wanted for found in self.events()) < count:
            if status := self.started.wait(0.01):
                raise RuntimeError(f"status {status} before the fault: {self.started.said()[-2000:]}")
            if status == 0 or time.monotonic() > limit:
                raise MissedError(f"{' '.join(wanted)} never came")

    def await_step(self, *, span: int = 2, before: int = 2) -> int:
        """Wait for a random step of the next few, some steps before the last, and up to as long as a step takes."""
        last = min(self.kept + span, ITERATIONS - before)
        if last < self.kept:
            raise MissedError("no step is left")
        step = self.rng.randint(self.kept, last)
        self.await_event("step", step, "begins")
        delay = self.rng.uniform(0.0, 0.3)
        time.sleep(delay)
        self.moment = f"{delay:.3f} s into step {step}"
        return step

    def expect_end(self, *statuses: int, saying: str = "", seconds: float = PATIENCE_S) -> None:
        """The command ends by itself, with one of these statuses and a sentence, and without a traceback."""
        status = self.started.wait(seconds)
        said = self.started.said()
        if status == 0 and 0 not in statuses and not any(words[0] == "failed" for words in self.events()):
            raise MissedError("it was over before")
        if status is None:
            self.problems.append(f"it did not end in {seconds} s")
            self.started.end()
        elif status not in statuses:
            self.problems.append(f"status {status}, not {statuses}: {said[-300:]}")
        elif saying and saying not in (said.splitlines() or [""])[-1]:
            self.problems.append(f"its last words are {said.splitlines()[-1:]}, without {saying!r}")
        # Python's logging shows one where its file cannot be written
        if "Traceback (most recent call last)" in said and "--- Logging error ---" not in said:
            self.problems.append("it shows a traceback")

    def kill(self) -> None:
        """Let it die at once."""
        self.started.send(signal.SIGKILL)
        if self.started.wait() == 0:
            raise MissedError("it was over before")

    def check_kept(self, limit: int = PERIOD) -> None:
        """Files are sound, and no more than one period is lost."""
        self.problems += [f"after the fault {problem}" for problem in damages(self.run, is_over=False)]
        if self.run.name == "training":
            done, kept = steps_done(self.events()), steps_kept(self.run)
            self.lost = max(done - kept, 0)
            self.seams.add(kept - 1)
            if self.lost > limit:
                self.problems.append(f"{self.lost} iterations are lost of {done}, more than {limit}")

    def finish(self, *, is_equal: bool = True) -> None:
        """Go on to the end, and compare with the undisturbed run unless that was another one."""
        if self.run is None:
            return
        if self.started.wait() != 0:
            self.begin()
            self.expect_end(0)
        self.check_results(is_equal=is_equal)

    def check_results(self, *, is_equal: bool = True) -> None:
        """All is there, sound, tidy, and to the bit what it is without a fault."""
        if self.started.status == 0:
            self.problems += [f"at the end {problem}" for problem in damages(self.run, is_over=True)]
            if is_equal:
                wanted = self.data.undisturbed[self.run.name][1]
                self.problems += differences(results(self.run), wanted, self.seams)


@fault("kill -9, in a step")
def kill_in_step(injection: Injection) -> None:
    """The process alone, with or without data workers, which must follow it."""
    injection.begin(DATALOADER__NUM_WORKERS=injection.rng.choice([0, 0, 1]))
    injection.await_step()
    injection.kill()
    injection.check_kept()


def disturb_disk(injection: Injection, error: str, *, part: str = "", share: float = 1.0, **more: Any) -> None:
    """Go on with a run whose disk fails, at a random file operation if nothing else is said.

    Names, syncs and removals are as likely as writes, which are many more.

    Args:
        injection: of the run.
        error: see :class:`tests.faults.shim.Disk`.
        part: of the names of the files that count.
        share: of the undisturbed run's operations, from its start on, among which the one lies.
        more: fixes the moment.
    """
    if not more:
        done = [words for words in injection.data.operations(injection.name) if part in words[3]]
        done = done[: max(int(len(done) * share), 1)]
        is_write = injection.rng.random() < 0.5
        more["operation"] = injection.rng.choice(
            [place for place, words in enumerate(done, start=1) if (words[2] == "write") == is_write]
        )
    disk = {"folder": str(injection.folder / "output"), "error": error, "part": part, **more}
    injection.begin({"disk": disk})


def name_operation(injection: Injection) -> None:
    """Say at which operation of its disk the run ended."""
    done = [words for words in injection.events() if words[0] == "disk"]
    injection.moment = "file operation {1}, {3} {4}".format(*done[-1]) if done else "before the first file operation"


def _kill_by_disk(injection: Injection, **more: Any) -> None:
    disturb_disk(injection, "kill", **more)
    injection.expect_end(-signal.SIGKILL)
    name_operation(injection)
    injection.check_kept()


@fault("kill -9, in a write of a checkpoint")
def kill_in_checkpoint(injection: Injection) -> None:
    """In the middle of any of the operations that a checkpoint takes."""
    _kill_by_disk(injection, part=".pth", share=0.3)


@fault("kill -9, at any file operation of training")
def kill_at_file_operation(injection: Injection) -> None:
    """Records, predictions, configs and checkpoints."""
    _kill_by_disk(injection, share=0.5)


@fault("kill -9, in an evaluation during training")
def kill_in_evaluation(injection: Injection) -> None:
    """In the next one, after a checkpoint."""
    injection.begin()
    injection.await_event("evaluation", "begins")
    delay = injection.rng.uniform(0.0, 0.3)
    time.sleep(delay)
    injection.moment = f"{delay:.3f} s into the evaluation after iteration {steps_kept(injection.run)}"
    injection.kill()
    injection.check_kept()


@fault("kill -9, train_net.py --eval-only, at any file operation", run="evaluation")
def kill_eval_only_at_file_operation(injection: Injection) -> None:
    """Parts, predictions, results; early enough for pictures to be left."""
    _kill_by_disk(injection, share=0.4)


@fault("kill -9, train_net.py --eval-only, in a prediction", run="evaluation")
def kill_eval_only(injection: Injection) -> None:
    """Of any picture that is left."""
    _await_one_of(injection, "prediction")
    injection.kill()
    injection.check_kept()


@fault("kill -9, label command, at any file operation", run="labelling")
def kill_labelling_at_file_operation(injection: Injection) -> None:
    """Journal, rows, preview; early enough for pictures to be left."""
    _kill_by_disk(injection, share=0.6)


@fault("kill -9, label command, in a batch", run="labelling")
def kill_labelling(injection: Injection) -> None:
    """Of any that is left."""
    _await_one_of(injection, "batch")
    injection.kill()
    injection.check_kept()


@fault("SIGTERM, label command", run="labelling")
def sigterm_labelling(injection: Injection) -> None:
    """Ends at once: the journal holds all full batches."""
    _await_one_of(injection, "batch")
    injection.started.send(signal.SIGTERM)
    injection.expect_end(-signal.SIGTERM, TERMINATED)
    injection.check_kept()


def _await_one_of(injection: Injection, name: str) -> None:
    injection.begin()
    count = injection.rng.randint(1, 2)
    injection.await_event(name, "begins", count=count)
    injection.moment = f"{name} {count} of this start"


@fault("SIGTERM, training")
def sigterm(injection: Injection) -> None:
    """Ends after the step, with a checkpoint of it."""
    injection.begin()
    injection.await_step()
    injection.started.send(signal.SIGTERM)
    injection.expect_end(TERMINATED, saying="--resume goes on from it")
    injection.check_kept(limit=0)


def _preempt(injection: Injection, signum: int, grace_s: float) -> None:
    injection.begin(DATALOADER__NUM_WORKERS=injection.rng.choice([0, 2]))
    injection.await_step()
    injection.started.send(signum, to_group=True)
    injection.moment += f", SIGKILL after {grace_s:.2f} s"
    if injection.started.wait(grace_s) is None:
        injection.started.send(signal.SIGKILL, to_group=True)


@fault("SLURM preemption, with time enough")
def preemption(injection: Injection) -> None:
    """SIGTERM to all processes of the run, as SLURM sends it, and SIGKILL two minutes later."""
    _preempt(injection, signal.SIGTERM, 120.0)
    injection.expect_end(TERMINATED, saying="--resume goes on from it")
    injection.check_kept(limit=0)


@fault("SLURM preemption, SIGKILL too soon")
def short_preemption(injection: Injection) -> None:
    """SIGTERM to all processes, then SIGKILL before or while the last checkpoint is written."""
    _preempt(injection, signal.SIGTERM, injection.rng.uniform(0.0, 0.5))
    injection.expect_end(TERMINATED, -signal.SIGKILL)
    injection.check_kept()


@fault("SLURM's --signal=USR1")
def warning_signal(injection: Injection) -> None:
    """The warning before a time limit, to all processes of the run."""
    _preempt(injection, signal.SIGUSR1, 120.0)
    injection.expect_end(128 + signal.SIGUSR1, saying="--resume goes on from it")
    injection.check_kept(limit=0)
