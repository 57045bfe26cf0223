"""The command, killed, ended and interrupted at random moments, against a run that was left alone."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time

import pytest

from s2uniseg_d2.engine.checkpoint_files import damage_of, numbered_checkpoints
from tests.engine.checkpoints import differing, is_of_the_machine, read
from tests.tiny import tiny_words, write_pictures

ITERATIONS, PERIOD = 16, 3
PATIENCE_S = 300


class Command:
    """One start of ``train_net.py``; what it says goes to a file, for a pipe that nobody reads would stop it."""

    def __init__(self, repository, folder, *words):
        self.said_in = folder / "said.txt"
        with self.said_in.open("w") as said:
            command = [sys.executable, str(repository / "train_net.py"), *map(str, words)]
            self.process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)

    def wait_for_iteration(self, output, iteration):
        """Wait until the picture of a step is there: the process is somewhere in the next one."""
        picture = output / "pictures" / f"views_{iteration + 1:07d}.png"
        limit = time.monotonic() + PATIENCE_S
        while not picture.is_file() and self.process.poll() is None and time.monotonic() < limit:
            time.sleep(0.002)
        assert self.process.poll() is None, self.said_in.read_text()[-3000:]
        assert picture.is_file(), f"iteration {iteration} did not come in {PATIENCE_S} s"

    def end(self, sent=None):
        """What it said, after a signal if one is given, and its exit status."""
        if sent is not None:
            self.process.send_signal(sent)
        status = self.process.wait(PATIENCE_S)
        return self.said_in.read_text(), status


def last_line(metrics):
    """The last figures of a run that are not of time or memory."""
    figures = json.loads(metrics.read_text().splitlines()[-1])
    return {name: value for name, value in figures.items() if not is_of_the_machine(name)}


@pytest.mark.faults
@pytest.mark.slow
def test_a_run_that_was_killed_ended_and_interrupted_equals_one_that_was_not(repository, tmp_path):
    pictures = write_pictures(tmp_path / "pictures")
    words = tiny_words(
        DATASETS__TRAIN=f"('folder:{pictures}',)",
        MODEL__VIT__DROP_PATH=0.4,
        SOLVER__BASE_LR=1e-3,
        SOLVER__MAX_ITER=ITERATIONS,
        SOLVER__CHECKPOINT_PERIOD=PERIOD,
    )
    alone, output = tmp_path / "alone", tmp_path / "stopped"
    said, status = Command(repository, tmp_path, *words, "OUTPUT_DIR", alone).end()
    assert status == 0, said[-3000:]

    seed = 20
    moments = random.Random(seed)
    first, second, third = (moments.randint(low, low + 2) for low in (3, 7, 11))
    shown = f"seed {seed}: kill after iteration {first}, SIGTERM after {second}, SIGINT after {third}"
    words += ["OUTPUT_DIR", output, "VIS_PERIOD", 1, "SOLVER.KEEP_CHECKPOINTS", 2]
    command = Command(repository, tmp_path, *words, "DATALOADER.NUM_WORKERS", 1)
    command.wait_for_iteration(output, first)
    said, status = command.end(signal.SIGKILL)
    assert status == -signal.SIGKILL, shown

    command = Command(repository, tmp_path, "--resume", *words)
    command.wait_for_iteration(output, second)
    said, status = command.end(signal.SIGTERM)
    assert status == 128 + signal.SIGTERM, said[-3000:]
    last = said.strip().splitlines()[-1]
    newest = next(iter(numbered_checkpoints(output)))
    assert newest >= second, shown
    assert f"stopped by SIGTERM after iteration {newest}; the last checkpoint is {output}" in last
    assert f"model_{newest:07d}.pth; the same command with --resume goes on from it" in last
    assert "Traceback" not in said

    command = Command(repository, tmp_path, "--resume", *words)
    command.wait_for_iteration(output, third)
    said, status = command.end(signal.SIGINT)
    assert status == 130, said[-3000:]
    newest = next(iter(numbered_checkpoints(output)))
    assert f"interrupted; the last checkpoint is {output / f'model_{newest:07d}.pth'}" in said.splitlines()[-1]

    said, status = Command(repository, tmp_path, "--resume", *words, "DATALOADER.NUM_WORKERS", 2).end()
    assert status == 0, said[-3000:]
    assert differing(read(alone / "model_final.pth"), read(output / "model_final.pth")) == [], shown
    lines = [last_line(folder / "metrics.json") for folder in (alone, output)]
    assert lines[0] == lines[1], shown
    assert {"total_loss", "loss_mask_ins", "lr", "teacher_momentum"} <= lines[0].keys()
    assert all(damage_of(path) is None for path in output.glob("*.pth"))
    assert len(numbered_checkpoints(output)) == 2
    assert (output / "model_initial.pth").is_file()
    assert len(numbered_checkpoints(alone)) == ITERATIONS // PERIOD
