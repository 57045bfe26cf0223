from __future__ import annotations

import json

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import COCOeval, instances_to_coco_json
from detectron2.structures import Instances
from pycocotools.coco import COCO

from s2uniseg_d2.evaluation import AgnosticCOCOEvaluator, MappedCOCOEvaluator, load_mappings
from s2uniseg_d2.evaluation.coco_metrics import stdout_in_log

from .conftest import HEIGHT, WIDTH, identity, make_instances, predict, run

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR@1", "AR@10", "AR@100", "ARs@100", "ARm@100", "ARl@100")


def with_array_masks(instances):
    """Detectron2's own coding of masks warns with numpy 2 when they are tensors."""
    fields = instances.get_fields()
    return Instances(instances.image_size, **(fields | {"pred_masks": fields["pred_masks"].numpy()}))


def agnostic_reference(json_file, predictions, max_det=100):
    """The twelve figures of pycocotools itself with useCats = 0."""
    results = []
    for image_id, instances in predictions:
        for entry in instances_to_coco_json(with_array_masks(instances), image_id):
            entry.pop("bbox")
            results.append(entry)
    with stdout_in_log():
        truth = COCO(json_file)
        for entry in results:
            entry["category_id"] = truth.getCatIds()[0]
        evaluation = COCOeval(truth, truth.loadRes(results), "segm")
        evaluation.params.useCats = 0
        evaluation.params.maxDets = [1, 10, max_det]
        evaluation.evaluate()
        evaluation.accumulate()
        if max_det != 100:
            return evaluation
        evaluation.summarize()
    return dict(zip(NAMES, (evaluation.stats * 100).tolist(), strict=True))


@pytest.fixture
def coco64(shared_data, register):
    """Sixty-four photographs' annotations with noisy copies of their masks as predictions."""
    truth = json.loads((shared_data / "coco64" / "instances.json").read_text())
    register("evaluation_coco64", [], json_file=str(shared_data / "coco64" / "instances.json"))
    with stdout_in_log():
        coco = COCO(str(shared_data / "coco64" / "instances.json"))
    generator = np.random.default_rng(0)
    outputs = []
    for image in truth["images"]:
        entries = coco.imgToAnns[image["id"]]
        size = (image["height"], image["width"])
        masks = [np.roll(coco.annToMask(e), generator.integers(0, 12, 2), axis=(0, 1)) for e in entries]
        scores = generator.uniform(size=len(masks)).round(1)
        outputs.append(
            ({"image_id": image["id"]}, {"instances": make_instances(masks, scores, [0] * len(masks), size)})
        )
    return outputs


@pytest.mark.parametrize("backend", ["pycocotools", "faster_coco_eval"])
def test_agnostic_figures_are_those_of_pycocotools_without_categories(scenes, predictions, backend):
    inputs, outputs = predictions
    expected = agnostic_reference(
        scenes.folder / "instances.json",
        [(i["image_id"], o["instances"]) for i, o in zip(inputs, outputs, strict=True)],
    )
    results = run(AgnosticCOCOEvaluator(scenes.name, backend=backend), inputs, outputs)
    assert list(results) == ["segm_agnostic"]
    assert set(results["segm_agnostic"]) == set(NAMES)
    assert 5 < expected["AP"] < 95
    for name in NAMES:
        value = expected[name] if expected[name] >= 0 else float("nan")
        assert results["segm_agnostic"][name] == pytest.approx(value, abs=1e-12, nan_ok=True), name


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools 2.0.11 decoding with numpy 2
@pytest.mark.parametrize("backend", ["pycocotools", "faster_coco_eval"])
def test_photographs_with_crowds_equal_pycocotools(shared_data, coco64, backend):
    expected = agnostic_reference(
        shared_data / "coco64" / "instances.json", [(i["image_id"], o["instances"]) for i, o in coco64]
    )
    results = run(AgnosticCOCOEvaluator("evaluation_coco64", backend=backend), *zip(*coco64, strict=True))
    for name in NAMES:
        assert results["segm_agnostic"][name] == pytest.approx(expected[name], abs=1e-10), name


def test_more_detections_in_the_same_pass(scenes, predictions):
    limits = {"max_dets": (1, 10, 100, 1000)}
    inputs, outputs = predictions
    many = []
    for output in outputs:  # the right masks come after a hundred wrong ones
        good = output["instances"]
        noise = np.zeros((100, HEIGHT, WIDTH), dtype=bool)
        noise[:, 0, 0] = True
        masks = np.concatenate([noise, good.pred_masks.numpy()])
        scores = np.concatenate([np.full(100, 0.9), np.full(len(good), 0.5)])
        many.append({"instances": make_instances(masks, scores, [0] * len(masks))})
    results = run(AgnosticCOCOEvaluator(scenes.name, **limits), inputs, many)["segm_agnostic"]
    assert results["AR@100"] == 0
    reference = agnostic_reference(
        scenes.folder / "instances.json",
        [(i["image_id"], o["instances"]) for i, o in zip(inputs, many, strict=True)],
        max_det=1000,
    )
    precision, recall = (reference.eval[key][..., 0, 2] for key in ("precision", "recall"))
    assert results["AP@1000"] == pytest.approx(100 * precision.mean())
    assert results["AR@1000"] == pytest.approx(100 * recall.mean())
    assert results["AR@1000"] > 30


def test_box_figures_are_optional(scenes, predictions):
    results = run(AgnosticCOCOEvaluator(scenes.name, tasks=("segm", "bbox")), *predictions)
    assert set(results) == {"segm_agnostic", "bbox_agnostic"}
    assert results["bbox_agnostic"]["AP"] != results["segm_agnostic"]["AP"]


@pytest.mark.parametrize("backend", ["pycocotools", "faster_coco_eval"])
def test_no_prediction_is_zero_and_no_truth_is_nan(scenes, register, backend):
    inputs = scenes.records
    nothing = [{"instances": make_instances([], [], [])}] * len(inputs)
    results = run(AgnosticCOCOEvaluator(scenes.name, backend=backend), inputs, nothing)["segm_agnostic"]
    assert results["AP"] == results["AR@100"] == results["APs"] == 0
    assert np.isnan(results["APl"])  # no large object in the truth
    mapped = run(MappedCOCOEvaluator(scenes.name, num_clusters=5, backend=backend), inputs, nothing)["segm_mapped"]
    assert mapped["AP_hungarian"] == mapped["AP_majority-disc"] == 0

    path = scenes.folder / "empty.json"
    path.write_text(json.dumps(scenes.instances | {"annotations": []}))
    register("evaluation_empty", inputs, json_file=str(path))
    outputs = [predict(scenes, record["image_id"]) for record in inputs]
    results = run(AgnosticCOCOEvaluator("evaluation_empty", backend=backend), inputs, outputs)["segm_agnostic"]
    assert all(np.isnan(value) for value in results.values())
    mapped = run(MappedCOCOEvaluator("evaluation_empty", num_clusters=5, backend=backend), inputs, outputs)
    assert np.isnan(mapped["segm_mapped"]["AP_majority"])


@pytest.mark.parametrize(("backend", "tolerance"), [("pycocotools", 0), ("faster_coco_eval", 1e-10)])
def test_identity_mapping_gives_the_bare_evaluators_figures(scenes, predictions, tmp_path, backend, tolerance):
    inputs, outputs = predictions
    arrays = [{"instances": with_array_masks(output["instances"])} for output in outputs]
    bare = run(COCOEvaluator(scenes.name, tasks=("segm", "bbox"), use_fast_impl=False), inputs, arrays)
    settings = {"mappings": [identity(5, 3)], "tasks": ("segm", "bbox"), "backend": backend}
    evaluator = MappedCOCOEvaluator(scenes.name, num_clusters=5, output_dir=str(tmp_path), **settings)
    results = run(evaluator, *predictions)
    for task in ("segm", "bbox"):
        assert 5 < bare[task]["AP"] < 95
        for key, value in bare[task].items():
            name, dash, label = key.partition("-")
            mine = results[f"{task}_mapped"][f"{name}_identity{dash}{label}"]
            assert mine == pytest.approx(value, rel=0, abs=tolerance, nan_ok=True), key
    assert (tmp_path / "coco_instances_results_identity.json").is_file()
    assert "AR@100_identity" in results["segm_mapped"]


def test_a_renaming_of_the_classes_is_undone_by_both_strategies(scenes, tmp_path):
    rename = [6, 0, 4, 1, 2]
    outputs = [predict(scenes, r["image_id"], rename=rename.__getitem__) for r in scenes.records]
    bare = run(
        MappedCOCOEvaluator(scenes.name, num_clusters=5, mappings=[identity(5, 3)]),
        scenes.records,
        [predict(scenes, r["image_id"]) for r in scenes.records],
    )["segm_mapped"]
    evaluator = MappedCOCOEvaluator(scenes.name, num_clusters=7, output_dir=str(tmp_path))
    results = run(evaluator, scenes.records, outputs)["segm_mapped"]
    for strategy in ("hungarian", "majority"):
        for name in NAMES:
            assert results[f"{name}_{strategy}"] == pytest.approx(bare[f"{name}_identity"], nan_ok=True)
        assert results[f"votes_{strategy}-{scenes.name}"] > 10
    assert evaluator.mappings[0].assignment.tolist() == [1, -1, -1, -1, 2, -1, 0]
    again = MappedCOCOEvaluator(
        scenes.name, num_clusters=7, mappings=load_mappings(tmp_path / "class_mapping_instance.json")
    )
    np.testing.assert_equal(run(again, scenes.records, outputs)["segm_mapped"], results)


def test_a_class_split_in_two_costs_the_hungarian_strategy_only(scenes):
    outputs = [predict(scenes, r["image_id"]) for r in scenes.records]
    for number, output in enumerate(outputs):
        if number % 2:
            output["instances"].pred_classes += 3
    results = run(MappedCOCOEvaluator(scenes.name, num_clusters=6), scenes.records, outputs)["segm_mapped"]
    assert results["AP_majority"] > results["AP_hungarian"] > 0


def test_predictions_without_a_class_are_left_out(scenes, predictions):
    inputs, outputs = predictions
    mapping = identity(5, 2)  # nothing for the class "star"
    results = run(MappedCOCOEvaluator(scenes.name, num_clusters=5, mappings=[mapping]), inputs, outputs)
    kept = [{"instances": o["instances"][o["instances"].pred_classes < 2]} for o in outputs]
    expected = run(MappedCOCOEvaluator(scenes.name, num_clusters=5, mappings=[identity(5, 3)]), inputs, kept)
    np.testing.assert_equal(results, expected)
    assert results["segm_mapped"]["AP_identity-star"] == 0


def test_a_crowd_region_votes_by_its_plain_overlap(scenes):
    panoptic, segments = scenes.maps[101]
    crowd = panoptic == next(s["id"] for s in segments if s["iscrowd"])
    part = crowd.copy()
    part[np.flatnonzero(crowd.any(axis=1))[1] :] = False  # one row of it: wholly inside, but little of it
    output = {"instances": make_instances([crowd, part], [0.9, 0.9], [0, 1])}
    evaluator = MappedCOCOEvaluator(scenes.name, num_clusters=2)
    run(evaluator, scenes.records[:1], [output])
    counts = evaluator.count_votes([e for p in evaluator._predictions for e in p["instances"]])
    assert counts.sum(axis=1).tolist() == [1, 0]


def test_votes_need_score_and_overlap(scenes):
    panoptic, segments = scenes.maps[101]
    segment = next(s for s in segments if s["category_id"] == 12)
    mask = panoptic == segment["id"]
    shaved = mask.copy()
    shaved[np.flatnonzero(mask.any(axis=1))[-1]] = False
    overlap = shaved.sum() / mask.sum()
    output = {"instances": make_instances([mask, shaved, mask], [0.9, 0.8, 0.3], [0, 1, 2])}

    def votes(**settings):
        evaluator = MappedCOCOEvaluator(scenes.name, num_clusters=3, **settings)
        run(evaluator, scenes.records[:1], [output])
        counts = evaluator.count_votes([e for p in evaluator._predictions for e in p["instances"]])
        assert counts[:, [0, 2]].sum() == 0
        return counts[:, 1].tolist()

    assert votes() == [1, 1, 1]
    assert votes(match_score=0.6) == [1, 1, 0]
    assert votes(match_iou=overlap) == [1, 0, 1]  # above, not at
    assert votes(match_iou=overlap - 1e-6) == [1, 1, 1]
    assert votes(match_by="bbox", match_iou=0.999) == [1, 0, 1]


def test_hand_made_truth_without_iscrowd_and_area_and_with_id_0(scenes, register, predictions):
    content = dict(scenes.instances)
    kept = [entry for entry in content["annotations"] if not entry["iscrowd"]]
    reference, stripped = scenes.folder / "reference.json", scenes.folder / "stripped.json"
    reference.write_text(json.dumps(content | {"annotations": kept}))
    entries = [{**entry, "id": entry["id"] - 1} for entry in kept]
    for entry in entries:
        del entry["iscrowd"], entry["area"]
    assert entries[0]["id"] == 0
    stripped.write_text(json.dumps(content | {"annotations": entries}))
    register("evaluation_reference", scenes.records, json_file=str(reference))
    register("evaluation_stripped", scenes.records, json_file=str(stripped))
    expected = run(AgnosticCOCOEvaluator("evaluation_reference"), *predictions)
    np.testing.assert_equal(run(AgnosticCOCOEvaluator("evaluation_stripped"), *predictions), expected)
    # without contiguous ids in the metadata classes stand in the order of their ids
    mapped = run(MappedCOCOEvaluator("evaluation_stripped", num_clusters=5, mappings=[identity(5, 3)]), *predictions)
    assert mapped["segm_mapped"]["AP_identity"] > 5


def test_a_file_without_annotations_has_no_result(scenes, register, predictions):
    path = scenes.folder / "test_split.json"
    path.write_text(json.dumps({key: value for key, value in scenes.instances.items() if key != "annotations"}))
    register("evaluation_test_split", scenes.records, json_file=str(path))
    assert run(AgnosticCOCOEvaluator("evaluation_test_split"), *predictions) == {}
    assert run(MappedCOCOEvaluator("evaluation_test_split", num_clusters=5), *predictions) == {}


def test_nothing_is_printed(scenes, predictions, capsys):
    run(AgnosticCOCOEvaluator(scenes.name), *predictions)
    run(MappedCOCOEvaluator(scenes.name, num_clusters=5), *predictions)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("text", ["{", "[]", '{"images": [{}]}', '{"annotations": [{"image_id": 101}]}'])
def test_malformed_truth(scenes, register, text):
    path = scenes.folder / "malformed.json"
    path.write_text(text)
    register("evaluation_malformed", scenes.records, json_file=str(path))
    with pytest.raises(ValueError, match=r"malformed.json of evaluation_malformed is not in COCO's format"):
        AgnosticCOCOEvaluator("evaluation_malformed")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"segmentation": []}, "annotation 1 of .*broken.json has no segmentation, which segm evaluation needs"),
        ({"category_id": 99}, "has category_id 99, which the file does not list"),
        ({"image_id": 99}, "has image_id 99, which the file does not list"),
    ],
)
def test_bad_truth(scenes, register, broken, message):
    path = scenes.folder / "broken.json"
    first, *others = scenes.instances["annotations"]
    path.write_text(json.dumps(scenes.instances | {"annotations": [first | broken, *others]}))
    register("evaluation_broken", scenes.records, json_file=str(path))
    with pytest.raises(ValueError, match=message):
        AgnosticCOCOEvaluator("evaluation_broken")


def test_predictions_of_another_data_set(scenes, predictions):
    inputs, outputs = predictions
    evaluator = AgnosticCOCOEvaluator(scenes.name)
    with pytest.raises(ValueError, match="image_id 5 is not in the truth of evaluation_scenes"):
        run(evaluator, [inputs[0] | {"image_id": 5}], outputs[:1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_clusters": 0}, "num_clusters must be at least 1, got 0"),
        ({"strategies": ("best",)}, r"strategies must be among \['hungarian', .*'majority'\], got \['best'\]"),
        ({"strategies": ()}, "strategies must name at least one"),
        ({"match_score": 1.5}, r"match_score must lie in \[0, 1\], got 1.5"),
        ({"match_iou": 1.0}, r"match_iou must lie in \[0, 1\), got 1.0"),
        ({"match_by": "points"}, "match_by must be 'segm' or 'bbox', got 'points'"),
        ({"tasks": ("keypoints",)}, "tasks must be"),
        ({"max_dets": (1, 10)}, "max_dets must increase strictly, be positive and contain 100"),
        ({"max_dets": (10, 1, 100)}, "max_dets must increase strictly"),
        ({"backend": "c++"}, "backend must be one of"),
        ({"mappings": [identity(4, 3)]}, r"mapping 'identity' must assign 5 clusters, got \(4,\)"),
        ({"mappings": [identity(5, 5)]}, r"must name classes in \[-1, 3\), got 0 to 4"),
        ({"mappings": [identity(5, 3)] * 2}, "mappings must have different names"),
        ({"mappings": []}, "mappings must hold at least one, got none"),
    ],
)
def test_bad_arguments(scenes, settings, message):
    with pytest.raises(ValueError, match=message):
        MappedCOCOEvaluator(scenes.name, **({"num_clusters": 5} | settings))


def test_too_few_clusters_are_named(scenes, predictions):
    evaluator = MappedCOCOEvaluator(scenes.name, num_clusters=2)
    with pytest.raises(ValueError, match=r"pseudo-classes must lie in \[0, 2\), got 0 to 2"):
        run(evaluator, *predictions)


def test_class_ids_of_another_data_set(scenes):
    MetadataCatalog.get(scenes.name).thing_dataset_id_to_contiguous_id[77] = 3
    with pytest.raises(ValueError, match=r"names category ids \[77\] that its json_file does not list"):
        MappedCOCOEvaluator(scenes.name, num_clusters=5)


def test_no_class_at_all(scenes):
    MetadataCatalog.get(scenes.name).thing_dataset_id_to_contiguous_id.clear()
    with pytest.raises(ValueError, match="evaluation_scenes has no class to map to"):
        MappedCOCOEvaluator(scenes.name, num_clusters=5)
