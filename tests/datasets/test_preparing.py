from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

TOOLS = ("prepare_coco", "prepare_cocostuff27", "prepare_uvo", "prepare_cityscapes", "prepare_imagenet", "prepare_sa1b")


@pytest.fixture(scope="module")
def preparing(load_tool):
    return load_tool("preparing")


def test_a_killed_writer_leaves_the_old_file_whole(preparing, tmp_path, monkeypatch):
    path = tmp_path / "deep/truth.json"
    assert preparing.write_json(path, {"a": 1}) == f"written to {path}"
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        preparing.write_json(path, {"a": 2})
    assert path.read_text() == '{"a": 1}'
    assert os.listdir(path.parent) == ["truth.json"]


def test_spread_holds_the_ends(preparing):
    assert preparing.spread(list(range(101))) == [0, 25, 50, 75, 100]
    assert preparing.spread([7]) == [7]
    assert preparing.spread([]) == []


def test_labels_survive_8_and_16_bits_and_palettes(preparing, tmp_path, files):

    labels = np.arange(12).reshape(3, 4)
    files.picture(tmp_path / "8.png", labels.astype(np.uint8))
    files.picture(tmp_path / "16.png", (labels + 33000).astype(np.uint16))
    palette = Image.fromarray(labels.astype(np.uint8))
    palette.putpalette([value for value in range(256) for _ in range(3)])
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(preparing.read_labels(tmp_path / "8.png"), labels)
    np.testing.assert_array_equal(preparing.read_labels(tmp_path / "16.png"), labels + 33000)
    np.testing.assert_array_equal(preparing.read_labels(tmp_path / "palette.png"), labels)


@pytest.mark.parametrize("tool", TOOLS)
def test_nothing_on_disk_is_said_in_a_line_for_each_target(tool, run, root):
    status, said, errors = run(tool, partial=False)
    assert (status, said) == (1, "")
    assert all(line.startswith(f"{tool}.py: ") and "is missing (" in line for line in errors.splitlines())
    assert all("https://" in line for line in errors.splitlines())
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("tool", TOOLS)
def test_help_names_the_root(tool, load_tool, capsys):
    with pytest.raises(SystemExit) as stop:
        load_tool(tool).main(["--help"])
    assert stop.value.code == 0
    assert "DETECTRON2_DATASETS" in capsys.readouterr().out


@pytest.mark.slow
def test_a_tool_runs_as_a_command_and_follows_the_environment(repository, tmp_path):
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path / "here"), "PYTHONPATH": str(repository)}
    command = [sys.executable, str(repository / "datasets/prepare_cityscapes.py"), "27"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert f"prepare_cityscapes.py: 27: {tmp_path}/here/cityscapes/leftImg8bit/val is missing" in done.stderr
