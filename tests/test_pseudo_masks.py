"""The command that labels pictures, as a user calls it."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from pycocotools import mask as mask_coding
from pycocotools.coco import COCO

from s2uniseg_d2.core.labelers import uniap
from s2uniseg_d2.data import resolve_dataset
from s2uniseg_d2.data.pictures import read_picture
from s2uniseg_d2.labeling.maker import PseudoMaskMaker
from s2uniseg_d2.pseudo_masks import main
from tests.labeling.words import WORDS
from tests.tiny import write_pictures

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Equal names in two folders, and one bad picture."""
    folder = tmp_path_factory.mktemp("command") / "pictures"
    write_pictures(folder / "a", count=2, size=(48, 64))
    write_pictures(folder / "b", count=3, size=(64, 40))
    (folder / "bad.png").touch()
    return folder


def call(*words, config=WORDS):
    return main([*map(str, words), "--", *config])


@pytest.fixture(scope="module")
def labels(pictures):
    output = pictures.parent / "labels.json"
    assert call("--input", pictures, "--output", output, "--embeddings", "--preview", 1, "--batch-size", 2) == 0
    return output


def test_pycocotools_reads_the_masks_of_the_python_call(labels, pictures):
    coco = COCO(str(labels))
    maker = PseudoMaskMaker.from_pretrained(overrides=WORDS)
    names = [image["file_name"] for image in coco.loadImgs(coco.getImgIds())]
    assert names == ["a/0.png", "a/1.png", "b/0.png", "b/1.png", "b/2.png"]
    for image in coco.loadImgs(coco.getImgIds()):
        found = maker(read_picture(pictures / image["file_name"]))
        for category, kind in enumerate(found, start=1):
            items = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]], catIds=[category]))
            masks = np.array([coco.annToMask(item) for item in items], dtype=bool).reshape(kind.masks.shape)
            assert (masks == kind.masks).all()
            assert {item["kind"] for item in items} <= {("instance", "semantic")[category - 1]}


def test_detectron2_maps_the_file_to_training_items(labels, pictures):
    name = f"coco:{labels}:{pictures}"
    resolve_dataset(name)
    try:
        assert MetadataCatalog.get(name).thing_classes == ["object", "semantic region"]
        mapper = DatasetMapper(
            is_train=True, augmentations=[], image_format="RGB", use_instance_mask=True, instance_mask_format="bitmask"
        )
        records = DatasetCatalog.get(name)
        assert len(records) == 5
        item = mapper(records[0])
        expected = [mask_coding.decode(each["segmentation"]) for each in records[0]["annotations"]]
        assert (item["instances"].gt_masks.tensor.numpy() == np.array(expected, dtype=bool)).all()
        assert set(item["instances"].gt_classes.tolist()) == {0, 1}
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_the_end_says_what_was_done_and_what_was_not(labels, pictures, capsys):
    words = ("--input", pictures, "--output", labels, "--embeddings", "--batch-size", 2)
    assert call(*words) == 0
    printed = capsys.readouterr()
    assert "masks of 5 pictures; 1 picture skipped, 6 of them by an earlier run" in printed.out
    assert "bad.png: the file is empty" in printed.err
    assert (labels.parent / "labels.skipped.txt").read_text().startswith("bad.png\t")
    assert len(list((labels.parent / "labels.preview").iterdir())) == 1


def test_shards_merge_to_the_whole(labels, pictures, tmp_path, capsys):
    parts = [tmp_path / f"{part}.json" for part in (1, 2)]
    for number, part in enumerate(parts, start=1):
        words = ("--output", part, "--shard", f"{number}/2", "--embeddings", "--batch-size", 2)
        assert call("--input", pictures, *words) == 0
    assert main(["--merge", *map(str, parts), "--output", str(tmp_path / "labels.json")]) == 0
    assert "masks of 5 pictures" in capsys.readouterr().out
    assert (tmp_path / "labels.json").read_bytes() == labels.read_bytes()
    table = "labels.embeddings.npy"
    assert (tmp_path / table).read_bytes() == (labels.parent / table).read_bytes()


def test_options_reach_the_result(pictures, tmp_path):
    words = ("--kinds", "instance", "--max-masks", 2, "--taus", "0.6,0.4", "--upscale", "bilinear", "--image-size", 96)
    assert call("--input", pictures / "a" / "0.png", "--output", tmp_path / "labels.json", *words) == 0
    content = json.loads((tmp_path / "labels.json").read_text())
    assert content["info"]["root"] == str(pictures / "a")
    assert [category["name"] for category in content["categories"]] == ["object"]
    assert 0 < len(content["annotations"]) <= 2
    settings = content["info"]["settings"]
    assert (settings["upscale"], settings["image_size"]) == ("bilinear", 96)
    assert "taus=(0.6, 0.4)" in settings["labeler"]


def test_thresholds_have_names(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(uniap, "TAU_PRESETS", {"coarse": (0.5, 0.3)}, raising=False)
    words = ("--input", pictures / "a" / "0.png", "--output", tmp_path / "labels.json", "--taus", "coarse")
    assert call(*words) == 0
    assert "taus=(0.5, 0.3)" in json.loads((tmp_path / "labels.json").read_text())["info"]["settings"]["labeler"]


def test_a_shard_of_bad_pictures_is_an_error_but_leaves_its_file(pictures, tmp_path, capsys):
    (tmp_path / "zero.png").touch()
    words = ("--input", tmp_path / "zero.png", pictures / "a", "--batch-size", 1, "--shard", "1/3")
    assert call(*words, "--output", tmp_path / "1.json") == 1
    assert "no picture of this shard could be read" in capsys.readouterr().err
    assert json.loads((tmp_path / "1.json").read_text())["images"] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "x.json"], "--input must name the pictures"),
        (["--input", "PICTURES"], "--output"),
        (["--input", "PICTURES", "--output", "x.txt"], "output must be a file that ends in .json"),
        (["--input", "/nowhere", "--output", "x.json"], "input '/nowhere' does not exist"),
        (["--input", "/nowhere/*.jpg", "--output", "x.json"], "matches no picture"),
        (["--input", "PICTURES/bad.png", "--output", "x.json"], "of 1 picture none could be read"),
        (["--input", "PICTURES", "--output", "x.json", "--device", "abacus"], "device must be one that is there"),
        (["--input", "PICTURES", "--output", "x.json", "--weights", "vit_enormous"], "weights must be"),
        (["--input", "PICTURES", "--output", "x.json", "--upscale", "cubic"], "upscale must be one of"),
        (["--input", "PICTURES", "--output", "x.json", "--kinds", "thing"], "invalid choice: 'thing'"),
        (["--input", "PICTURES", "--output", "x.json", "--taus", "0.5,0.6"], "taus must decrease strictly"),
        (["--input", "PICTURES", "--output", "x.json", "--taus", "finest"], "--taus must be"),
        (["--input", "PICTURES", "--output", "x.json", "--taus", "0.5,nan"], "--taus must be"),
        (["--input", "PICTURES", "--output", "x.json", "--shard", "2"], "--shard must be I/N"),
        (["--input", "PICTURES", "--output", "x.json", "--shard", "a/b"], "--shard must be I/N"),
        (["--input", "PICTURES", "--output", "x.json", "--shard", "3/2"], "shard must be I/N with 1 <= I <= N"),
        (["--input", "PICTURES", "--output", "x.json", "--shard", "1/9"], "can keep 1 machine busy, got 1/9"),
        (["--input", "PICTURES", "--output", "x.json", "--batch-size", "0"], "batch_size must be at least 1"),
        (["--input", "PICTURES", "--output", "x.json", "--min-score", "2"], "min_score must lie in [0, 1]"),
        (["--input", "PICTURES", "--output", "x.json", "--config-file", "no.yaml"], "config file does not exist"),
        (["--input", "PICTURES", "--merge", "a.json", "--output", "x.json"], "--merge and --input exclude"),
        (["--merge", "a.json", "--output", "x.json"], "a.json cannot be read"),
    ],
)  # fmt: skip
def test_bad_input_ends_in_one_sentence(pictures, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    status = 2 if message.startswith(("--", "invalid choice")) else 1  # wrong words, or what they name
    assert call(*[word.replace("PICTURES", str(pictures)) for word in words]) == status
    lines = [line for line in capsys.readouterr().err.splitlines() if "pictures/s" not in line]
    assert lines[-1].startswith("pseudo_masks: ")
    assert message in lines[-1]
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_config_key_is_named(pictures, tmp_path, capsys):
    words = ["--input", pictures, "--output", tmp_path / "x.json"]
    assert call(*words, config=["MODEL.NOTHING", "1"]) == 1
    assert "MODEL.NOTHING is unknown" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(pictures, tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(PseudoMaskMaker, "label_grids", interrupt)
    assert call("--input", pictures, "--output", tmp_path / "labels.json") == 130
    assert "goes on after its last full batch when called the same way" in capsys.readouterr().err


def test_the_module_runs_as_a_command(repository, tmp_path):
    words = [sys.executable, "-m", "s2uniseg_d2.pseudo_masks", "--input", tmp_path]
    done = subprocess.run(words, cwd=repository, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr == "pseudo_masks: --output must name the COCO file to write\n"
