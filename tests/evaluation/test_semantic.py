from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from PIL import Image

from s2uniseg_d2.data.center_crop import CenterCrop
from s2uniseg_d2.evaluation import MappedSemSegEvaluator, identity_mapping, load_mappings, semantic_quality
from s2uniseg_d2.evaluation.png_maps import read_labels
from s2uniseg_d2.evaluation.semantic import load_label_map, mask_votes

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
    evaluator = MappedSemSegEvaluator(scenes.name, num_clusters=3)
    results = run(evaluator, *solid(scenes, labels))["sem_seg_mapped"]
    assert results["PixelAcc_hungarian"] == pytest.approx(100 * (28 + 16 * 0.75) / 64)
    assert evaluator.per_picture == {101: pytest.approx((28 + 16 * 0.75) / 64)}
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


def test_masks_vote_once_where_they_overlap_enough():
    # rows: two pseudo-classes and none; columns: two classes and no truth
    table = np.array([[30, 5, 0], [0, 60, 40], [10, 0, 0]])
    # IoU: 30 / (35 + 40 - 30), 5 / (35 + 65 - 5), 0, 60 / (100 + 65 - 60)
    assert mask_votes(table, 0.05)[:2, :2].tolist() == [[1, 1], [0, 1]]
    assert mask_votes(table, 0.15)[:2, :2].tolist() == [[1, 0], [0, 1]]
    assert mask_votes(table, 30 / 45)[:2, :2].tolist() == [[0, 0], [0, 0]]  # above, not at
    assert mask_votes(np.array([[3, 0], [17, 0]]), 0.15)[0, 0] == 0


def test_pixels_and_masks_can_disagree(scenes):
    # pseudo-class 0 lies on many pixels of the disc in one picture, and is the bar's mask in three others
    inputs, outputs = scenes.records, []
    for number, entry in enumerate(inputs):
        truth = np.zeros((48, 64), dtype=np.uint8)
        truth[:4, :8] = 1
        Image.fromarray(truth).save(entry["sem_seg_file_name"])
        labels = torch.ones(48, 64, dtype=torch.int64) if number else torch.zeros(48, 64, dtype=torch.int64)
        labels[:4, :8] = 0
        outputs.append({"sem_seg_labels": labels})
    votes = {}
    for vote in ("pixels", "masks"):
        evaluator = MappedSemSegEvaluator(scenes.name, num_clusters=2, strategies=("majority",), vote=vote)
        results = run(evaluator, inputs, outputs)["sem_seg_mapped"]
        votes[vote] = evaluator.mappings[0].assignment.tolist(), results[f"votes_majority-{scenes.name}"]
    assert votes == {"pixels": ([0, 0], 4 * 48 * 64), "masks": ([1, 0], 1 + 3 + 3)}


def test_truth_is_cut_as_the_picture_is(scenes):
    crop = CenterCrop(short_side_px=32, crop_px=20)
    inputs, outputs = scenes.records, []
    for entry in inputs:
        outputs.append({"sem_seg_labels": torch.as_tensor(crop(load_label_map(entry["sem_seg_file_name"])) % 255)})
    evaluator = MappedSemSegEvaluator(scenes.name, num_clusters=5, truth_geometry=crop)
    results = run(evaluator, inputs, outputs)["sem_seg_mapped"]
    assert results["PixelAcc_hungarian"] == 100
    assert results[f"votes_hungarian-{scenes.name}"] == sum((load(entry, crop) < 255).sum() for entry in inputs)
    with pytest.raises(ValueError, match=r"must have the prediction's size \(48, 64\), got \(20, 20\)"):
        run(evaluator, inputs, [{"sem_seg_labels": torch.zeros(48, 64, dtype=torch.int64)}] * 4)


def load(entry, crop):
    return crop(load_label_map(entry["sem_seg_file_name"]))


def test_scores_of_single_pictures_add_up(scenes, predictions):
    evaluator = MappedSemSegEvaluator(scenes.name, num_clusters=5)
    results = run(evaluator, *predictions)["sem_seg_mapped"]
    assert list(evaluator.per_picture) == [101, 102, 103, 104]
    # all pictures have as many pixels with a truth
    assert 100 * np.mean(list(evaluator.per_picture.values())) == pytest.approx(results["PixelAcc_hungarian"])
    assert len(set(evaluator.per_picture.values())) > 2


def test_records_let_a_run_go_on(scenes, predictions, caplog):
    inputs, outputs = predictions
    whole = MappedSemSegEvaluator(scenes.name, num_clusters=5)
    expected = run(whole, inputs, outputs)
    again = MappedSemSegEvaluator(scenes.name, num_clusters=5)
    again.reset()
    again.records.extend(json.loads(json.dumps(whole.records[:3])))
    again.process(inputs[2:], outputs[2:])  # one of them a second time
    np.testing.assert_equal(again.evaluate(), expected)
    assert again.per_picture == whole.per_picture
    assert "have no prediction" not in caplog.text
    run(again, inputs[:1], outputs[:1])
    assert "3 of 4 pictures have no prediction" in caplog.text
    again.records.append({**whole.records[0], "file_name": "other.jpg"})
    with pytest.raises(ValueError, match=r"other.jpg is not a picture of evaluation_scenes: a record"):
        again.evaluate()


def test_written_maps_hold_pseudo_classes_and_classes(scenes, tmp_path):
    rename = [4, 2, 6, 0, 1]
    outputs = [predict(scenes, r["image_id"], rename=rename.__getitem__) for r in scenes.records]
    outputs[0]["sem_seg_labels"][0, 0] = -1
    settings = {"num_clusters": 8, "output_dir": str(tmp_path), "write_maps": True, "strategies": ("majority",)}
    run(MappedSemSegEvaluator(scenes.name, **settings), scenes.records, outputs)
    for entry, output in zip(scenes.records, outputs, strict=True):
        labels = output["sem_seg_labels"].numpy()
        name = f"{entry['image_id']}.png"
        np.testing.assert_array_equal(read_labels(tmp_path / "semantic_pseudo_classes" / name, 65535), labels)
        mapped = read_labels(tmp_path / "semantic_majority" / name, 65535)
        np.testing.assert_array_equal(mapped, [[rename.index(c) if c >= 0 else -1 for c in row] for row in labels])


def test_a_mapping_fitted_on_nothing_is_wrong_everywhere(scenes, caplog):
    outputs = [{"sem_seg_labels": torch.full((48, 64), -1)}] * 4
    results = run(MappedSemSegEvaluator(scenes.name, num_clusters=3), scenes.records, outputs)["sem_seg_mapped"]
    assert "all 3 pseudo-classes go unmapped" in caplog.text
    assert results["PixelAcc_hungarian"] == results["mIoU_majority"] == 0


def test_fewer_clusters_than_classes(scenes):
    rename = [0, 0, 0, 1, 1]
    outputs = [predict(scenes, r["image_id"], rename=rename.__getitem__) for r in scenes.records]
    results = run(MappedSemSegEvaluator(scenes.name, num_clusters=2), scenes.records, outputs)["sem_seg_mapped"]
    held = [results[f"IoU_hungarian-{name}"] for name in CLASSES]
    assert sorted(held)[:3] == [0, 0, 0]
    assert results["mIoU_hungarian"] == pytest.approx(sum(held) / 5)


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
    os.remove(inputs[0]["sem_seg_file_name"])
    with pytest.raises(ValueError, match=r"cannot read the truth .*101.png of 101.jpg: No such file or directory"):
        run(evaluator, inputs, outputs)
    for settings, message in (
        ({"num_clusters": 0}, "num_clusters must be at least 1, got 0"),
        ({"vote": "boxes"}, r"vote must be one of \('pixels', 'masks'\), got 'boxes'"),
        ({"vote_iou": 1.0}, r"vote_iou must lie in \[0, 1\), got 1.0"),
        ({"write_maps": True}, "write_maps needs an output_dir and at most 65535 pseudo-classes, got None and 3"),
    ):
        with pytest.raises(ValueError, match=message):
            MappedSemSegEvaluator(scenes.name, **({"num_clusters": 3} | settings))
    register("evaluation_plain", [{"file_name": "a.jpg"}])
    with pytest.raises(ValueError, match="evaluation_plain has no stuff_classes"):
        MappedSemSegEvaluator("evaluation_plain", num_clusters=3)
    register("evaluation_unlabelled", [{"file_name": "a.jpg"}], stuff_classes=["sky"])
    with pytest.raises(ValueError, match=r"1 pictures without sem_seg_file_name, first a.jpg"):
        MappedSemSegEvaluator("evaluation_unlabelled", num_clusters=3)
