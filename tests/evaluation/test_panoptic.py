from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from PIL import Image

from s2uniseg_d2.evaluation import (
    MappedPanopticEvaluator,
    PanopticMapping,
    identity_mapping,
    load_panoptic_mappings,
)
from s2uniseg_d2.evaluation.png_maps import read_ids
from tests.oracles.panoptic_slow import slow_panoptic_quality

from .conftest import HEIGHT, STUFF, THINGS, WIDTH, predict, run

ORDER = [*THINGS, *STUFF]
KINDS = {**dict.fromkeys(THINGS, 1), **dict.fromkeys(STUFF, 0)}


def fixed_mapping(things, stuff):
    mappings = identity_mapping(len(things)), identity_mapping(len(stuff))
    for mapping, classes in zip(mappings, (things, stuff), strict=True):
        mapping.assignment[:] = classes
    return PanopticMapping(*mappings)


IDENTITY = fixed_mapping([0, 1, 2, -1, -1], [-1, -1, -1, 0, 1])  # pseudo-class = position in ORDER


def perfect(scenes, image_id, rename=lambda label: label):
    panoptic, segments = scenes.maps[image_id]
    infos = [
        {"id": s["id"], "isthing": s["category_id"] in THINGS, "category_id": rename(ORDER.index(s["category_id"]))}
        for s in segments
    ]
    return {"panoptic_seg": (torch.as_tensor(panoptic.astype(np.int32)), infos)}


def test_truth_as_prediction_is_perfect(scenes):
    outputs = [perfect(scenes, r["image_id"]) for r in scenes.records]
    results = run(MappedPanopticEvaluator(scenes.name, num_clusters=5), scenes.records, outputs)["panoptic_mapped"]
    for strategy in ("hungarian", "majority"):
        for name in ("PQ", "SQ", "RQ", "PQ_th", "SQ_th", "RQ_th", "PQ_st", "SQ_st", "RQ_st"):
            assert results[f"{name}_{strategy}"] == 100
        for name in ("PQ", "SQ", "RQ"):
            assert results[f"{name}_{strategy}-disc"] == 100
        assert results[f"votes_{strategy}-{scenes.name}"] == 4 * (HEIGHT * WIDTH - 25)


def test_identity_mapping_gives_the_plain_figures(scenes, predictions):
    inputs, outputs = predictions
    evaluator = MappedPanopticEvaluator(scenes.name, num_clusters=5, mappings=[IDENTITY])
    results = run(evaluator, inputs, outputs)["panoptic_mapped"]
    pictures = []
    for entry, output in zip(inputs, outputs, strict=True):
        predicted_map, infos = output["panoptic_seg"]
        predicted = [{"id": i["id"], "category_id": ORDER[i["category_id"]]} for i in infos]
        pictures.append((predicted_map.numpy(), predicted, *scenes.maps[entry["image_id"]]))
    expected = slow_panoptic_quality(pictures, KINDS)
    for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        got = [results[f"{name}{suffix}_identity"] for name in ("PQ", "SQ", "RQ")]
        assert got == pytest.approx([100 * value for value in expected[group]], abs=1e-9)
    assert 20 < results["PQ_identity"] < 99


def test_a_renaming_is_undone_and_things_and_stuff_are_apart(scenes, tmp_path):
    rename = [2, 0, 1, 0, 2]  # pseudo-classes 0 and 2 are a thing and a stuff class each
    inputs = scenes.records
    plain = run(
        MappedPanopticEvaluator(scenes.name, num_clusters=5, mappings=[IDENTITY]),
        inputs,
        [predict(scenes, r["image_id"]) for r in inputs],
    )["panoptic_mapped"]
    outputs = [predict(scenes, r["image_id"], rename=rename.__getitem__) for r in inputs]
    evaluator = MappedPanopticEvaluator(scenes.name, str(tmp_path), num_clusters=4)
    results = run(evaluator, inputs, outputs)["panoptic_mapped"]
    for strategy in ("hungarian", "majority"):
        for name in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st"):
            assert results[f"{name}_{strategy}"] == pytest.approx(plain[f"{name}_identity"])
    assert evaluator.mappings[0].things.assignment.tolist() == [1, 2, 0, -1]
    assert evaluator.mappings[0].stuff.assignment.tolist() == [0, -1, 1, -1]
    again = MappedPanopticEvaluator(scenes.name, num_clusters=4, mappings=load_panoptic_mappings(tmp_path))
    assert run(again, inputs, outputs)["panoptic_mapped"] == results


@pytest.fixture
def halves(scenes):
    """One picture: all sky, predicted as two stuff segments of two pseudo-classes."""
    panoptic = np.ones((HEIGHT, WIDTH), dtype=np.int64)
    segment = {"id": 1, "category_id": 21, "iscrowd": 0, "area": panoptic.size}
    content = json.loads((scenes.folder / "panoptic.json").read_text())
    content["annotations"] = [{"image_id": 101, "file_name": "101.png", "segments_info": [segment]}]
    (scenes.folder / "panoptic.json").write_text(json.dumps(content))
    colours = np.stack([panoptic, panoptic * 0, panoptic * 0], axis=-1).astype(np.uint8)
    Image.fromarray(colours).save(scenes.folder / "panoptic" / "101.png")
    predicted = panoptic.copy()
    predicted[:, WIDTH * 3 // 8 :] = 2
    infos = [{"id": 1, "isthing": False, "category_id": 0}, {"id": 2, "isthing": False, "category_id": 1}]
    return scenes.records[:1], [{"panoptic_seg": (torch.as_tensor(predicted), infos)}]


def test_stuff_of_one_class_merges_and_stuff_of_none_is_void(scenes, halves):
    results = run(MappedPanopticEvaluator(scenes.name, num_clusters=2), *halves)["panoptic_mapped"]
    assert results["PQ_majority"] == 100  # both are sky: one segment, no false positive
    assert results["PQ_hungarian"] == pytest.approx(62.5)  # the larger one is sky, the other void
    assert results["RQ_hungarian"] == 100
    assert np.isnan(results["PQ_th_majority"])


def test_a_thing_on_true_stuff_votes_for_neither(scenes, halves):
    inputs, outputs = halves
    predicted_map, infos = outputs[0]["panoptic_seg"]
    infos = [infos[0], infos[1] | {"isthing": True}]
    evaluator = MappedPanopticEvaluator(scenes.name, num_clusters=2)
    results = run(evaluator, inputs, [{"panoptic_seg": (predicted_map, infos)}])["panoptic_mapped"]
    assert results[f"votes_majority-{scenes.name}"] == HEIGHT * WIDTH * 3 // 8
    assert evaluator.mappings[1].things.assignment.tolist() == [-1, -1]
    assert evaluator.mappings[1].stuff.assignment.tolist() == [0, -1]


def test_pictures_without_prediction_are_missed(scenes, caplog):
    outputs = [perfect(scenes, r["image_id"]) for r in scenes.records]
    evaluator = MappedPanopticEvaluator(scenes.name, num_clusters=5)
    results = run(evaluator, scenes.records[:2], outputs[:2])["panoptic_mapped"]
    assert "2 of 4 pictures of the truth have no prediction" in caplog.text
    assert results["SQ_hungarian"] == 100
    assert results["RQ_st_hungarian"] == pytest.approx(100 * 2 / 3)
    nothing = run(evaluator, [], [])["panoptic_mapped"]
    assert nothing["PQ_hungarian"] == nothing["PQ_st_majority"] == 0


def test_a_mapping_fitted_on_nothing_is_all_void(scenes, halves, caplog):
    inputs, outputs = halves
    things = [info | {"isthing": True} for info in outputs[0]["panoptic_seg"][1]]
    outputs = [{"panoptic_seg": (outputs[0]["panoptic_seg"][0], things)}]
    results = run(MappedPanopticEvaluator(scenes.name, num_clusters=2), inputs, outputs)["panoptic_mapped"]
    assert caplog.text.count("votes for a class: all 2 pseudo-classes go unmapped") == 2
    assert results["PQ_hungarian"] == results["PQ_st_majority"] == 0
    assert np.isnan(results["PQ_th_majority"])  # no thing in the truth, and none is left of the prediction


def test_the_third_strategy_is_cupss(scenes, halves):
    inputs, outputs = halves
    strategies = ("hungarian", "hungarian_then_majority")
    evaluator = MappedPanopticEvaluator(scenes.name, num_clusters=3, strategies=strategies)
    results = run(evaluator, inputs, outputs)["panoptic_mapped"]
    assert results["PQ_hungarian_then_majority"] == 100
    assert [m.stuff.assignment.tolist() for m in evaluator.mappings] == [[-1, 0, -1], [0, 0, -1]]


def test_true_segments_of_one_class_stay_apart(scenes, halves):
    # U2Seg's 80 + 15 classes: one predicted wall can match one of two true ones only
    inputs, outputs = halves
    content = json.loads((scenes.folder / "panoptic.json").read_text())
    ids = np.ones((HEIGHT, WIDTH), dtype=np.int64)
    ids[:, WIDTH * 3 // 4 :] = 2
    content["annotations"][0]["segments_info"] = [{"id": number, "category_id": 21, "iscrowd": 0} for number in (1, 2)]
    (scenes.folder / "panoptic.json").write_text(json.dumps(content))
    Image.fromarray(np.stack([ids, ids * 0, ids * 0], axis=-1).astype(np.uint8)).save(
        scenes.folder / "panoptic" / "101.png"
    )
    results = run(MappedPanopticEvaluator(scenes.name, num_clusters=2), inputs, outputs)["panoptic_mapped"]
    assert results["RQ_majority"] == pytest.approx(100 * 2 / 3)
    assert results["SQ_majority"] == pytest.approx(75)
    assert results["SQ_majority-sky"] == results["SQ_majority"]


def test_masks_vote_by_overlap(scenes, halves):
    inputs, outputs = halves
    content = json.loads((scenes.folder / "panoptic.json").read_text())
    disc = {"id": 1, "category_id": 11, "iscrowd": 0}

    def votes(true, predicted, **limits):
        content["annotations"][0]["segments_info"] = [true]
        (scenes.folder / "panoptic.json").write_text(json.dumps(content))
        evaluator = MappedPanopticEvaluator(scenes.name, num_clusters=2, vote="masks", **limits)
        evaluator.reset()
        evaluator.process(inputs, [{"panoptic_seg": (outputs[0]["panoptic_seg"][0], predicted)}])
        evaluator.evaluate()
        return [mapping[0].votes for mapping in zip(*evaluator.mappings, strict=True)]

    stuff = outputs[0]["panoptic_seg"][1]
    things = [info | {"isthing": True} for info in stuff]
    # three eighths and five eighths of the picture, or all of it where both are of one pseudo-class of stuff
    assert votes(disc, things) == [1, 0]
    assert votes(disc, things, thing_iou=0.3) == [2, 0]
    assert votes(disc, things, thing_iou=0.625) == [0, 0]
    assert votes(disc, [info | {"category_id": 0} for info in things], thing_iou=0.7) == [0, 0]
    sky = disc | {"category_id": 21}
    assert votes(sky, stuff) == [0, 2]
    assert votes(sky, stuff, stuff_iou=0.5) == [0, 1]
    assert votes(sky, [info | {"category_id": 0} for info in stuff], stuff_iou=0.9) == [0, 1]
    assert votes(sky, things) == [0, 0]


def rescored(scenes, folder, name):
    """PQ of the written files alone, as a stranger computes it."""
    content = json.loads((folder / f"panoptic_{name}.json").read_text())
    assert content["categories"] == json.loads((scenes.folder / "panoptic.json").read_text())["categories"]
    pictures = []
    for entry in content["annotations"]:
        ids = read_ids(folder / f"panoptic_{name}" / entry["file_name"])
        assert {s["id"]: s["area"] for s in entry["segments_info"]} == {
            i: (ids == i).sum() for i in np.unique(ids) if i
        }
        pictures.append((ids, entry["segments_info"], *scenes.maps[entry["image_id"]]))
    return slow_panoptic_quality(pictures, KINDS)


def test_predictions_can_be_scored_by_others(scenes, tmp_path):
    rename = [2, 0, 1, 0, 2]
    outputs = [predict(scenes, r["image_id"], rename=rename.__getitem__) for r in scenes.records]
    strategies = ("hungarian", "majority", "hungarian_then_majority")
    evaluator = MappedPanopticEvaluator(scenes.name, str(tmp_path), num_clusters=3, strategies=strategies)
    results = run(evaluator, scenes.records, outputs)["panoptic_mapped"]
    for name in strategies:
        expected = rescored(scenes, tmp_path, name)
        for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
            got = [results[f"{key}{suffix}_{name}"] for key in ("PQ", "SQ", "RQ")]
            assert got == pytest.approx([100 * value for value in expected[group]], abs=1e-9)
    plain = json.loads((tmp_path / "panoptic_pseudo_classes.json").read_text())["annotations"][0]
    np.testing.assert_array_equal(
        read_ids(tmp_path / "panoptic_pseudo_classes" / plain["file_name"]), outputs[0]["panoptic_seg"][0]
    )
    assert {s["category_id"] for s in plain["segments_info"]} == {0, 1, 2}


def test_merged_and_void_segments_are_painted_so(scenes, halves, tmp_path):
    content = json.loads((scenes.folder / "panoptic.json").read_text())
    run(MappedPanopticEvaluator(scenes.name, str(tmp_path), num_clusters=2), *halves)
    ids = {name: read_ids(tmp_path / f"panoptic_{name}" / "101.png") for name in ("majority", "hungarian")}
    assert set(np.unique(ids["majority"])) == {1}
    assert set(np.unique(ids["hungarian"])) == {0, 2}
    assert len(content["annotations"]) == 1


def test_scores_of_single_pictures_and_records(scenes, predictions):
    inputs, outputs = predictions
    whole = MappedPanopticEvaluator(scenes.name, num_clusters=5, mappings=[IDENTITY])
    expected = run(whole, inputs, outputs)
    for entry, output in zip(inputs, outputs, strict=True):
        predicted = [{"id": i["id"], "category_id": ORDER[i["category_id"]]} for i in output["panoptic_seg"][1]]
        picture = (output["panoptic_seg"][0].numpy(), predicted, *scenes.maps[entry["image_id"]])
        alone = slow_panoptic_quality([picture], KINDS)["All"][0]
        assert whole.per_picture[entry["image_id"]] == pytest.approx(alone, abs=1e-12)
    again = MappedPanopticEvaluator(scenes.name, num_clusters=5, mappings=[IDENTITY])
    again.reset()
    again.records.extend(json.loads(json.dumps(whole.records[:3])))
    again.process(inputs[2:], outputs[2:])  # one of them a second time
    assert again.evaluate() == expected
    assert again.per_picture == whole.per_picture
    again.records.append({**whole.records[0], "image_id": 5})
    with pytest.raises(ValueError, match="image_id 5 is not in the panoptic truth of evaluation_scenes"):
        again.evaluate()


def test_bad_input(scenes, predictions):
    inputs, outputs = predictions
    evaluator = MappedPanopticEvaluator(scenes.name, num_clusters=5)
    with pytest.raises(ValueError, match="image_id 7 is not in the panoptic truth of evaluation_scenes"):
        run(evaluator, [inputs[0] | {"image_id": 7}], outputs[:1])
    with pytest.raises(ValueError, match=r"must have the truth's size \(48, 64\), got \(4, 4\)"):
        run(evaluator, inputs[:1], [{"panoptic_seg": (torch.zeros(4, 4), [])}])
    with pytest.raises(ValueError, match=r"must list each id of its map once, got \[\] for a map of \[1, 2, 300"):
        run(evaluator, inputs[:1], [{"panoptic_seg": (outputs[0]["panoptic_seg"][0], [])}])
    with pytest.raises(ValueError, match=r"pseudo-classes must lie in \[0, 2\)"):
        run(MappedPanopticEvaluator(scenes.name, num_clusters=2), inputs, outputs)
    with pytest.raises(ValueError, match="num_clusters must be at least 1, got 0"):
        MappedPanopticEvaluator(scenes.name, num_clusters=0)
    with pytest.raises(ValueError, match=r"must name classes in \[-1, 2\), got -1 to 2"):
        MappedPanopticEvaluator(scenes.name, num_clusters=3, mappings=[fixed_mapping([0, 1, 2], [-1, 1, 2])])
    for settings, message in (
        ({"vote": "boxes"}, r"vote must be one of \('pixels', 'masks'\), got 'boxes'"),
        ({"thing_iou": 1.0}, r"thing_iou must lie in \[0, 1\), got 1.0"),
        ({"stuff_iou": -0.1}, r"stuff_iou must lie in \[0, 1\), got -0.1"),
    ):
        with pytest.raises(ValueError, match=message):
            MappedPanopticEvaluator(scenes.name, num_clusters=5, **settings)
    (scenes.folder / "panoptic" / "101.png").unlink()
    with pytest.raises(ValueError, match=r"cannot read the panoptic map .*101.png: No such file or directory"):
        run(evaluator, inputs, outputs)
    path = scenes.folder / "panoptic.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"annotations": content["annotations"] * 2}))
    with pytest.raises(ValueError, match="must list each image_id once, got 8 annotations of 4 pictures"):
        MappedPanopticEvaluator(scenes.name, num_clusters=5)
    path.write_text(json.dumps(content | {"categories": content["categories"][:-1]}))
    with pytest.raises(ValueError, match="must be of the categories it lists, got category_id 22"):
        MappedPanopticEvaluator(scenes.name, num_clusters=5)
    stray = [{**entry, "file_name": f"../{entry['file_name']}"} for entry in content["annotations"]]
    path.write_text(json.dumps(content | {"annotations": stray}))
    with pytest.raises(ValueError, match=r"must name files inside their folder, got '\.\./"):
        MappedPanopticEvaluator(scenes.name, num_clusters=5)
    path.write_text("{}")
    with pytest.raises(ValueError, match="is not in COCO's panoptic format: KeyError"):
        MappedPanopticEvaluator(scenes.name, num_clusters=5)
    path.unlink()
    with pytest.raises(ValueError, match=r"cannot read the truth .*panoptic.json of evaluation_scenes: .*No such file"):
        MappedPanopticEvaluator(scenes.name, num_clusters=5)
    del MetadataCatalog.get(scenes.name).panoptic_root
    with pytest.raises(ValueError, match="evaluation_scenes has no panoptic_root in its metadata"):
        MappedPanopticEvaluator(scenes.name, num_clusters=5)
