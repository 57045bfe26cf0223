"""The harness itself: what it injects happens, and what it looks for it finds."""

from __future__ import annotations

import builtins
import io
import json
import os
import pathlib
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.faults import shim, soak
from tests.faults.injections import FAULTS, Fault, Injection, MissedError
from tests.faults.runs import Run, damages, differences, steps_done, steps_kept
from tests.faults.soak import inject, table


@pytest.fixture
def run(tmp_path):
    (tmp_path / "output").mkdir()
    return Run("training", tmp_path, tmp_path / "pictures", tmp_path / "output", "train_net", [])


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A disk that is put in Python's place, and taken away after the test."""
    for place in (io, builtins):
        monkeypatch.setattr(place, "open", open)
    for name in ("replace", "rename", "unlink", "remove", "mkdir", "rmdir", "fsync"):
        monkeypatch.setattr(os, name, getattr(os, name))
    accessor = getattr(pathlib, "_NormalAccessor", None)  # of Python 3.10
    for name in ("open", "replace", "rename", "unlink", "mkdir", "rmdir") if accessor else ():
        monkeypatch.setattr(accessor, name, staticmethod(getattr(accessor, name)))

    def make(**more):
        made = shim.Disk(str(tmp_path / "output"), shim.Trace(str(tmp_path / "trace.txt")), **more)
        made.install()
        return made

    return make


def test_a_full_disk_takes_what_fits(run, disk):
    disk(error="ENOSPC", after_bytes=5)
    (run.output / "a").write_text("abc")
    with pytest.raises(OSError, match="No space left"):
        (run.output / "b").write_bytes(b"defg")
    assert (run.output / "b").read_bytes() == b"de"
    (run.folder / "elsewhere").write_text("long enough")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_becomes_read_only_at_an_operation(run, disk):
    made = disk(error="EROFS", operation=4)
    (run.output / "a").write_text("abc")  # opens and writes
    (run.output / "a").replace(run.output / "b")
    for refused in (
        lambda: (run.output / "c").mkdir(),
        lambda: (run.output / "b").unlink(),
        lambda: (run.output / "d").write_text("x"),
    ):
        with pytest.raises(OSError, match="Read-only file system"):
            refused()
    assert made.count == 6
    assert [words[3] for words in shim.events(run.trace) if words[0] == "disk"] == [
        "open",
        "write",
        "replace",
        "mkdir",
        "unlink",
        "open",
    ]


def test_a_kill_comes_in_the_middle_of_a_write(run, disk):
    child = os.fork()
    if not child:
        disk(error="kill", operation=2)
        (run.output / "a").write_bytes(b"abcdef")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    assert (run.output / "a").read_bytes() == b"abc"


def test_the_clock_is_set_for_others(monkeypatch):
    monkeypatch.setattr(time, "time", time.time)
    clock = shim.Clock(by=-3600.0, step=1)
    before = time.time()
    clock.install()
    assert time.time() - before < 60
    clock.is_set = True
    assert before - time.time() > 3500


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model_0000001.pth", b"PK"),
        ("last_checkpoint", b"model_0000009.pth"),
        ("metrics.json", b'{"iteration": 1}\n{"itera'),
        ("results.json", b'{"results": '),
        ("picture.png", b"\x89PNG\r\n\x1a\n"),
        ("rows.npy", b"\x93NUM"),
        ("config.yaml", b"MODEL: {"),
        (".results.json.ab.partial", b""),
        ("labels.json.lock", b""),
    ],
)
def test_damage_is_found(run, name, content):
    assert damages(run, is_over=True) == []
    (run.output / name).write_bytes(content)
    (found,) = damages(run, is_over=True)
    assert found.startswith(name)


def test_what_a_run_in_progress_may_have_is_no_damage(run):
    (run.output / ".results.json.ab.partial").touch()
    (run.output / "metrics.json").write_text('{"iteration": 1}\n{"itera')
    assert damages(run, is_over=False) == []
    Image.new("RGB", (2, 2)).save(run.output / "sound.png")
    torch.save({"trainer": {}}, run.output / "model_0000001.pth")
    (run.output / "last_checkpoint").write_text("model_0000001.pth")
    assert damages(run, is_over=False) == []


def test_one_bit_differs(run):
    state = {"model": torch.zeros(3)}
    wanted = {"checkpoint": state, "record": ["1 lr 0.5"], "checkpoints": ["model_final.pth"]}
    other = torch.zeros(3)
    other[1] = 1e-45
    assert differences(wanted, wanted) == []
    assert "weights differ" in differences({**wanted, "checkpoint": {"model": other}}, wanted)[0]
    assert "lacks ['1 lr 0.5']" in differences({**wanted, "record": []}, wanted)[0]
    assert "1 twice" in differences({**wanted, "record": ["1 lr 0.5"] * 2}, wanted)[0]
    more = {**wanted, "record": ["1 lr 0.5", "2 lr 0.4"]}
    assert "has ['2 lr 0.4']" in differences(more, wanted)[0]
    assert differences(more, wanted, seams={2}) == []
    assert "checkpoints are []" in differences({**wanted, "checkpoints": []}, wanted)[0]
    assert differences({"a.json": b"1"}, {"a.json": b"2"}) == ["a.json differs"]


def test_lost_iterations_are_counted(run):
    run.trace.write_text("step 0 begins\nstep 0 done\nstep 1 begins\nstep 1 done\nstep 2 begins\n")
    assert (steps_done(shim.events(run.trace)), steps_kept(run)) == (2, 0)
    torch.save({"trainer": {}}, run.output / "model_0000000.pth")
    assert steps_kept(run) == 1
    (run.output / "model_0000001.pth").write_bytes(b"PK")
    assert steps_kept(run) == 1


def test_the_table_counts_what_was_not_survived():
    each = {"number": 0, "fault": "a", "moment": "", "missed": False, "problems": [], "lost": 1, "seconds": 1.0}
    found = [each, {**each, "problems": ["wrong"], "lost": 2}, {**each, "missed": True, "problems": ["missed"]}]
    lines = table(json.loads(json.dumps(found))).splitlines()
    assert "| a | 2 | 1 | 1 | 1.50 | 2 |" in lines
    assert "| all | 2 | 1 | 1 | 1.50 | 2 |" in lines


def test_a_missed_moment_gets_another_run(tmp_path, monkeypatch):
    tried = []

    def disturb(injection):
        tried.append(injection)
        if len(tried) == 2:
            raise MissedError("too late")

    monkeypatch.setitem(FAULTS, "a", Fault("a", "training", disturb))
    monkeypatch.setattr(Injection, "finish", lambda self: self.problems.append("x") if self is tried[0] else None)
    found = inject(None, tmp_path, [(0, "a"), (1, "a"), (2, "a")], 0)
    assert [tried.index(each) for each in tried] == [0, 0, 2, 2]
    # what is wrong with a run is laid to those faults that came to it
    assert [(each["missed"], each["problems"]) for each in found] == [(False, ["x"]), (False, []), (False, [])]


def test_a_path_outside_of_the_folder_does_not_count(run, disk):
    made = disk()
    assert made.is_ours(run.output / "a")
    assert not made.is_ours(run.folder / "a")
    assert not made.is_ours(3)
    assert not made.is_ours(Path(f"{run.output}_other"))


def test_the_long_form_gives_its_runs_an_absolute_folder(tmp_path, monkeypatch):
    folders = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(soak, "soak", lambda folder, *words: folders.append(folder) or (folder / "data").mkdir() or [])
    assert soak.main(["--output", "out", "--injections", "1"]) == 0
    assert folders[0].is_absolute()
    assert (tmp_path / "out" / "faults.md").is_file()
