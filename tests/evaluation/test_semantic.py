from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from PIL import Image

from s2uniseg_d2.evaluation import MappedSemSegEvaluator, identity_mapping, load_mappings, semantic_quality
from s2uniseg_d2.evaluation.semantic import load_label_map

from .conftest import predict, run

CLASSES = ("disc", "bar", "star", "sky", "sea")


def test_worked_example():
    # rows: predicted 0, predicted 1, no class; columns: true 0, true 1
    quality = semantic_quality(np.array([[3, 1], [2, 4], [5, 0]]))
    assert quality.pixel_accuracy == 7 / 15
    assert quality.iou.tolist() == [3 / 11, 4 / 7]
    assert quality.accuracy.tolist() == [3 / 10, 4 / 5]
    assert quality.mean_iou == pytest.approx((3 / 11 + 4 / 7) / 2)
    assert quality.mean_accuracy == pytest.approx(0.55)
    assert quality.weighted_iou == pytest.approx((3 / 11 * 10 + 4 / 7 * 5) / 15)


def test_absent_classes_are_in_no_mean_and_no_truth_is_nan():
    quality = semantic_quality(np.array([[3, 0], [1, 0], [0, 0]]))
    assert quality.mean_iou == quality.iou[0] == 3 / 4
    assert np.isnan(quality.iou[1])
    assert np.isnan(semantic_quality(np.zeros((3, 2), dtype=int))[:4]).all()


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # the bare evaluator's, with numpy 2
def test_identity_mapping_gives_the_bare_evaluators_figures(scenes, predictions):
    inputs, outputs = predictions
    one_hot = [
        {"sem_seg": torch.nn.functional.one_hot(output["sem_seg_labels"], 5).permute(2, 0, 1)} for output in outputs
    ]
    del MetadataCatalog.get(scenes.name).stuff_dataset_id_to_contiguous_id  # only for the bare one's dump
    bare = run(SemSegEvaluator(scenes.name, sem_seg_loading_fn=load_label_map), inputs, one_hot)["sem_seg"]
    evaluator = MappedSemSegEvaluator(scenes.name, num_clusters=5, mappings=[identity_mapping(5)])
    results = run(evaluator, inputs, outputs)["sem_seg_mapped"]
    assert 20 < bare["mIoU"] < 99
    assert results["PixelAcc_identity"] == bare["pACC"]
    for name in ("mIoU", "fwIoU", "mACC"):
        assert results[f"{name}_identity"] == bare[name]
    for label in CLASSES:
        assert results[f"IoU_identity-{label}"] == bare[f"IoU-{label}"]
        assert results[f"ACC_identity-{label}"] == bare[f"ACC-{label}"]


def test_a_renaming_is_undone_by_both_strategies(scenes, tmp_path):
    rename = [4, 2, 6, 0, 1]
    inputs = scenes.records
    bare = run(
        MappedSemSegEvaluator(scenes.name, num_clusters=5, mappings=[identity_mapping(5)]),
        inputs,
        [predict(scenes, r["image_id"]) for r in inputs],
    )["sem_seg_mapped"]
    outputs = [predict(scenes, r["image_id"], rename=rename.__getitem__) for r in inputs]
    evaluator = MappedSemSegEvaluator(scenes.name, num_clusters=8, output_dir=str(tmp_path))
    results = run(evaluator, inputs, outputs)["sem_seg_mapped"]
    for strategy in ("hungarian", "majority"):
        for name in ("PixelAcc", "mIoU", "fwIoU", "mACC"):
            assert results[f"{name}_{strategy}"] == bare[f"{name}_identity"]
        assert results[f"votes_{strategy}-{scenes.name}"] == 4 * (48 * 64 - 25)
    again = MappedSemSegEvaluator(
        scenes.name, num_clusters=8, mappings=load_mappings(tmp_path / "class_mapping_semantic.json")
    )
    assert run(again, inputs, outputs)["sem_seg_mapped"] == results


def solid(scenes, labels):
    """One picture's truth replaced: three quarters disc (class 0), a quarter bar."""
    path = scenes.records[0]["sem_seg_file_name"]
    truth = np.zeros((48, 64), dtype=np.uint8)
    truth[:, 48:] = 1
    Image.fromarray(truth).save(path)
    return [scenes.records[0]], [{"sem_seg_labels": torch.as_tensor(labels)}]


def test_unmatched_clusters_and_missing_labels_are_wrong(scenes):
    labels = np.zeros((48, 64), dtype=np.int64)
    labels[:, 28:48] = 1  # the disc in two clusters: one to one leaves the smaller one out
    labels[:12, 48:] = -1  # a quarter of the bar has no label
    labels[12:, 48:] = 2
    results = run(MappedSemSegEvaluator(scenes.name, num_clusters=3), *solid(scenes, labels))["sem_seg_mapped"]
    assert results["PixelAcc_hungarian"] == pytest.approx(100 * (28 + 16 * 0.75) / 64)
    assert results["mIoU_hungarian"] == pytest.approx(100 * (28 / 48 + 0.75) / 2)
    assert results["PixelAcc_majority"] == pytest.approx(100 * (48 + 16 * 0.75) / 64)
    assert results["mIoU_majority"] == pytest.approx(100 * (1 + 0.75) / 2)


def test_nothing_labelled_gives_nan(scenes):
    inputs, outputs = solid(scenes, np.zeros((48, 64), dtype=np.int64))
    Image.fromarray(np.full((48, 64), 255, dtype=np.uint8)).save(inputs[0]["sem_seg_file_name"])
    results = run(MappedSemSegEvaluator(scenes.name, num_clusters=3), inputs, outputs)["sem_seg_mapped"]
    assert np.isnan(results["PixelAcc_hungarian"])
    assert np.isnan(results["mIoU_majority"])
    assert results[f"votes_majority-{scenes.name}"] == 0


def test_bad_input(scenes, register):
    inputs, outputs = solid(scenes, np.zeros((48, 64), dtype=np.int64))
    evaluator = MappedSemSegEvaluator(scenes.name, num_clusters=3)
    with pytest.raises(ValueError, match=r"other\.jpg is not a picture of evaluation_scenes"):
        run(evaluator, [inputs[0] | {"file_name": "other.jpg"}], outputs)
    with pytest.raises(ValueError, match=r"must have the prediction's size \(4, 64\), got \(48, 64\)"):
        run(evaluator, inputs, [{"sem_seg_labels": torch.zeros(4, 64, dtype=torch.int64)}])
    with pytest.raises(ValueError, match=r"pseudo-classes must lie in \[-1, 3\), got 3 to 3"):
        run(evaluator, inputs, [{"sem_seg_labels": torch.full((48, 64), 3)}])
    Image.fromarray(np.full((48, 64), 5, dtype=np.uint8)).save(inputs[0]["sem_seg_file_name"])
    with pytest.raises(ValueError, match="must hold labels below 5 or 255 to ignore, got 5"):
        run(evaluator, inputs, outputs)
    with pytest.raises(ValueError, match="num_clusters must be at least 1, got 0"):
        MappedSemSegEvaluator(scenes.name, num_clusters=0)
    register("evaluation_plain", [{"file_name": "a.jpg"}])
    with pytest.raises(ValueError, match="evaluation_plain has no stuff_classes"):
        MappedSemSegEvaluator("evaluation_plain", num_clusters=3)
    register("evaluation_unlabelled", [{"file_name": "a.jpg"}], stuff_classes=["sky"])
    with pytest.raises(ValueError, match=r"1 pictures without sem_seg_file_name, first a.jpg"):
        MappedSemSegEvaluator("evaluation_unlabelled", num_clusters=3)
