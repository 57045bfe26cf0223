"""One's own pictures, from the folder to the gallery, as a user calls it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from s2uniseg_d2 import demo, own_pictures
from s2uniseg_d2.engine import command
from s2uniseg_d2.own_pictures import main
from tests.tiny import tiny_config, write_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = write_pictures(tmp_path_factory.mktemp("own") / "pictures", count=11, size=(64, 96))
    (folder / "copy of 0.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def recipe(pictures):
    path = pictures.parent / "recipe.yaml"
    path.write_text(tiny_config(SOLVER__CHECKPOINT_PERIOD=2).dump())
    return path


def call(*words):
    return main([*map(str, words)])


def listing(root):
    return sorted((str(path), path.stat().st_mtime_ns) for path in root.rglob("*"))


@pytest.fixture(scope="module")
def finished(repository, pictures, recipe):
    output = pictures.parent / "run"
    words = [pictures, "--output", output, "--recipe", recipe, "--gallery", "3"]
    result = subprocess.run(
        [sys.executable, "-m", "s2uniseg_d2.own_pictures", *map(str, words)],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return words, output, result


def test_a_folder_becomes_weights_and_a_gallery(finished, pictures):
    _, output, result = finished
    said = result.stdout
    assert "13 pictures found, 11 to learn from" in said
    assert "12 of 13 looked at are readable; all 96 x 64 pixels; cannot read picture" in said
    assert "left out as copies of others, byte by byte: 1" in said
    assert "fewer than 100 pictures" in said
    listed = (output / "pictures.txt").read_text().splitlines()
    assert listed[1:] == sorted(str(pictures / f"{number}.png") for number in range(11))
    assert "broken.jpg" in (output / "unreadable.txt").read_text()
    assert (output / "model_final.pth").is_file()
    assert (output / "gallery" / "index.html").is_file()
    assert len(json.loads((output / "gallery" / "instances.json").read_text())["images"]) == 3
    last = said.splitlines()[-4:]
    assert last[0] == f"weights   {output / 'model_final.pth'}"
    assert last[1].startswith(f"gallery   {output / 'gallery' / 'index.html'}: 3 of 11 pictures")
    assert f"--weights {output / 'model_final.pth'} --input OTHER_PICTURES" in last[3]
    assert "\x1b" not in said + result.stderr


def test_what_is_trained_is_not_trained_again(finished, pictures, monkeypatch, capsys):
    words = finished[0]
    monkeypatch.setattr(command, "execute", lambda *_: pytest.fail("it trained"))
    drawn = []
    monkeypatch.setattr(demo, "main", lambda words: drawn.append(words) or 0)
    (pictures / "new.png").write_bytes((pictures / "1.png").read_bytes()[:-1] + b"?")
    try:
        assert call(*words) == 0
    finally:
        (pictures / "new.png").unlink()
    assert "what was added to the folders since is for a new --output" in capsys.readouterr().out
    assert len(drawn) == 1
    assert not any("new.png" in word for word in drawn[0])


def test_a_stopped_run_goes_on_and_a_new_one_begins(pictures, recipe, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(command, "execute", lambda args, name: asked.append(args) or 130)
    words = (pictures, "--output", tmp_path / "run", "--recipe", recipe, "--iterations", 7)
    assert call(*words) == 130
    assert not asked[0].resume
    assert asked[0].opts[:2] == ["SOLVER.MAX_ITER", "7"]
    (tmp_path / "run" / "model_0000001.pth").touch()
    assert call(*words, "--device", "cpu") == 130  # it may go on elsewhere
    assert asked[1].resume
    assert asked[1].opts[2:4] == ["MODEL.DEVICE", "cpu"]


def test_another_run_is_not_mixed_in(finished, pictures, tmp_path, capsys):
    words = finished[0]
    assert call(*words, "--iterations", 9) == 1
    assert "holds a run with other words (changes)" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").touch()
    assert call(pictures, "--output", tmp_path / "full") == 1
    assert "--output must be a new or empty folder" in capsys.readouterr().err
    assert call(pictures / ".." / "pictures", "--output", pictures / "run") == 1
    assert "--output must lie outside of the pictures" in capsys.readouterr().err
    assert not (pictures / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["/nowhere"], "picture folder /nowhere does not exist"),
        (["FEW"], "at least 10 different, readable pictures are needed, got 2 in "),
        (["PICTURES", "--recipe", "none.yaml"], "config file does not exist"),
        (["PICTURES", "--set", "MODEL.NOTHING", "1"], "MODEL.NOTHING is unknown"),
    ],
)
def test_bad_input_ends_in_one_sentence_and_leaves_nothing(pictures, tmp_path, capsys, words, message):
    write_pictures(tmp_path / "few", count=2)
    named = [word.replace("PICTURES", str(pictures)).replace("FEW", str(tmp_path / "few")) for word in words]
    assert call(*named, "--output", tmp_path / "run") == 1
    said = capsys.readouterr().err
    assert said.startswith("own_pictures: ")
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_ctrl_c_while_pictures_are_looked_at(pictures, recipe, tmp_path, monkeypatch, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(own_pictures, "_select", interrupt)
    assert call(pictures, "--output", tmp_path / "run", "--recipe", recipe) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_beside_its_pictures_may_be_named_from_inside(pictures, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "execute", lambda *_: 0)
    (tmp_path / "here").symlink_to(pictures)
    monkeypatch.chdir(tmp_path / "here")
    assert call(".", "--output", "../run", "--recipe", recipe, "--dry-run") == 0


def test_a_dry_run_leaves_no_trace(pictures, recipe, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(command, "execute", lambda args, name: asked.append(args) or 0)
    before = listing(pictures.parent)
    assert call(pictures, "--output", tmp_path / "run", "--recipe", recipe, "--dry-run") == 0
    assert asked[0].dry_run
    assert asked[0].opts[-1] == str((f"folder:{pictures}",))
    assert listing(pictures.parent) == before
    assert list(tmp_path.iterdir()) == []
