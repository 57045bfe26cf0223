"""Checkpoints under full disks, kills and damage."""

from __future__ import annotations

import contextlib
import logging
import resource
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from s2uniseg_d2.engine.checkpoint import SafeCheckpointer
from s2uniseg_d2.engine.checkpoint_files import damage_of, numbered_checkpoints, resume_candidates, write_whole


class Progress:
    """Stands for the trainer: a state that comes back."""

    def __init__(self, iteration=-1):
        self.iteration = iteration

    def state_dict(self):
        return {"iteration": self.iteration}

    def load_state_dict(self, state):
        self.iteration = state["iteration"]


def checkpointer(folder, iteration=-1, *, keep=0, width=4):
    model = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return SafeCheckpointer(model, str(folder), keep=keep, trainer=Progress(iteration), optimizer=optimizer)


def save(folder, *iterations, keep=0):
    for iteration in iterations:
        checkpointer(folder, iteration, keep=keep).save(f"model_{iteration:07d}", iteration=iteration)


def resumed_iteration(folder):
    found = checkpointer(folder)
    found.resume_or_load("", resume=True)
    return found.checkpointables["trainer"].iteration


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@contextlib.contextmanager
def file_limit(size):
    """Files may not grow beyond ``size`` bytes: what a full disk does, for this process alone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_costs_nothing_but_the_new_file_and_is_named(tmp_path):
    save(tmp_path, 3)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    big = checkpointer(tmp_path, 7, width=200_000)
    with (
        file_limit(1_000_000),
        pytest.raises(OSError, match=r"model_0000007\.pth could not be written: File too large"),
    ):
        big.save("model_0000007", iteration=7)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert resumed_iteration(tmp_path) == 3


def test_a_write_that_is_interrupted_leaves_the_old_file(tmp_path):
    write_whole(tmp_path / "a", lambda file: file.write(b"old"))

    def interrupted(file):
        file.write(b"ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a", interrupted)
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"
    write_whole(tmp_path / "a", lambda file: file.write(b"new"))
    assert (tmp_path / "a").read_bytes() == b"new"


SLOW_SAVE = """
import sys, time
from pathlib import Path
from s2uniseg_d2.engine.checkpoint_files import write_whole

def write(file):
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)

write_whole(Path(sys.argv[1]) / "model_0000005.pth", write)
"""


def test_a_killed_write_leaves_the_old_files_and_the_next_one_cleans_up(tmp_path, repository):
    save(tmp_path, 3)
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_SAVE, str(tmp_path)], stdout=subprocess.PIPE, cwd=repository, text=True
    )
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert names(tmp_path) == [".model_0000005.pth.partial", "last_checkpoint", "model_0000003.pth"]
    assert resumed_iteration(tmp_path) == 3
    save(tmp_path, 4)
    assert names(tmp_path) == ["last_checkpoint", "model_0000003.pth", "model_0000004.pth"]


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    """Change one bit of a weight."""
    content = bytearray(path.read_bytes())
    weight = torch.load(path, weights_only=True)["model"]["0.weight"].numpy().tobytes()
    content[content.find(weight)] ^= 1
    path.write_bytes(content)


def poison(place, value):
    """Put a value into the first tensor of a part of a checkpoint, with sums that are right."""

    def change(path):
        content = torch.load(path, weights_only=True)
        tensors = content["model"] if place == "model" else content["optimizer"]["state"][0]
        next(iter(tensors.values())).view(-1)[-1] = value
        torch.save(content, path)

    return change


DAMAGES = {
    "nan": (poison("model", float("nan")), r"it holds NaN or infinity in 1 tensors (model.0.weight)"),
    "infinite": (poison("model", float("-inf")), r"it holds NaN or infinity in 1 tensors (model.0.weight)"),
    "optimizer": (poison("optimizer", float("nan")), r"in 1 tensors (optimizer.state.0.momentum_buffer)"),
    "empty": (lambda path: path.write_bytes(b""), "it is empty"),
    "cut": (cut, "it is cut short"),
    "flipped": (flip, "does not match its checksum"),
    "text": (lambda path: path.write_text("<html>"), "it is cut short or overwritten"),
    "gone": (lambda path: path.unlink(), "it does not exist"),
    "weights": (lambda path: torch.save({"model": {}}, path), "weights alone"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_the_last_good_checkpoint_is_found_when_the_newest_is_damaged(tmp_path, caplog, kind):
    save(tmp_path, 9, 19, 29)
    newest = tmp_path / "model_0000029.pth"
    assert damage_of(newest) is None
    damage, reason = DAMAGES[kind]
    damage(newest)
    with caplog.at_level(logging.WARNING, logger="s2uniseg_d2"):
        assert resumed_iteration(tmp_path) == 19
    (record,) = caplog.records
    for part in ("model_0000029.pth", reason, "going on from", "model_0000019.pth"):
        assert part in record.getMessage()


def test_a_run_that_has_diverged_in_all_checkpoints_does_not_go_on(tmp_path):
    save(tmp_path, 9)
    poison("model", float("nan"))(tmp_path / "model_0000009.pth")
    with pytest.raises(
        ValueError, match=r"can be gone on from: .*0000009\.pth cannot be used: it holds NaN or infinity"
    ):
        resumed_iteration(tmp_path)


def test_nothing_sound_ends_in_one_sentence(tmp_path):
    save(tmp_path, 9, 19)
    for path in tmp_path.glob("*.pth"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"can be gone on from: .*0000019.pth cannot be used: .*0000009.pth cannot"):
        resumed_iteration(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"model_0000077.pth", b"../../elsewhere.pth"])
def test_a_damaged_name_of_the_last_checkpoint_does_not_matter(tmp_path, content):
    save(tmp_path, 9, 19)
    tag = tmp_path / "last_checkpoint"
    tag.unlink() if content is None else tag.write_bytes(content)
    assert checkpointer(tmp_path).has_checkpoint()
    assert resumed_iteration(tmp_path) == 19


def test_the_named_checkpoint_comes_first_and_the_final_one_last(tmp_path):
    save(tmp_path, 9, 19)
    checkpointer(tmp_path, 5).save("model_final", iteration=5)
    assert [path.name for path in resume_candidates(tmp_path)] == [
        "model_final.pth",
        "model_0000019.pth",
        "model_0000009.pth",
    ]
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    assert [path.name for path in resume_candidates(tmp_path)] == [
        "model_0000009.pth",
        "model_0000019.pth",
        "model_final.pth",
    ]
    assert resumed_iteration(tmp_path) == 9
    assert not checkpointer(tmp_path / "nowhere").has_checkpoint()


def test_old_checkpoints_go_and_the_first_and_last_stay(tmp_path):
    checkpointer(tmp_path).save("model_initial", is_last=False, iteration=-1)
    assert names(tmp_path) == ["model_initial.pth"]
    assert not checkpointer(tmp_path).has_checkpoint()
    checkpointer(tmp_path).save("model_final", iteration=3)
    save(tmp_path, 9, 19)
    save(tmp_path, 29, 39, keep=2)
    assert list(numbered_checkpoints(tmp_path)) == [39, 29]
    assert {"model_initial.pth", "model_final.pth"} <= set(names(tmp_path))
    # taken back to 29: what a later step wrote is not ours to remove, and does not push the new one out
    save(tmp_path, 33, keep=1)
    assert list(numbered_checkpoints(tmp_path)) == [39, 33]
    save(tmp_path, 43, 53)
    assert list(numbered_checkpoints(tmp_path)) == [53, 43, 39, 33]


def test_a_folder_that_some_processes_do_not_see_is_refused(tmp_path, monkeypatch):
    save(tmp_path, 9)
    monkeypatch.setattr("s2uniseg_d2.engine.checkpoint.comm.all_gather", lambda value: [value, False])
    with pytest.raises(ValueError, match=r"1 processes do not see .*model_0000009\.pth: OUTPUT_DIR must be a folder"):
        resumed_iteration(tmp_path)
