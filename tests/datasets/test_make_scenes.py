from __future__ import annotations

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools import mask as mask_util

from s2uniseg_d2.data import resolve_dataset

ARGUMENTS = ["--train", "6", "--val", "3", "--size", "128", "--seed", "4"]
NUM_THINGS, NUM_STUFF = 6, 5


@pytest.fixture(scope="module")
def tool(repository):
    import importlib.util

    spec = importlib.util.spec_from_file_location("make_scenes", repository / "datasets" / "make_scenes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def scenes(tool, tmp_path_factory):
    output = tmp_path_factory.mktemp("made") / "scenes"
    assert tool.main(["--output", str(output), *ARGUMENTS]) == 0
    return output


@pytest.fixture
def train(scenes):
    name = resolve_dataset(f"scenes:{scenes}/train")
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def pixels(path):
    return np.array(Image.open(path))


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
def test_the_three_truths_agree_in_every_pixel(train, scenes):
    records = DatasetCatalog.get(train)
    assert len(records) == 6
    truth = json.loads((scenes / "train" / "panoptic.json").read_text())
    for record, annotation in zip(records, truth["annotations"], strict=True):
        semantic, coded = pixels(record["sem_seg_file_name"]), pixels(record["pan_seg_file_name"]).astype(int)
        segments = coded[..., 0] + 256 * coded[..., 1] + 65536 * coded[..., 2]
        assert pixels(record["file_name"]).shape == (128, 128, 3)
        assert semantic.shape == segments.shape == (128, 128)
        assert set(np.unique(segments)) == {info["id"] for info in record["segments_info"]}
        things = np.zeros_like(semantic, dtype=int)
        for info, raw in zip(record["segments_info"], annotation["segments_info"], strict=True):
            mask = segments == info["id"]
            assert mask.sum() == info["area"]
            rows, columns = np.nonzero(mask)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert info["bbox"] == box
            assert (semantic[mask] == info["category_id"]).all()
            assert raw["category_id"] == info["category_id"] + 1
            assert info["isthing"] == (info["category_id"] < NUM_THINGS)
        instances = [mask_util.decode(a["segmentation"]).astype(bool) for a in record["annotations"]]
        assert [a["category_id"] for a in record["annotations"]] == [
            info["category_id"] for info in record["segments_info"] if info["isthing"]
        ]
        for mask, a in zip(instances, record["annotations"], strict=True):
            things += mask
            assert (semantic[mask] == a["category_id"]).all()
            assert len(np.unique(segments[mask])) == 1
            assert mask.sum() >= 80 / 4  # a quarter of the pixels of 256 x 256
        np.testing.assert_array_equal(things, semantic < NUM_THINGS)


def test_scenes_hold_what_they_promise(tool):
    names, seen, occluded, same_class = list(tool.STUFF), set(), 0, 0
    for number in range(40):
        scene = tool.make_scene(64, NUM_THINGS, np.random.default_rng(number))
        visible = np.unique(scene.owner[scene.owner >= 0])
        assert len(visible) == len(scene.kinds) <= 7  # things of which too little is visible are left out
        assert 1 <= len(np.unique(scene.stuff)) <= 4
        assert scene.image.std() > 10
        seen |= set(np.unique(scene.stuff).tolist())
        same_class += len(set(scene.kinds)) < len(scene.kinds)
        occluded += len(scene.kinds) >= 3
    assert seen == set(range(len(names)))
    assert same_class > 15
    assert occluded > 15


def test_a_hidden_thing_is_left_out_and_what_it_hid_comes_back(tool):
    surface = np.zeros((8, 8, 3), np.float32)
    whole, dot = np.ones((8, 8), bool), np.zeros((8, 8), bool)
    dot[0, 0] = True
    painted = [((0, 0), whole, surface), ((0, 0), whole, surface), ((2, 2), dot, surface)]
    kept = tool._visible_enough(64, painted)
    assert kept == [1]
    assert (tool._stack(64, [painted[k] for k in kept]) >= 0).sum() == 64


def test_metadata_serve_all_three_evaluators(train, scenes):
    metadata = MetadataCatalog.get(train)
    assert metadata.evaluator_type == "coco_panoptic_seg"
    assert metadata.thing_classes == ["disc", "box", "triangle", "star", "ring", "blob"]
    assert metadata.stuff_classes == [*metadata.thing_classes, "sky", "rock", "water", "grass", "sand"]
    assert metadata.thing_dataset_id_to_contiguous_id == {number + 1: number for number in range(NUM_THINGS)}
    assert metadata.stuff_dataset_id_to_contiguous_id == {n + 1: n for n in range(NUM_THINGS + NUM_STUFF)}
    assert metadata.ignore_label == 255
    assert metadata.json_file == str(scenes / "train" / "instances.json")
    assert metadata.panoptic_root == str(scenes / "train" / "panoptic")


def test_the_same_arguments_give_the_same_files_and_splits_differ(tool, scenes, tmp_path):
    assert tool.main(["--output", str(tmp_path / "again"), *ARGUMENTS]) == 0
    assert contents(tmp_path / "again") == contents(scenes)
    assert tool.main(["--output", str(tmp_path / "fewer"), *ARGUMENTS, "--train", "2"]) == 0
    for number in (1, 2):  # a scene does not depend on how many there are
        name = f"images/{number:06d}.jpg"
        assert (tmp_path / "fewer/train" / name).read_bytes() == (scenes / "train" / name).read_bytes()
        assert (scenes / "val" / name).read_bytes() != (scenes / "train" / name).read_bytes()


def test_fewer_classes(tool, tmp_path):
    assert tool.main(["--output", str(tmp_path / "s"), *ARGUMENTS, "--classes", "1"]) == 0
    truth = json.loads((tmp_path / "s/val/instances.json").read_text())
    assert [category["name"] for category in truth["categories"]] == ["disc"]
    assert pixels(tmp_path / "s/val/semantic/000001.png").max() <= NUM_STUFF


def test_what_is_there_is_kept_unless_told_otherwise(tool, tmp_path, capsys):
    output = tmp_path / "deep" / "scenes"
    small = ["--output", str(output), "--train", "1", "--val", "1", "--size", "32"]
    assert tool.main(small) == 0
    before = contents(output)
    assert tool.main(small) == 0
    assert "already there" in capsys.readouterr().out
    assert tool.main([*small, "--seed", "1"]) == 1
    assert "made with other arguments: add --overwrite" in capsys.readouterr().err
    assert contents(output) == before
    assert tool.main([*small, "--seed", "1", "--overwrite"]) == 0
    assert contents(output) != before
    assert [path.name for path in output.parent.iterdir()] == ["scenes"]


def test_foreign_folders_are_never_replaced(tool, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep me")
    assert tool.main(["--output", str(tmp_path / "mine"), *ARGUMENTS, "--overwrite"]) == 1
    assert "was not written by this tool" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "keep me"
    assert tool.main(["--output", str(tmp_path / "mine" / "thesis.txt"), *ARGUMENTS]) == 1
    assert "--output must be a folder" in capsys.readouterr().err


def test_an_interrupted_run_leaves_nothing(tool, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tool.SplitWriter, "finish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tool.main(["--output", str(tmp_path / "s"), "--train", "1", "--val", "1", "--size", "32"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--train", "0"], "--train must be at least 1, got 0"),
        (["--classes", "7"], "--classes must be at most 6, got 7"),
    ],
)
def test_arguments_out_of_range(tool, tmp_path, capsys, arguments, match):
    with pytest.raises(SystemExit):
        tool.main(["--output", str(tmp_path / "s"), *arguments])
    assert match in capsys.readouterr().err


def test_scene_folders_that_are_not_whole(tool, tmp_path):
    with pytest.raises(ValueError, match=r"scene folder .*/no does not exist; datasets/make_scenes\.py makes one"):
        resolve_dataset(f"scenes:{tmp_path}/no")
    assert tool.main(["--output", str(tmp_path / "s"), "--train", "2", "--val", "1", "--size", "32"]) == 0
    with pytest.raises(ValueError, match=r"lacks instances\.json and panoptic\.json; name the folder of one split"):
        resolve_dataset(f"scenes:{tmp_path}/s")
    train = tmp_path / "s" / "train"
    (train / "semantic" / "000002.png").rename(tmp_path / "aside.png")
    with pytest.raises(ValueError, match=r"names 2 semantic pictures, of which 1 are missing in .*: 000002\.png"):
        resolve_dataset(f"scenes:{train}")
    (tmp_path / "aside.png").rename(train / "semantic" / "000002.png")
    truth = json.loads((train / "panoptic.json").read_text())
    truth["annotations"].pop()
    (train / "panoptic.json").write_text(json.dumps(truth))
    with pytest.raises(ValueError, match="must describe the same pictures, got 1 and 2, of which 1 are in both"):
        resolve_dataset(f"scenes:{train}")
