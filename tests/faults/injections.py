"""Faults by name: each disturbs a run at a random moment, and says what is wrong afterwards."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.runs import (
    ITERATIONS,
    PERIOD,
    PICTURES,
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


@dataclass
class Injection:
    """One fault, from the start of a run to its end.

    Attributes:
        data: gives a place, and starts commands.
        folder: of this injection.
        rng: of the moment.
        problems: what went wrong, in words; the fault is survived if there are none.
        lost: iterations that had to be done again; None where nothing counts them.
        moment: where the fault came, in words.
    """

    data: Data
    folder: Path
    rng: random.Random
    problems: list[str] = field(default_factory=list)
    lost: int | None = None
    moment: str = ""
    seam: int = -1  # the iteration that the resumed run follows

    def begin(self, name: str, fault: dict[str, Any] | None = None, **more: Any) -> Run:
        """Place and start a run."""
        self.run = self.data.place(name, self.folder, **more)
        self.started = self.data.start(self.run, fault)
        return self.run

    def await_event(self, *words: Any, count: int = 1) -> None:
        """Wait until a run has noted an event so many times."""
        wanted, limit = [str(word) for word in words], time.monotonic() + PATIENCE_S
        while sum(found[: len(wanted)] == wanted for found in events(self.run.trace)) < count:
            if self.started.wait(0.01) is not None or time.monotonic() > limit:
                raise MissedError(f"{' '.join(wanted)} never came: {self.started.said()[-2000:]}")

    def await_step(self, *, first: int = 0, last: int = ITERATIONS - 2) -> int:
        """Wait for a random step, and up to as long as a step takes."""
        step = self.rng.randint(first, last)
        self.await_event("step", step, "begins")
        delay = self.rng.uniform(0.0, 0.3)
        time.sleep(delay)
        self.moment = f"{delay:.3f} s into step {step}"
        return step

    def expect_end(self, *statuses: int, saying: str = "", seconds: float = PATIENCE_S) -> None:
        """The command ends by itself, with one of these statuses and a sentence, and without a traceback."""
        status = self.started.wait(seconds)
        said = self.started.said()
        if status is None:
            self.problems.append(f"it did not end in {seconds} s")
            self.started.end()
        elif status not in statuses:
            self.problems.append(f"status {status}, not {statuses}")
        elif saying and saying not in said.splitlines()[-1]:
            self.problems.append(f"its last words are {said.splitlines()[-1]!r}, without {saying!r}")
        if "Traceback (most recent call last)" in said:
            self.problems.append("it shows a traceback")

    def kill(self) -> None:
        """Let it die at once, with all that it started."""
        self.started.send(signal.SIGKILL)
        if self.started.wait() == 0:
            raise MissedError("it was over before")

    def check_kept(self, limit: int = PERIOD) -> None:
        """Files are sound, and no more than one period is lost."""
        self.problems += [f"after the fault {problem}" for problem in damages(self.run, is_over=False)]
        if self.run.name == "training":
            done, kept = steps_done(self.run), steps_kept(self.run)
            self.lost, self.seam = max(done - kept, 0), kept - 1
            if self.lost > limit:
                self.problems.append(f"{self.lost} iterations are lost of {done}, more than {limit}")

    def finish(self, *, is_equal: bool = True) -> None:
        """Go on to the end, and compare with the undisturbed run unless that was another one."""
        self.started = self.data.resume(self.run)
        self.expect_end(0)
        self.check_results(is_equal=is_equal)

    def check_results(self, *, is_equal: bool = True) -> None:
        """All is there, sound, tidy, and to the bit what it is without a fault."""
        if self.started.status == 0:
            self.problems += [f"at the end {problem}" for problem in damages(self.run, is_over=True)]
            if is_equal:
                self.problems += differences(results(self.run), self.data.undisturbed[self.run.name][1], self.seam)


class MissedError(Exception):
    """The moment for a fault did not come; not a fault that was survived."""


FAULTS: dict[str, Callable[[Injection], None]] = {}


def fault(name: str) -> Callable[[Callable[[Injection], None]], Callable[[Injection], None]]:
    """Register a fault by its name."""

    def add(inject: Callable[[Injection], None]) -> Callable[[Injection], None]:
        FAULTS[name] = inject
        return inject

    return add


@fault("kill -9, in a step")
def kill_in_step(injection: Injection) -> None:
    """The process alone, with or without data workers, which must follow it."""
    injection.begin("training", DATALOADER__NUM_WORKERS=injection.rng.choice([0, 0, 1]))
    injection.await_step()
    injection.kill()
    injection.check_kept()
    injection.finish()


def _pick_operation(injection: Injection, name: str, part: str = "") -> int:
    """A random file operation of a run; names, syncs and removals as often as writes, which are many more."""
    found = [words for words in injection.data.operations(name) if part in words[3]]
    writes = injection.rng.random() < 0.5
    number, _, kind, path = injection.rng.choice([words for words in found if (words[2] == "write") == writes])
    injection.moment = f"file operation {number}, {kind} {path}"
    return int(number)


def disturb_disk(injection: Injection, name: str, error: str, part: str = "", **more: Any) -> Run:
    """Start a run whose disk fails, at a random file operation if nothing else is said."""
    disk = {"error": error, **(more or {"operation": _pick_operation(injection, name, part)})}
    folder = injection.folder / "output"
    return injection.begin(name, {"disk": {"folder": str(folder), **disk}})


@fault("kill -9, in a write of a checkpoint")
def kill_in_checkpoint(injection: Injection) -> None:
    """In the middle of any of the operations that a checkpoint takes."""
    disturb_disk(injection, "training", "kill", part=".pth")
    injection.expect_end(-signal.SIGKILL)
    injection.check_kept()
    injection.finish()


@fault("kill -9, at any file operation of training")
def kill_at_file_operation(injection: Injection) -> None:
    """Records, pictures, predictions, configs and checkpoints."""
    disturb_disk(injection, "training", "kill")
    injection.expect_end(-signal.SIGKILL)
    injection.check_kept()
    injection.finish()


@fault("kill -9, in an evaluation during training")
def kill_in_evaluation(injection: Injection) -> None:
    """In one after a checkpoint, or in the one at the end."""
    injection.begin("training")
    count = injection.rng.choice([1, 2])
    injection.await_event("evaluation", "begins", count=count)
    delay = injection.rng.uniform(0.0, 0.3)
    time.sleep(delay)
    injection.moment = f"{delay:.3f} s into evaluation {count}"
    injection.kill()
    injection.check_kept()
    injection.finish()


@fault("kill -9, in train_net.py --eval-only")
def kill_eval_only(injection: Injection) -> None:
    """At any file operation, or during a prediction."""
    if injection.rng.random() < 0.5:
        disturb_disk(injection, "evaluation", "kill")
        injection.expect_end(-signal.SIGKILL)
    else:
        injection.begin("evaluation")
        count = injection.rng.randint(1, PICTURES)
        injection.await_event("prediction", "begins", count=count)
        injection.moment = f"prediction {count}"
        injection.kill()
    injection.check_kept()
    injection.finish()


@fault("kill -9, in the label command")
def kill_labelling(injection: Injection) -> None:
    """At any file operation, or while a batch is labelled."""
    if injection.rng.random() < 0.5:
        disturb_disk(injection, "labelling", "kill")
        injection.expect_end(-signal.SIGKILL)
    else:
        injection.begin("labelling")
        count = injection.rng.randint(1, PICTURES)
        injection.await_event("batch", "begins", count=count)
        injection.moment = f"batch {count}"
        injection.kill()
    injection.check_kept()
    injection.finish()


@fault("SIGTERM")
def sigterm(injection: Injection) -> None:
    """Ends after the step, with a checkpoint of it."""
    injection.begin("training")
    injection.await_step()
    injection.started.send(signal.SIGTERM)
    injection.expect_end(TERMINATED, saying="--resume goes on from it")
    injection.check_kept(limit=0)
    injection.finish()


@fault("SIGTERM in the label command")
def sigterm_labelling(injection: Injection) -> None:
    """Ends at once: the journal holds all full batches."""
    injection.begin("labelling")
    count = injection.rng.randint(1, PICTURES)
    injection.await_event("batch", "begins", count=count)
    injection.moment = f"batch {count}"
    injection.started.send(signal.SIGTERM)
    injection.expect_end(-signal.SIGTERM, TERMINATED)
    injection.check_kept()
    injection.finish()


def _preempt(injection: Injection, signum: int, grace_s: float) -> None:
    injection.begin("training", DATALOADER__NUM_WORKERS=injection.rng.choice([0, 2]))
    injection.await_step()
    injection.started.send(signum, to_group=True)
    injection.moment += f", SIGKILL after {grace_s:.2f} s"
    if injection.started.wait(grace_s) is None:
        injection.started.send(signal.SIGKILL, to_group=True)


@fault("SLURM preemption, with time enough")
def preemption(injection: Injection) -> None:
    """SIGTERM to all processes of the step, as SLURM sends it, with SLURM's usual 30 seconds."""
    _preempt(injection, signal.SIGTERM, 120.0)
    injection.expect_end(TERMINATED, saying="--resume goes on from it")
    injection.check_kept(limit=0)
    injection.finish()


@fault("SLURM preemption, SIGKILL too soon")
def short_preemption(injection: Injection) -> None:
    """SIGTERM to all processes, then SIGKILL before the last checkpoint is whole."""
    _preempt(injection, signal.SIGTERM, injection.rng.uniform(0.0, 0.5))
    injection.expect_end(TERMINATED, -signal.SIGKILL)
    injection.check_kept()
    injection.finish()


@fault("SLURM's --signal=USR1")
def warning_signal(injection: Injection) -> None:
    """The warning before a time limit, to all processes of the step."""
    _preempt(injection, signal.SIGUSR1, 120.0)
    injection.expect_end(128 + signal.SIGUSR1, saying="--resume goes on from it")
    injection.check_kept(limit=0)
    injection.finish()
