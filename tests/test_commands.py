"""What people expect of every command: help that tells all, exit statuses, no word in colours in a pipe."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from s2uniseg_d2 import exit_status
from s2uniseg_d2.engine import command
from s2uniseg_d2.exit_status import UsageError, counted, fail, printable, run_main, status_of
from tests.tiny import tiny_words, write_pictures

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = ["train_net.py", "datasets/make_scenes.py", "tools/draw_knobs.py", "tools/evaluate_checkpoints.py"]
SCRIPTS += ["tools/install_detectron2.py", "tools/run_demo.py", "tools/run_evidence.py", "tools/training_cost.py"]
SCRIPTS += [f"tools/{name}.py" for name in ("draw_uniap", "export_model", "export_weights", "trunk_table")]
SCRIPTS += [str(path.relative_to(REPOSITORY)) for path in sorted(REPOSITORY.glob("datasets/prepare_*.py"))]
MODULES = ["s2uniseg_d2.demo", "s2uniseg_d2.own_pictures", "s2uniseg_d2.pseudo_masks"]


def load(name):
    if name in MODULES:
        return importlib.import_module(name)
    path = REPOSITORY / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


@pytest.mark.parametrize("name", [*SCRIPTS, *MODULES])
def test_help_tells_every_argument_and_the_exit_statuses(name, capsys):
    with pytest.raises(SystemExit) as stop:
        load(name).main(["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: ")
    # an example to copy
    assert re.search(r"python |make |--", said.split("options:")[0].split("\n\n", 1)[1] + said.split("exit status")[0])
    if name != "tools/install_detectron2.py":
        assert exit_status.HELP in said
    # an argument without help is a line that ends with its name and is followed by another argument or nothing
    lines = said.partition("options:")[2].partition("exit status")[0].splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if re.match(r"  -", line) and not re.search(r"\S  +\S", line):
            assert following.startswith("      "), f"{line.strip()} has no help"
    assert max(map(len, said.splitlines())) <= 120


@pytest.mark.parametrize("name", [*SCRIPTS, *MODULES])
def test_an_unknown_option_is_a_wrong_argument(name, capsys):
    try:
        status = load(name).main(["--no-such-option"])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err


def test_statuses_are_those_of_shells():
    assert (exit_status.DONE, exit_status.ERROR, exit_status.WRONG_ARGUMENTS) == (0, 1, 2)
    assert exit_status.INTERRUPTED == 128 + signal.SIGINT
    assert exit_status.TERMINATED == 128 + signal.SIGTERM
    assert status_of(ValueError("no")) == 1
    assert status_of(UsageError("no")) == 2


@pytest.mark.parametrize(("number", "said"), [(0, "0 masks"), (1, "1 mask"), (2, "2 masks"), (1234, "1,234 masks")])
def test_one_thing_is_no_plural(number, said):
    assert counted(number, "mask") == said


def test_ctrl_c_ends_a_tool_in_a_sentence(capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert run_main(interrupted, "tool.py", "the same words go on") == 130
    assert capsys.readouterr().err == "tool.py: interrupted; the same words go on\n"
    assert run_main(lambda: 1, "tool.py") == 1


def test_an_error_is_one_line_and_does_nothing_to_a_terminal(capsys):
    assert fail("tool.py", "a\n\x1b[31m  \udcff b", 3) == 3
    assert capsys.readouterr().err == "tool.py: a ?[31m ? b\n"
    assert printable("a  b\n") == "a  b?"


def test_a_full_gpu_is_told_with_what_needs_less(monkeypatch, capsys):
    def full(_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    monkeypatch.setattr(command, "dry_run", full)
    assert load("train_net.py").main(["--dry-run"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("train_net.py: CUDA out of memory; less is needed by smaller pictures (INPUT.GLOBAL_LONGEST")
    assert said.count("\n") == 1


@pytest.fixture
def interruptible():
    """Ctrl-C raises, however the tests were started, and does so again afterwards."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press():
    os.kill(os.getpid(), signal.SIGINT)


def test_a_second_ctrl_c_does_not_come_up_in_what_the_first_one_ends(monkeypatch, capsys, interruptible):
    class Loader:
        def __del__(self):
            press()

    def interrupted(_):
        try:
            press()
        finally:
            Loader()

    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    monkeypatch.setattr(command, "dry_run", interrupted)
    assert load("train_net.py").main(["--dry-run"]) == 130
    assert capsys.readouterr().err == "train_net.py: interrupted; a dry run leaves nothing\n"
    assert unraisable == []


def test_the_first_the_third_and_a_late_ctrl_c_raise(monkeypatch, interruptible):
    with command._forgive_second_interrupt():
        with pytest.raises(KeyboardInterrupt):
            press()
        press()
        with pytest.raises(KeyboardInterrupt):
            press()
        monkeypatch.setattr(command, "FORGIVEN_S", 0)  # much later
        with pytest.raises(KeyboardInterrupt):
            press()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with command._forgive_second_interrupt():
        press()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.slow
def test_ctrl_c_on_a_terminal_twice_before_the_first_checkpoint(tmp_path):
    pictures = write_pictures(tmp_path / "pictures")
    output = tmp_path / "out"
    words = tiny_words(DATASETS__TRAIN=f"('folder:{pictures}',)", OUTPUT_DIR=output, SOLVER__MAX_ITER=100000)
    words += ["DATALOADER.NUM_WORKERS", "1", "VIS_PERIOD", "1"]
    mine, its = pty.openpty()
    environment = {**os.environ, "NO_COLOR": "1", "TERM": "xterm-256color"}
    command = [sys.executable, str(REPOSITORY / "train_net.py"), *map(str, words)]
    process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=environment, start_new_session=True)
    os.close(its)
    said = b""

    def read(patience_s=0.05):
        nonlocal said
        try:
            if select.select([mine], [], [], patience_s)[0]:
                said += os.read(mine, 65536)
        except OSError:  # nobody holds the other end any more
            return False
        return True

    while not (output / "pictures" / "views_0000001.png").is_file():
        assert process.poll() is None, said.decode()[-2000:]
        read()
    # a terminal sends it to all processes in the foreground, the loader's too
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    while read():
        pass
    assert process.wait(60) == 130
    text = said.decode()
    assert text.strip().splitlines()[-1] == (
        f"train_net.py: interrupted; there is no checkpoint in {output} yet: the same command starts anew"
    )
    assert "Traceback" not in text
    assert "\x1b" not in text  # NO_COLOR, on a terminal
    os.close(mine)
