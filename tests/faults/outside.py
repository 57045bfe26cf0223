"""Faults of what a run depends on: its disk, its data, its workers, the other processes, the clock."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.faults.injections import Injection, MissedError, disturb_disk, fault, name_operation
from tests.faults.runs import PERIOD, steps_kept
from tests.faults.server import PATIENCE_S, Started
from tests.tiny import SHARED

NO_SPACE, READ_ONLY = "No space left on device", "Read-only file system"


def _fill(injection: Injection, status: int, share: float) -> None:
    room = injection.rng.randrange(int(int(injection.data.operations(injection.name)[-1][1]) * share))
    disturb_disk(injection, "ENOSPC", after_bytes=room)
    injection.expect_end(status, saying=NO_SPACE)
    injection.moment = f"after {room} bytes"
    injection.check_kept()


@fault("disk full, training")
def disk_full(injection: Injection) -> None:
    """After a random number of bytes; space is made before the run goes on."""
    _fill(injection, 1, 0.5)


@fault("disk full, --eval-only", run="evaluation")
def disk_full_evaluation(injection: Injection) -> None:
    """The same for an evaluation."""
    _fill(injection, 1, 1.0)


@fault("disk full, label command", run="labelling")
def disk_full_labelling(injection: Injection) -> None:
    """The same for labels."""
    _fill(injection, 1, 1.0)


@fault("disk full, a real small file system", run="own")
def small_file_system(injection: Injection) -> None:
    """A tmpfs with room for some checkpoints, grown before the run goes on; needs the right to mount."""
    output = injection.folder / "output"
    injection.run = injection.data.place("training", injection.folder)
    output.mkdir()
    size = injection.rng.randint(1, 15)
    _mount(output, f"size={size}m")
    try:
        injection.begin()
        injection.expect_end(1, saying=NO_SPACE)
        injection.moment = f"{size} MiB"
        injection.check_kept()
        subprocess.run(["mount", "-o", "remount,size=200m", str(output)], check=True)
        injection.finish()
    finally:
        subprocess.run(["umount", "--lazy", str(output)], check=True)


def _refuse(injection: Injection, status: int, **more: Any) -> None:
    disturb_disk(injection, "EROFS", **more)
    injection.expect_end(status, saying=READ_ONLY)
    name_operation(injection)
    injection.check_kept()


@fault("output becomes read-only, training")
def read_only(injection: Injection) -> None:
    """From a random file operation on; writable again before the run goes on."""
    _refuse(injection, 1, share=0.5)


@fault("output becomes read-only, --eval-only", run="evaluation")
def read_only_evaluation(injection: Injection) -> None:
    """The same for an evaluation."""
    _refuse(injection, 1)


@fault("output becomes read-only, label command", run="labelling")
def read_only_labelling(injection: Injection) -> None:
    """The same for labels."""
    _refuse(injection, 1)


@fault("output read-only from the start", run="own")
def read_only_from_the_start(injection: Injection) -> None:
    """Found before work begins."""
    injection.name = injection.rng.choice(["training", "evaluation", "labelling"])
    _refuse(injection, 1, operation=1)
    injection.moment = injection.name
    if any(words[-1] == "begins" for words in injection.events()):
        injection.problems.append("work had begun")
    injection.finish()


def _mount(folder: Path, options: str) -> None:
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise MissedError(f"nothing may be mounted here: {error}") from error


def _spoil(injection: Injection) -> tuple[Path, bytes]:
    """Let one picture vanish, or cut it off in the middle."""
    path = injection.run.pictures / f"{injection.rng.randrange(4)}.png"
    content = path.read_bytes()
    if injection.rng.random() < 0.5:
        path.unlink()
        injection.moment += f", {path.name} vanishes"
    else:
        path.write_bytes(content[: len(content) // 2])
        injection.moment += f", {path.name} is cut off"
    return path, content


@fault("a picture vanishes or changes, training that allows none")
def picture_lost(injection: Injection) -> None:
    """The run stops and names it; with the picture back it ends as if nothing had been."""
    injection.begin(INPUT__MAX_UNREADABLE=0, DATALOADER__NUM_WORKERS=injection.rng.choice([0, 1]))
    injection.await_step(before=6)
    path, content = _spoil(injection)
    try:
        injection.expect_end(1, saying=path.name)
    finally:
        path.write_bytes(content)  # also where the moment was missed
    injection.check_kept()


@fault("a picture vanishes or changes, training that allows some", run="own")
def picture_skipped(injection: Injection) -> None:
    """The run names it and goes on with others to its end."""
    injection.begin(DATASETS__TEST="()", INPUT__MAX_UNREADABLE=1)
    injection.await_step(before=6)
    path, _ = _spoil(injection)
    injection.expect_end(0)
    said = injection.started.said()
    if said.count("skipped (1 of at most 1 in this process)") != 1 or path.name not in said:
        injection.problems.append("what was skipped is not said once")
    injection.check_results(is_equal=False)


@fault("a picture vanishes or changes, --eval-only", run="evaluation")
def picture_lost_to_evaluation(injection: Injection) -> None:
    """A figure over fewer pictures would be false: it stops, and goes on with the picture back."""
    injection.begin()
    injection.await_event("prediction", "begins")
    path = injection.run.pictures / "3.png"
    content = path.read_bytes()
    path.unlink()
    injection.moment = "3.png vanishes after the first prediction"
    try:
        injection.expect_end(1, saying=path.name)
    finally:
        path.write_bytes(content)  # also where the moment was missed
    injection.check_kept()


@fault("a picture vanishes or changes, label command", run="own")
def picture_lost_to_labelling(injection: Injection) -> None:
    """It is skipped, counted and named."""
    injection.name = "labelling"
    injection.begin()
    injection.await_event("batch", "begins")
    path = injection.run.pictures / "3.png"
    path.unlink()
    injection.moment = "3.png vanishes after the first batch begins"
    injection.expect_end(0, saying="3 pictures; 1 picture skipped")
    injection.check_results(is_equal=False)
    if path.name not in (injection.run.output / "labels.skipped.txt").read_text():
        injection.problems.append("the picture that was skipped is not named")


def _worker_of(started: Started) -> int:
    """One data worker of a run."""
    limit = time.monotonic() + PATIENCE_S
    while time.monotonic() < limit:
        if workers := Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split():
            return int(workers[0])
        time.sleep(0.01)
    raise MissedError("there is no data worker")


@fault("a data worker dies")
def worker_dies(injection: Injection) -> None:
    """The run stops and says so."""
    injection.begin(DATALOADER__NUM_WORKERS=2)
    injection.await_step(before=3)
    os.kill(_worker_of(injection.started), signal.SIGKILL)
    injection.expect_end(1, saying="a data worker died")
    injection.check_kept()


@fault("a data worker hangs")
def worker_hangs(injection: Injection) -> None:
    """The run stops within its time limit and says so."""
    injection.begin(DATALOADER__NUM_WORKERS=1, DATALOADER__TIMEOUT_S=10)
    injection.await_step(before=5)
    os.kill(_worker_of(injection.started), signal.SIGSTOP)
    injection.expect_end(1, saying="stopped) gave no batch in DATALOADER.TIMEOUT_S = 10 seconds", seconds=120)
    injection.check_kept()


@fault("suspended for longer than its time limit, then kill -9")
def suspension(injection: Injection) -> None:
    """All processes of the run; nobody hangs, so that it goes on."""
    injection.begin(DATALOADER__NUM_WORKERS=1, DATALOADER__TIMEOUT_S=10)
    step = injection.await_step(before=5)
    injection.started.send(signal.SIGSTOP, to_group=True)
    time.sleep(12)
    injection.started.send(signal.SIGCONT, to_group=True)
    injection.await_event("step", step + 2, "begins")
    injection.kill()
    injection.check_kept()


def _begin_two(injection: Injection) -> list[Started]:
    """Two processes that share a run, started as torchrun starts them."""
    settings = SHARED | {"PROCESSES__TIMEOUT_S": 20, "DATASETS__TEST": "()"}
    injection.run = injection.data.place("training", injection.folder, **settings)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    group = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = [injection.data.start(injection.run, None, **group, RANK=rank, LOCAL_RANK=rank) for rank in (0, 1)]
    injection.seen, injection.kept, injection.started = 0, PERIOD, both[0]
    injection.await_step(before=5)
    return both


def _lose_one(injection: Injection, signum: int) -> None:
    both = _begin_two(injection)
    gone = injection.rng.choice([0, 1])
    injection.moment += f", process {gone}"
    both[gone].send(signum)
    injection.started = both[1 - gone]
    injection.expect_end(1, saying=f"process {1 - gone} of 2 lost another one", seconds=120)
    both[gone].end()
    injection.check_kept()
    for started in both:
        started.end()
    injection.finish(is_equal=False)  # one process goes on alone: sums over two round otherwise


@fault("one of two processes is killed", run="own")
def peer_dies(injection: Injection) -> None:
    """The other ends at once and says why."""
    _lose_one(injection, signal.SIGKILL)


@fault("one of two processes hangs", run="own")
def peer_hangs(injection: Injection) -> None:
    """The other ends after its time limit and says why."""
    _lose_one(injection, signal.SIGSTOP)


@fault("the clock is set, then kill -9")
def clock(injection: Injection) -> None:
    """By a second, an hour or decades, forward or back, within a run that is killed some steps later."""
    by = injection.rng.choice([-1, 1]) * injection.rng.choice([1, 3600, 20 * 365 * 86400])
    injection.begin({"clock": {"by": by, "step": steps_kept(injection.run) if injection.run else 0}})
    injection.await_step()
    injection.kill()
    injection.moment = f"{by} s, then {injection.moment}"
    injection.check_kept()
