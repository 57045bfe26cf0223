"""The demo, as a user calls it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from s2uniseg_d2.data.pictures import read_picture
from s2uniseg_d2.demo import main
from s2uniseg_d2.gallery import run
from s2uniseg_d2.gallery.results import ResultFiles
from s2uniseg_d2.segmenter import Segmenter
from tests.camera import Camera, cut_video
from tests.checkpoint import write_checkpoint
from tests.tiny import tiny_words, write_pictures

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = write_pictures(tmp_path_factory.mktemp("demo") / "pictures", count=3, size=(64, 96))
    (folder / "bad.png").touch()
    return folder


def call(*words):
    return main([*map(str, words)])


@pytest.fixture(scope="module")
def gallery(weights, pictures):
    output = pictures.parent / "gallery"
    words = ("--input", pictures, "--weights", weights, "--output", output, "--score-threshold", 0)
    assert call(*words) == 0
    return output


def test_the_files_hold_what_the_python_call_gives(gallery, pictures, weights):
    coco = COCO(str(gallery / "instances.json"))
    segmenter = Segmenter.from_pretrained(weights, score_threshold=0)
    images = coco.loadImgs(coco.getImgIds())
    assert [image["file_name"] for image in images] == ["0.png", "1.png", "2.png"]
    for image in images:
        instances = segmenter(read_picture(pictures / image["file_name"]))
        items = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
        assert (np.array([coco.annToMask(item) for item in items]) == instances.pred_masks.numpy()).all()
    names = {"index.html", "instances.json", "overlays", "panoptic", "panoptic.json", "semantic", "skipped.txt"}
    assert {path.name for path in gallery.iterdir()} == names
    assert (gallery / "skipped.txt").read_text().startswith("bad.png\t")


def test_the_end_says_what_was_done(weights, pictures, tmp_path, capsys):
    words = ("--input", pictures, "--weights", weights, "--output", tmp_path / "out", "--task", "instance")
    assert call(*words, "--score-threshold", 0, "--limit", 3) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    count = len(json.loads((tmp_path / "out" / "instances.json").read_text())["annotations"])
    assert lines[0].startswith(f"3 pictures, {count} masks, 0 skipped, ")
    assert "pictures/s" in lines[0]
    assert lines[1] == f"{tmp_path / 'out' / 'index.html'}: open it in a browser; the files lie beside it"
    assert "\033" not in printed.out
    assert call(*words, "--overwrite", "--score-threshold", 1) == 0
    printed = capsys.readouterr()
    assert "a smaller --score-threshold shows more" in printed.err
    assert "skipped: cannot read picture" in printed.err


def test_one_picture_is_told_in_the_singular(weights, pictures, tmp_path, capsys, caplog):
    words = ("--input", pictures / "0.png", pictures / "0.png", "--weights", weights, "--output", tmp_path / "out")
    assert call(*words, "--task", "panoptic") == 0
    assert capsys.readouterr().out.startswith("1 picture, ")
    assert "1 picture named again, counted once" in caplog.messages
    assert ">1 picture, " in (tmp_path / "out" / "index.html").read_text()


def test_uniap_needs_no_trained_model(pictures, tmp_path):
    config = tiny_words(MODEL__UNIAP__TAUS="(0.9,0.6)", MODEL__UNIAP__FEATURE_STRIDE=16)
    words = ("--input", pictures / "0.png", "--weights", "", "--predictor", "uniap", "--output", tmp_path / "out")
    assert call(*words, "--", *config) == 0
    assert {item["level"] for item in json.loads((tmp_path / "out" / "instances.json").read_text())["annotations"]}
    assert "no decoder is trained" in (tmp_path / "out" / "index.html").read_text()


def write_video(path):
    """Four frames."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for number in range(4):
        writer.write(np.full((48, 64, 3), 50 * number, dtype=np.uint8))
    writer.release()


def test_a_video_becomes_pictures(weights, tmp_path):
    write_video(tmp_path / "clip.avi")
    words = ("--input", tmp_path / "clip.avi", "--weights", weights, "--output", tmp_path / "out", "--every", 2)
    assert call(*words, "--task", "panoptic") == 0
    names = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    assert names == ["panoptic/clip.avi/000000.png", "panoptic/clip.avi/000002.png"]


def test_a_video_that_is_cut_off_is_told(weights, tmp_path, capsys):
    write_video(tmp_path / "clip.avi")
    cut_video(tmp_path / "clip.avi", tmp_path / "cut.avi", 2)
    words = ("--input", tmp_path / "cut.avi", "--weights", weights, "--output", tmp_path / "out")
    assert call(*words, "--task", "panoptic") == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("2 pictures, ")
    assert ", 1 skipped, " in printed.out
    reason = f"video {tmp_path / 'cut.avi'} ends early: 2 of the 4 frames that its header promises could be read"
    assert f"skipped: {reason}" in printed.err.splitlines()
    assert (tmp_path / "out" / "skipped.txt").read_text() == f"cut.avi\t{reason}\n"


def test_ctrl_c_keeps_what_is_done(weights, pictures, tmp_path, monkeypatch, capsys):
    segment, calls = Segmenter.segment, []

    def interrupt(self, image):
        calls.append(image)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return segment(self, image)

    monkeypatch.setattr(Segmenter, "segment", interrupt)
    assert call("--input", pictures, "--weights", weights, "--output", tmp_path / "out") == 130
    printed = capsys.readouterr()
    assert "interrupted; what was done by then is written" in printed.err
    assert printed.out.startswith("2 pictures, ")
    assert len(json.loads((tmp_path / "out" / "panoptic.json").read_text())["annotations"]) == 2
    assert "The run ended early (it was interrupted)" in (tmp_path / "out" / "index.html").read_text()


def at_the_third(monkeypatch, act):
    """Do something in place of segmenting the third picture."""
    segment, calls = Segmenter.segment, []

    def instead(self, image):
        calls.append(image)
        return act() if len(calls) == 3 else segment(self, image)

    monkeypatch.setattr(Segmenter, "segment", instead)


def test_sigterm_keeps_what_is_done(weights, pictures, tmp_path, monkeypatch, capsys):
    at_the_third(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    assert call("--input", pictures, "--weights", weights, "--output", tmp_path / "out") == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert capsys.readouterr().out.startswith("2 pictures, ")
    assert "ended early" in (tmp_path / "out" / "index.html").read_text()


def test_a_second_ctrl_c_waits_for_the_files(weights, pictures, tmp_path, monkeypatch):
    at_the_third(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGINT))
    finish = ResultFiles.finish

    def finish_late(self, *words):
        os.kill(os.getpid(), signal.SIGINT)
        finish(self, *words)

    monkeypatch.setattr(ResultFiles, "finish", finish_late)
    assert call("--input", pictures, "--weights", weights, "--output", tmp_path / "out") == 130
    assert len(json.loads((tmp_path / "out" / "panoptic.json").read_text())["images"]) == 2


def test_an_error_keeps_what_is_done(weights, pictures, tmp_path, monkeypatch, capsys):
    def fail():
        raise FloatingPointError("scores are not finite")

    at_the_third(monkeypatch, fail)
    assert call("--input", pictures, "--weights", weights, "--output", tmp_path / "out") == 1
    assert capsys.readouterr().err.splitlines()[-1] == "demo: scores are not finite"
    assert len(json.loads((tmp_path / "out" / "panoptic.json").read_text())["images"]) == 2
    assert "ended early (scores are not finite)" in (tmp_path / "out" / "index.html").read_text()


def test_the_limit_counts_what_is_done_and_not_what_is_skipped(weights, pictures, tmp_path, monkeypatch, capsys):
    def fail():
        raise MemoryError

    at_the_third(monkeypatch, fail)
    Image.new("RGB", (70_000, 2)).save(tmp_path / "a_wide.png")
    write_pictures(tmp_path / "more", count=4, size=(32, 32))
    inputs = (pictures / "bad.png", tmp_path / "a_wide.png", pictures / "0.png", tmp_path / "more")
    words = ("--input", *inputs, "--weights", weights, "--output", tmp_path / "out", "--task", "panoptic")
    assert call(*words, "--limit", 3) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("3 pictures, ")
    assert ", 3 skipped, " in printed.out
    assert len(list((tmp_path / "out" / "panoptic").rglob("*.png"))) == 3


def test_a_camera_ends_at_the_limit(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    words = ("--input", "webcam:5", "--weights", weights, "--output", tmp_path / "out", "--task", "semantic")
    assert call(*words, "--limit", 2, "--every", 3) == 0
    written = sorted((tmp_path / "out" / "semantic").rglob("*.png"))
    assert [path.stem for path in written] == ["000000", "000003"]


def test_what_is_too_large_is_skipped_and_the_others_are_done(weights, pictures, tmp_path, monkeypatch, capsys):
    Image.new("RGB", (70_000, 2)).save(tmp_path / "wide.png")

    def fail():
        raise MemoryError

    at_the_third(monkeypatch, fail)
    words = ("--input", tmp_path / "wide.png", pictures, "--weights", weights, "--output", tmp_path / "out")
    assert call(*words, "--task", "panoptic") == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("2 pictures, ")
    assert "wide.png: a side has more than 65500 pixels, a JPEG's limit" in printed.err
    assert "2.png: too little memory for masks of 96 x 64 pixels" in printed.err
    assert len((tmp_path / "out" / "skipped.txt").read_text().splitlines()) == 3


def test_a_gallery_inside_of_its_pictures_is_made_anew_from_the_pictures(weights, tmp_path, caplog):
    write_pictures(tmp_path, count=1, size=(32, 32))
    words = ("--input", tmp_path, "--weights", weights, "--output", tmp_path / "out")
    assert call(*words) == 0
    assert call(*words, "--overwrite", "--task", "semantic") == 0
    assert "5 pictures left out, as results in" in caplog.text
    # nothing of the first run is left to be taken for the second one's
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert found == ["0.png", "out/index.html", "out/overlays/semantic/0.jpg", "out/semantic/0.png"]


def test_inputs_named_apart_count_together_and_the_page_is_bounded(weights, pictures, tmp_path):
    words = ("--input", pictures / "0.png", "--input", pictures / "1.png", "--weights", weights)
    assert call(*words, "--output", tmp_path / "out", "--page-limit", 1) == 0
    assert len(json.loads((tmp_path / "out" / "panoptic.json").read_text())["images"]) == 2
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<article ") == 1
    assert "This page shows the first 1; the files beside it hold all." in page


@pytest.mark.parametrize(("large", "most"), [(1 << 28, 2), (0, 0)])
def test_pictures_with_large_masks_do_not_wait_to_be_written(weights, pictures, tmp_path, monkeypatch, large, most):
    monkeypatch.setattr(run, "_LARGE", large)
    done, waiting = [], []
    segment, add = Segmenter.segment, ResultFiles.add

    def watch(self, image):
        waiting.append(len(waiting) - len(done))
        return segment(self, image)

    def add_late(self, *words):
        time.sleep(0.3)
        add(self, *words)
        done.append(1)

    monkeypatch.setattr(Segmenter, "segment", watch)
    monkeypatch.setattr(ResultFiles, "add", add_late)
    assert call("--input", pictures, "--weights", weights, "--output", tmp_path / "out") == 0
    assert max(waiting) == most


def test_names_do_nothing_to_a_terminal(weights, pictures, tmp_path, capsys):
    (tmp_path / "bad\x1b[31m\n.png").touch()
    output = os.fsdecode(os.fsencode(tmp_path / "out") + b"\xff")
    words = ("--input", tmp_path / "bad\x1b[31m\n.png", pictures / "0.png", "--weights", weights, "--output", output)
    assert call(*words) == 0
    printed = capsys.readouterr()
    assert f"skipped: cannot read picture {tmp_path}/bad?[31m .png" in printed.err
    assert f"{tmp_path}/out?/index.html" in printed.out
    assert len(Path(output, "skipped.txt").read_text().splitlines()) == 1


def test_ctrl_c_before_the_first_picture(weights, pictures, tmp_path, monkeypatch, capsys):
    def interrupt(self, image):
        raise KeyboardInterrupt

    monkeypatch.setattr(Segmenter, "segment", interrupt)
    assert call("--input", pictures, "--weights", weights, "--output", tmp_path / "out") == 130
    assert "interrupted before the first picture was done" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--weights", "WEIGHTS", "--output", "out"], "--input"),
        (["--input", "PICTURES", "--output", "out"], "--weights"),
        (["--input", "PICTURES", "--weights", "WEIGHTS"], "--output"),
        (["--input", "/nowhere", "--weights", "WEIGHTS", "--output", "out"], "input '/nowhere' does not exist"),
        (["--input", "webcam:93", "--weights", "WEIGHTS", "--output", "out"], "'webcam:93' cannot be opened"),
        (["--input", "PICTURES", "--weights", "none.pth", "--output", "out"], "got 'none.pth'"),
        (["--input", "PICTURES", "--weights", "WEIGHTS", "--output", "out", "--task", "all of it"], "invalid choice"),
        (["--input", "PICTURES", "--weights", "WEIGHTS", "--output", "out", "--limit", "-1"], "limit must not be neg"),
        (["--input", "PICTURES", "--weights", "WEIGHTS", "--output", "out", "--score-threshold", "7"], "must lie in"),
        (["--input", "PICTURES", "--weights", "WEIGHTS", "--output", "WEIGHTS"], "output must be a folder, got"),
        (["--input", "PICTURES", "--weights", "WEIGHTS", "--output", "GALLERY"], "already holds a gallery"),
        (["--input", "PICTURES", "--weights", "WEIGHTS", "--output", "out", "--page-limit", "0"], "must be at least 1"),
        (["--input", "GALLERY", "--weights", "WEIGHTS", "--output", "GALLERY", "--overwrite"], "got 15 results in"),
        (["--input", "PICTURES/bad.png", "--weights", "WEIGHTS", "--output", "out"], "of 1 picture none could be"),
        (["--input", "PICTURES", "--weights", "WEIGHTS", "--output", "out", "--", "MODEL.NO", "1"], "NO is unknown"),
    ],
)  # fmt: skip
def test_bad_input_ends_in_one_sentence(pictures, weights, gallery, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    for name, path in (("PICTURES", pictures), ("WEIGHTS", weights), ("GALLERY", gallery)):
        words = [word.replace(name, str(path)) for word in words]
    assert main(words) == (2 if message.startswith("--") or message == "invalid choice" else 1)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("demo: ")
    assert message in last
    assert not (tmp_path / "out" / "index.html").exists()


def test_the_module_runs_as_a_command(repository):
    words = [sys.executable, "-m", "s2uniseg_d2.demo", "--help"]
    done = subprocess.run(words, cwd=repository, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    assert "--score-threshold" in done.stdout
