"""What instance evaluators keep, write and do with odd input; their figures are in test_instances."""

from __future__ import annotations

import json

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from s2uniseg_d2.evaluation import AgnosticCOCOEvaluator, MappedCOCOEvaluator, load_mappings
from s2uniseg_d2.evaluation.coco_metrics import stdout_in_log

from .conftest import THINGS, identity, make_instances, predict, run


def test_a_missing_truth_file(scenes, register):
    register("evaluation_missing", scenes.records, json_file=str(scenes.folder / "absent.json"))
    message = r"cannot read the truth .*absent.json of evaluation_missing: No such file or directory"
    with pytest.raises(ValueError, match=message):
        AgnosticCOCOEvaluator("evaluation_missing")


def test_scores_of_single_pictures(scenes, predictions):
    inputs, outputs = predictions
    evaluator = AgnosticCOCOEvaluator(scenes.name)
    run(evaluator, inputs[:3], outputs[:3])
    expected = {}
    for entry, output in zip(inputs[:3], outputs[:3], strict=True):
        panoptic, segments = scenes.maps[entry["image_id"]]
        found = output["instances"].pred_masks.numpy()
        best = []
        for segment in segments:
            if segment["category_id"] in THINGS and not segment["iscrowd"]:
                mask = panoptic == segment["id"]
                best.append(((found & mask).sum((1, 2)) / (found | mask).sum((1, 2))).max())
        expected[entry["image_id"]] = np.mean(best)
    assert evaluator.per_picture == pytest.approx(expected | {104: 0.0})
    assert 0.2 < min(expected.values()) < max(expected.values()) < 1
    mapped = MappedCOCOEvaluator(scenes.name, num_clusters=5, mappings=[identity(5, 1)], tasks=("segm", "bbox"))
    run(mapped, inputs, outputs)
    assert all(0 <= mapped.per_picture[image_id] < expected[image_id] for image_id in expected)


def test_records_let_a_run_go_on(scenes, predictions):
    inputs, outputs = predictions
    whole = MappedCOCOEvaluator(scenes.name, num_clusters=5)
    expected = run(whole, inputs, outputs)
    kept = json.loads(json.dumps(whole.records[:3]))
    again = MappedCOCOEvaluator(scenes.name, num_clusters=5)
    again.reset()
    again.records.extend(kept)
    again.process(inputs[2:], outputs[2:])  # one of them a second time
    np.testing.assert_equal(again.evaluate(), expected)
    assert again.per_picture == whole.per_picture
    again.records.append({"image_id": 5, "instances": []})
    with pytest.raises(ValueError, match="image_id 5 is not in the truth"):
        again.evaluate()


def test_pictures_without_prediction_are_missed_with_a_warning(scenes, predictions, caplog):
    inputs, outputs = predictions
    some = run(AgnosticCOCOEvaluator(scenes.name), inputs[:2], outputs[:2])["segm_agnostic"]
    assert "2 of 4 pictures of the truth have no prediction" in caplog.text
    empty = [{"instances": make_instances([], [], [])}] * 2
    np.testing.assert_equal(run(AgnosticCOCOEvaluator(scenes.name), inputs, outputs[:2] + empty)["segm_agnostic"], some)
    assert run(AgnosticCOCOEvaluator(scenes.name), [], [])["segm_agnostic"]["AR@100"] == 0


def test_a_mapping_fitted_on_nothing_maps_nothing(scenes, predictions, caplog):
    for output in predictions[1]:
        output["instances"].scores *= 0.5
    evaluator = MappedCOCOEvaluator(scenes.name, num_clusters=5, match_score=0.6)
    results = run(evaluator, *predictions)["segm_mapped"]
    assert "no prediction of evaluation_scenes votes for a class: all 5 pseudo-classes go unmapped" in caplog.text
    assert results["AP_hungarian"] == results["AR@100_majority"] == results["AP_majority-disc"] == 0
    assert results[f"votes_majority-{scenes.name}"] == 0
    assert evaluator.mappings[0].assignment.tolist() == [-1] * 5


def test_fewer_clusters_than_classes_leave_classes_at_zero(scenes):
    outputs = [predict(scenes, r["image_id"], rename=[0, 0, 1, 1, 1].__getitem__) for r in scenes.records]
    evaluator = MappedCOCOEvaluator(scenes.name, num_clusters=2)
    results = run(evaluator, scenes.records, outputs)["segm_mapped"]
    zero = [name for name in THINGS.values() if results[f"AP_hungarian-{name}"] == 0]
    assert len(zero) == 1
    assert results["AP_hungarian"] == pytest.approx(sum(results[f"AP_hungarian-{n}"] for n in THINGS.values()) / 3)


def test_categories_that_the_metadata_leaves_out_do_not_count(scenes, predictions, register, caplog):
    caplog.set_level("INFO")
    things = {11: 0, 12: 1}  # without 13, as UVO's "other"
    register("evaluation_two", scenes.records, json_file=str(scenes.folder / "instances.json"))
    MetadataCatalog.get("evaluation_two").thing_dataset_id_to_contiguous_id = things
    evaluator = MappedCOCOEvaluator("evaluation_two", num_clusters=5)
    results = run(evaluator, *predictions)["segm_mapped"]
    assert "evaluation_two: categories ['star'] are left out of votes, AP and AR" in caplog.text
    assert evaluator.mappings[0].assignment.tolist()[:2] == [0, 1]
    assert results["AP_hungarian"] == pytest.approx((results["AP_hungarian-disc"] + results["AP_hungarian-bar"]) / 2)
    assert "AP_hungarian-star" not in results


def test_a_mapping_of_other_classes_is_refused(scenes, predictions, tmp_path):
    run(MappedCOCOEvaluator(scenes.name, num_clusters=5, output_dir=str(tmp_path)), *predictions)
    content = json.loads((tmp_path / "class_mapping_instance.json").read_text())
    content["classes"][1] = "cat"
    (tmp_path / "class_mapping_instance.json").write_text(json.dumps(content))
    mappings = load_mappings(tmp_path / "class_mapping_instance.json")
    message = (
        "mapping 'hungarian' was fitted on evaluation_scenes with other classes .*: class 1 is 'cat' there and 'bar'"
    )
    with pytest.raises(ValueError, match=message):
        MappedCOCOEvaluator(scenes.name, num_clusters=5, mappings=mappings)


def test_masks_must_be_there_and_of_the_truths_size(scenes):
    evaluator = AgnosticCOCOEvaluator(scenes.name)
    small = make_instances(np.ones((1, 4, 4), dtype=bool), [0.5], [0], (4, 4))
    with pytest.raises(ValueError, match=r"masks of image_id 101 must have the truth's size \(48, 64\), got \(4, 4\)"):
        run(evaluator, scenes.records[:1], [{"instances": small}])
    small.remove("pred_masks")
    with pytest.raises(ValueError, match="the prediction of image_id 101 has no pred_masks, which segm needs"):
        run(evaluator, scenes.records[:1], [{"instances": small}])


def test_predictions_can_be_scored_by_others(scenes, predictions, tmp_path):
    settings = {"num_clusters": 5, "output_dir": str(tmp_path), "strategies": ("hungarian_then_majority",)}
    results = run(MappedCOCOEvaluator(scenes.name, **settings), *predictions)["segm_mapped"]
    with stdout_in_log():
        truth = COCO(scenes.folder / "instances.json")
        found = json.loads((tmp_path / "coco_instances_results_hungarian_then_majority.json").read_text())
        for entry in found:
            del entry["bbox"]  # pycocotools would take areas from it
        evaluation = COCOeval(truth, truth.loadRes(found), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert results["AP_hungarian_then_majority"] == pytest.approx(100 * evaluation.stats[0], abs=1e-10)
    assert results["AR@100_hungarian_then_majority"] == pytest.approx(100 * evaluation.stats[8], abs=1e-10)
