"""`train_net.py --eval-only` with every protocol's config, on generated scenes and random tiny weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import BitMasks, Instances
from PIL import Image
from pycocotools import mask as mask_coding

from s2uniseg_d2.data import resolve_dataset
from s2uniseg_d2.data.center_crop import CenterCrop
from s2uniseg_d2.engine.prediction import Predictor
from s2uniseg_d2.evaluation.published import PROTOCOLS
from tests.engine.evaluating import FOREIGN_WARNINGS, SIZE, evaluate, make_scenes, read, save_run

pytestmark = FOREIGN_WARNINGS

# protocol -> (overrides that fit the scenes, keys among the results, files of predictions)
CASES = {
    "coco_agnostic": ({}, ("segm_agnostic/AP@1000", "segm_agnostic/AR@1000", "bbox_agnostic/AP50"), ["agnostic/coco"]),
    "coco_instance": (
        {"TEST__MATCH_SCORE": 0.0, "TEST__MATCH_IOU": 0.05},
        ("segm_mapped/AP_hungarian", "segm_mapped/AR@100_majority", "segm_mapped/AP_majority-disc"),
        ["instance/coco", "instance/class_mapping_instance.json"],
    ),
    "cocostuff27": (
        {"TEST__SHORT_SIDE_PX": 48, "TEST__CENTER_CROP_PX": 32},
        ("sem_seg_mapped/PixelAcc_hungarian", "sem_seg_mapped/mIoU_majority", "sem_seg_mapped/IoU_majority-sky"),
        ["semantic/semantic_majority", "semantic/class_mapping_semantic.json"],
    ),
    "coco_panoptic": (
        {"MODEL__INFERENCE__OBJECT_THRESHOLD": 0.0, "MODEL__INFERENCE__OVERLAP_THRESHOLD": 0.0},
        ("panoptic_mapped/PQ_hungarian", "panoptic_mapped/SQ_th_majority", "panoptic_mapped/RQ_st_hungarian"),
        ["panoptic/panoptic_hungarian.json", "panoptic/panoptic_majority"],
    ),
    "cityscapes": ({}, ("panoptic_mapped/PQ_hungarian_then_majority", "panoptic_mapped/PQ_majority"), ["panoptic/"]),
    "pseudo_masks": (
        {"TEST__SHORT_SIDE_PX": 48, "TEST__CENTER_CROP_PX": 32},
        ("segm_agnostic/AP", "sem_seg_mapped/mIoU_hungarian"),
        ["agnostic/coco", "semantic/class_mapping"],
    ),
    "uvo": ({}, ("segm_agnostic/AR@100", "segm_mapped/AP_majority"), ["agnostic/coco", "instance/coco"]),
}


@pytest.fixture(scope="module")
def scenes(repository, tmp_path_factory):
    return make_scenes(repository, tmp_path_factory.mktemp("made"), 3)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture(autouse=True)
def quick_set_up(monkeypatch, request):
    """The set-up writes the environment and the config into the log, which takes most of a tiny run."""

    def make_folder(cfg, args):
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)

    if request.node.name != "test_the_model_is_the_one_that_was_trained":
        monkeypatch.setattr("s2uniseg_d2.engine.run._begin", make_folder)


def test_every_protocol_has_a_config_and_a_case(repository):
    configs = {path.stem.removeprefix("eval_") for path in (repository / "configs").glob("eval_*.yaml")}
    assert configs == set(PROTOCOLS) == set(CASES)


@pytest.mark.parametrize("protocol", CASES)
def test_a_protocol_gives_figures_files_and_a_record(repository, weights, scenes, tmp_path, protocol):
    overrides, keys, files = CASES[protocol]
    config = repository / "configs" / f"eval_{protocol}.yaml"
    assert evaluate(config, weights, scenes, tmp_path / "out", TEST__CASES=1, **overrides) == 0
    record = read(tmp_path / "out")
    [(name, results)] = record["results"].items()
    assert name == f"scenes:{scenes}"
    for key in keys:
        group, metric = key.split("/")
        assert metric in results[group]

    assert record["protocol"] == protocol
    assert record["constants"]["INPUT.TEST_LONGEST_PX"] == SIZE
    assert record["constants"]["TEST.STRATEGIES"]
    assert record["weights"]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert record["pictures"][name] == {"listed": 3, "predicted": 3, "skipped": 0, "kept_from_a_stopped_run": 0}
    assert record["seconds_per_picture"][name] > 0
    assert {"torch", "detectron2", "numpy", "pycocotools", "s2uniseg_d2"} <= record["versions"].keys()
    assert {row["protocol"] for row in record["published"]} == {protocol}

    written = [str(path) for path in (tmp_path / "out" / "inference").rglob("*") if path.is_file()]
    for part in files:
        assert any(part in path for path in written), part
    tables = (tmp_path / "out" / "tables.md").read_text()
    assert "S2-UniSeg paper, Table" in tables
    assert "not the protocol's data" in tables
    assert "ours, this run" in tables
    tasks = {path.name.rpartition("_")[0] for path in (tmp_path / "out" / "cases").rglob("*.png")}
    assert tasks == set(record["constants"]["TEST.TASKS"]) - {task for task, of in scores(tmp_path).items() if not of}
    assert not (tmp_path / "out" / "parts").exists()
    line = json.loads((tmp_path / "out" / "metrics.json").read_text().splitlines()[-1])
    assert line["about"]["weights"] == record["weights"]
    assert line.keys() - {"about"} == results.keys()


def scores(folder):
    [of] = read(folder / "out", "per_picture.json").values()
    return of


def test_the_model_is_the_one_that_was_trained(repository, weights, scenes, tmp_path):
    config = repository / "configs" / "eval_coco_agnostic.yaml"
    assert evaluate(config, weights, scenes, tmp_path / "out") == 0
    # the protocol's own config names a ViT-B/8; the run's is another
    used = (tmp_path / "out" / "config.yaml").read_text()
    assert "EMBED_DIM: 48" in used
    assert "INS_QUERIES: 6" in used
    log = (tmp_path / "out" / "log.txt").read_text()
    assert f"The model is that of {weights.parent / 'config.yaml'}" in log
    assert f"INPUT.TEST_LONGEST_PX is {SIZE}; that run tested at 96" in log


def test_an_override_wins_over_the_trained_model(repository, weights, scenes, tmp_path, capsys):
    config = repository / "configs" / "eval_coco_agnostic.yaml"
    assert evaluate(config, weights, scenes, tmp_path / "out", MODEL__VIT__EMBED_DIM=96) == 1
    assert "does not fit this model" in capsys.readouterr().err


def test_an_evaluation_beside_the_weights_leaves_their_description_alone(repository, scenes, tmp_path):
    weights = save_run(tmp_path / "run")
    before = (tmp_path / "run" / "config.yaml").read_text()
    assert evaluate(repository / "configs" / "eval_coco_agnostic.yaml", weights, scenes, tmp_path / "run") == 0
    assert (tmp_path / "run" / "config.yaml").read_text() == before
    assert read(tmp_path / "run" / "eval")["protocol"] == "coco_agnostic"


def test_mappings_can_be_fitted_on_another_split(repository, weights, scenes, tmp_path):
    config = repository / "configs" / "eval_cocostuff27.yaml"
    crop = {"TEST__SHORT_SIDE_PX": 48, "TEST__CENTER_CROP_PX": 32, "TEST__FLIP": False}
    other = make_scenes(repository, tmp_path / "made", 4)
    assert evaluate(config, weights, scenes, tmp_path / "a", TEST__MAPPING_SPLIT=f"scenes:{other}", **crop) == 0
    assert evaluate(config, weights, other, tmp_path / "b", **crop) == 0
    [results] = read(tmp_path / "a")["results"].values()
    assert f"votes_hungarian-scenes:{other}" in results["sem_seg_mapped"]
    [used] = (tmp_path / "a").rglob("inference/*[!g]/semantic/class_mapping_semantic.json")
    [fitted] = (tmp_path / "b").rglob("class_mapping_semantic.json")
    assert json.loads(used.read_text()) == json.loads(fitted.read_text())


def test_truth_that_a_protocol_needs_is_asked_for_by_name(repository, weights, scenes, tmp_path, capsys):
    config = repository / "configs" / "eval_cocostuff27.yaml"
    data = f"coco:{scenes}/instances.json:{scenes}/images"
    assert evaluate(config, weights, scenes, tmp_path / "out", DATASETS__TEST=f"('{data}',)") == 1
    error = capsys.readouterr().err
    assert "has no truth for TEST.TASKS ('semantic',)" in error
    assert "stuff_classes and a sem_seg_file_name in every record" in error


def test_an_unknown_protocol_is_named_before_work(repository, weights, scenes, tmp_path, capsys):
    config = repository / "configs" / "eval_coco_agnostic.yaml"
    assert evaluate(config, weights, scenes, tmp_path / "out", EVALUATION__PROTOCOL="coco") == 1
    assert "EVALUATION.PROTOCOL must be empty or one of" in capsys.readouterr().err
    assert not (tmp_path / "out" / "parts").exists()


def test_a_benchmark_that_is_not_on_disk_names_its_command(repository, weights, scenes, tmp_path, capsys):
    config = repository / "configs" / "eval_cocostuff27.yaml"
    assert evaluate(config, weights, scenes, tmp_path / "out", DATASETS__TEST="('cocostuff27_val',)") == 1
    assert "prepare_cocostuff27.py" in capsys.readouterr().err


def test_pictures_missing_on_disk_are_named_and_counted_before_work(repository, weights, tmp_path, capsys):
    scenes = make_scenes(repository, tmp_path / "made", 3)
    files = sorted((scenes / "semantic").iterdir())[:2]
    config = repository / "configs" / "eval_cocostuff27.yaml"
    assert evaluate(config, weights, scenes, tmp_path / "whole", TEST__SHORT_SIDE_PX=48, TEST__CENTER_CROP_PX=32) == 0
    for file in files:
        file.unlink()
    assert evaluate(config, weights, scenes, tmp_path / "out", TEST__SHORT_SIDE_PX=48, TEST__CENTER_CROP_PX=32) == 1
    error = capsys.readouterr().err
    assert "2 of 3 label maps" in error or "2 are missing" in error
    assert str(files[0].name) in error
    assert not (tmp_path / "out" / "parts").exists()


def true_outputs(name, crop):
    """What a model that knows the truth of the scenes would say, under its own numbering of classes."""
    outputs = {}
    for record in DatasetCatalog.get(name):
        labels = np.asarray(Image.open(record["sem_seg_file_name"])).astype(np.int64)
        colours = np.asarray(Image.open(record["pan_seg_file_name"])).astype(np.int64)
        segments = [
            {"id": s["id"], "isthing": bool(s["isthing"]), "category_id": (s["category_id"] + 5) % 16, "score": 1.0}
            for s in record["segments_info"]
        ]
        instances = Instances(labels.shape)
        masks = [mask_coding.decode(entry["segmentation"]) for entry in record["annotations"]]
        instances.pred_masks = torch.from_numpy(np.array(masks, dtype=bool))
        instances.pred_boxes = BitMasks(instances.pred_masks).get_bounding_boxes()
        instances.scores = torch.ones(len(masks))
        instances.pred_classes = torch.tensor([(entry["category_id"] + 9) % 16 for entry in record["annotations"]])
        outputs[record["file_name"]] = {
            "instances": instances,
            "sem_seg_labels": torch.from_numpy((crop(labels) if crop else labels) + 3),
            "panoptic_seg": (torch.from_numpy((colours @ [1, 256, 65536]).astype(np.int32)), segments),
        }
    return outputs


@pytest.mark.parametrize(
    ("protocol", "perfect"),
    [
        ("coco_agnostic", {"segm_agnostic/AP", "segm_agnostic/AR@1000", "bbox_agnostic/AP@1000"}),
        ("coco_instance", {"segm_mapped/AP_hungarian", "bbox_mapped/AR@100_majority"}),
        ("cocostuff27", {"sem_seg_mapped/PixelAcc_hungarian", "sem_seg_mapped/mIoU_majority"}),
        ("coco_panoptic", {"panoptic_mapped/PQ_hungarian", "panoptic_mapped/SQ_th_majority"}),
        ("cityscapes", {"panoptic_mapped/PQ_hungarian_then_majority", "panoptic_mapped/RQ_st_hungarian"}),
    ],
)
def test_the_truth_itself_is_perfect(repository, weights, scenes, tmp_path, monkeypatch, protocol, perfect):
    config = repository / "configs" / f"eval_{protocol}.yaml"
    crop = CenterCrop(48, 32) if protocol == "cocostuff27" else None
    outputs = true_outputs(resolve_dataset(f"scenes:{scenes}"), crop)
    monkeypatch.setattr(Predictor, "__call__", lambda _, batch: [outputs[item["file_name"]] for item in batch])
    overrides = {"TEST__SHORT_SIDE_PX": 48, "TEST__CENTER_CROP_PX": 32} if crop else {}
    assert evaluate(config, weights, scenes, tmp_path / "out", **overrides) == 0
    [results] = read(tmp_path / "out")["results"].values()
    for key in perfect:
        group, metric = key.split("/")
        assert results[group][metric] == pytest.approx(100.0), key
    [of] = read(tmp_path / "out", "per_picture.json").values()
    assert all(score == pytest.approx(1.0) for scores in of.values() for score in scores.values())
