from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from s2uniseg_d2.data.pictures import read_picture
from s2uniseg_d2.labeling.journal import Journal, locked
from s2uniseg_d2.labeling.maker import PseudoMaskMaker
from s2uniseg_d2.labeling.records import Selection
from s2uniseg_d2.labeling.run import RunOptions, label_pictures
from s2uniseg_d2.labeling.sources import find_pictures
from tests.labeling.words import WORDS
from tests.tiny import write_pictures


def run(maker, folder, output, **words):
    words = {"batch_size": 2, "embeddings": "float16", **words}
    return label_pictures(maker, find_pictures([folder]), RunOptions(output, **words))


def files(output):
    """Bytes of everything that a run leaves, by ending."""
    found = {path.name.removeprefix(output.stem): path for path in output.parent.iterdir() if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items()}


@pytest.fixture
def undisturbed(maker, pictures, tmp_path):
    (pictures / "bad.png").write_bytes(b"no picture")
    run(maker, pictures, tmp_path / "whole" / "labels.json")
    return files(tmp_path / "whole" / "labels.json")


def test_a_run_leaves_the_file_and_its_side_files(maker, pictures, undisturbed):
    assert sorted(undisturbed) == [".embeddings.npy", ".json", ".skipped.txt"]
    content = json.loads(undisturbed[".json"])
    assert content["info"]["root"] == str(pictures)
    assert [image["file_name"] for image in content["images"]] == [f"{i}.png" for i in range(5)]
    assert [image["id"] for image in content["images"]] == list(range(1, 6))
    assert [item["id"] for item in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
    assert content["info"]["labelled"] == 5
    assert content["info"]["annotations"] == len(content["annotations"])
    (skipped,) = content["info"]["skipped"]
    assert (skipped["id"], skipped["file_name"]) == (6, "bad.png")
    assert undisturbed[".skipped.txt"].decode() == f"bad.png\t{skipped['reason']}\n"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_row_i_is_the_embedding_of_annotation_i(maker, pictures, tmp_path, dtype):
    run(maker, pictures, tmp_path / "labels.json", embeddings=dtype)
    table = np.load(tmp_path / "labels.embeddings.npy")
    content = json.loads((tmp_path / "labels.json").read_text())
    assert table.dtype == np.dtype(dtype)
    start = 0
    for image in content["images"]:
        found = maker(read_picture(pictures / image["file_name"]))
        expected = np.concatenate([found.instance.embeddings, found.semantic.embeddings])
        rows = table[start : start + len(expected)]
        np.testing.assert_allclose(rows, expected, atol=1e-3)
        owners = {item["image_id"] for item in content["annotations"][start : start + len(expected)]}
        assert owners == {image["id"]}
        start += len(expected)
    assert start == len(table) == len(content["annotations"])


@pytest.mark.parametrize("batch", [0, 2])
def test_after_an_error_the_run_goes_on_to_the_same_bytes(maker, pictures, tmp_path, undisturbed, batch, monkeypatch):
    output = tmp_path / "again" / "labels.json"
    write = Journal.append

    def fail(self, number, *words):
        if number == batch:
            raise OSError("no space left")
        write(self, number, *words)

    monkeypatch.setattr(Journal, "append", fail)
    with pytest.raises(OSError, match="no space left"):
        run(maker, pictures, output)
    assert not output.exists()
    monkeypatch.undo()
    seen = []
    monkeypatch.setattr(PseudoMaskMaker, "label_grids", _counting(PseudoMaskMaker.label_grids, seen))
    outcome = run(maker, pictures, output)
    assert outcome.resumed == 2 * batch
    assert sum(seen) == 5 - 2 * batch
    assert files(output) == undisturbed


def _counting(call, seen):
    def counted(self, resized, sizes):
        seen.append(len(resized))
        return call(self, resized, sizes)

    return counted


KILLED = """
import os, signal, sys
from pathlib import Path
from s2uniseg_d2.labeling import journal
from s2uniseg_d2.labeling.maker import PseudoMaskMaker
from tests.labeling.test_run import run

write = journal._write

def die(file, data):
    if b'"4.png"' in data:
        file.write(data[:100])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    write(file, data)

journal._write = die
run(PseudoMaskMaker.from_pretrained("", overrides=sys.argv[3:]), sys.argv[1], Path(sys.argv[2]))
"""


def test_after_a_kill_in_the_middle_of_a_line_the_run_goes_on_to_the_same_bytes(
    maker, pictures, tmp_path, undisturbed, repository
):
    output = tmp_path / "again" / "labels.json"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, pictures, output, *WORDS],
        cwd=repository,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not output.exists()
    assert run(maker, pictures, output).resumed == 4
    assert files(output) == undisturbed


def test_after_a_kill_between_the_output_and_the_end_the_output_is_the_same(
    maker, pictures, tmp_path, undisturbed, monkeypatch
):
    output = tmp_path / "again" / "labels.json"
    monkeypatch.setattr(Journal, "remove", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(maker, pictures, output)
    monkeypatch.undo()
    assert run(maker, pictures, output).resumed == 6
    assert files(output) == undisturbed


def _interrupt(*_):
    raise KeyboardInterrupt


def test_a_finished_run_is_not_done_again(maker, pictures, tmp_path, monkeypatch):
    output = tmp_path / "labels.json"
    first = run(maker, pictures, output)
    monkeypatch.setattr(PseudoMaskMaker, "label_grids", _interrupt)
    again = run(maker, pictures, output)
    assert again == first._replace(resumed=5)
    with pytest.raises(KeyboardInterrupt):
        run(maker, pictures, output, overwrite=True)


OTHER_SETTINGS = [
    ({"selection": Selection(min_score=0.5)}, "min_score 0.0, now 0.5"),
    ({"selection": Selection(kinds=("instance",))}, "kinds"),
    ({"batch_size": 3}, "batch_size 2, now 3"),
    ({"embeddings": ""}, 'embeddings "float16", now ""'),
    ({"shard": (1, 2)}, 'shard "1/1", now "1/2"'),
]


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused(maker, pictures, tmp_path, finished, monkeypatch):
    output = tmp_path / "labels.json"
    if finished:
        run(maker, pictures, output)
    else:
        monkeypatch.setattr(PseudoMaskMaker, "label_grids", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(maker, pictures, output)
    for words, message in OTHER_SETTINGS:
        with pytest.raises(ValueError, match=f"begun with other settings .*{message}"):
            run(maker, pictures, output, **words)


def test_more_pictures_or_other_weights_are_other_settings(maker, pictures, tmp_path):
    run(maker, pictures, tmp_path / "labels.json")
    other = PseudoMaskMaker.from_pretrained("", overrides=[*WORDS, "SEED", "1"])
    with pytest.raises(ValueError, match="encoder"):
        run(other, pictures, tmp_path / "labels.json")
    (pictures / "5.png").write_bytes(b"")
    with pytest.raises(ValueError, match="pictures 5, now 6"):
        run(maker, pictures, tmp_path / "labels.json")


def test_two_runs_cannot_write_one_output(maker, pictures, tmp_path):
    output = tmp_path / "labels.json"
    with locked(output), pytest.raises(ValueError, match="being written by another process"):
        run(maker, pictures, output)


def test_an_output_of_another_kind_is_not_replaced(maker, pictures, tmp_path):
    output = tmp_path / "labels.json"
    output.write_text('{"images": []}')
    with pytest.raises(ValueError, match="is no file that pseudo_masks wrote"):
        run(maker, pictures, output)
    assert output.read_text() == '{"images": []}'


def test_pictures_of_every_kind_are_read_upright_and_bad_ones_are_skipped(maker, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 4), dtype=np.uint8)
    Image.fromarray(noise[..., 0]).save(folder / "grey.png")
    Image.fromarray(noise).save(folder / "rgba.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise[..., :3].copy()).save(folder / "turned.jpg", exif=exif)
    whole = (folder / "grey.png").read_bytes()
    (folder / "torn.png").write_bytes(whole[: len(whole) // 2])
    (folder / "zero.png").touch()
    outcome = run(maker, folder, tmp_path / "labels.json")
    content = json.loads((tmp_path / "labels.json").read_text())
    sizes = {image["file_name"]: (image["height"], image["width"]) for image in content["images"]}
    assert sizes == {"grey.png": (40, 60), "rgba.png": (40, 60), "turned.jpg": (60, 40)}
    assert [item["file_name"] for item in outcome.skipped] == ["torn.png", "zero.png"]
    assert outcome.tally[:2] == (3, 2)


def test_an_upscaling_that_looks_at_the_picture_gets_it(maker, pictures, tmp_path):
    own = PseudoMaskMaker(maker.encoder, maker.labeler, image_size=64, upscale="edges")
    run(own, pictures / "0.png", tmp_path / "labels.json")
    found = own(read_picture(pictures / "0.png"))
    areas = [item["area"] for item in json.loads((tmp_path / "labels.json").read_text())["annotations"]]
    assert areas == [*found.instance.areas, *found.semantic.areas]


def test_names_that_are_no_text_survive(maker, tmp_path):
    folder = write_pictures(tmp_path / "pictures", count=1, size=(48, 64))
    names = [os.fsdecode(name) for name in (b"a \xff.png", b"b \xff.png")]
    (folder / "0.png").rename(folder / names[0])
    (folder / names[1]).touch()
    outcome = run(maker, folder, tmp_path / "labels.json")
    content = json.loads((tmp_path / "labels.json").read_text())
    assert content["images"][0]["file_name"] == names[0]
    assert outcome.skipped[0]["file_name"] == names[1]
    assert (tmp_path / "labels.skipped.txt").read_bytes().startswith(b"b \xff.png\t")
    assert run(maker, folder, tmp_path / "labels.json").resumed == 2


def test_no_sound_picture_is_an_error_and_leaves_nothing(maker, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "zero.png").touch()
    with pytest.raises(ValueError, match="of 1 picture none could be read; the first: cannot read picture"):
        run(maker, folder, tmp_path / "labels.json")
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_the_first_pictures_are_drawn(maker, pictures, tmp_path):
    run(maker, pictures, tmp_path / "labels.json", preview=3)
    drawn = sorted((tmp_path / "labels.preview").iterdir())
    assert [path.name for path in drawn] == ["000001.png", "000002.png", "000003.png"]
    assert read_picture(drawn[0]).std() > 10


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"readers": 0}, "readers must be at least 1, got 0"),
        ({"preview": -1}, "preview must not be negative, got -1"),
        ({"embeddings": "float8"}, "embeddings must be one of float16, float32, got 'float8'"),
        ({"shard": (0, 2)}, "shard must be I/N with 1 <= I <= N, got 0/2"),
        ({"shard": (3, 2)}, "shard must be I/N with 1 <= I <= N, got 3/2"),
        ({"shard": (1, 6)}, "5 pictures in batches of 2 can keep 3 machines busy, got 1/6"),
    ],
)
def test_bad_options_are_refused(maker, pictures, tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        run(maker, pictures, tmp_path / "labels.json", **words)
    with pytest.raises(ValueError, match=r"ends in \.json"):
        run(maker, pictures, tmp_path / "labels.txt")
