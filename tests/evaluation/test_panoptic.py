from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from PIL import Image

from s2uniseg_d2.evaluation import MappedPanopticEvaluator, PanopticMapping, identity_mapping, load_mappings
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
        assert results[f"PQ_{strategy}-disc"] == 100
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
    files = [load_mappings(tmp_path / f"class_mapping_panoptic_{kind}.json") for kind in ("things", "stuff")]
    again = MappedPanopticEvaluator(
        scenes.name, num_clusters=4, mappings=[PanopticMapping(*pair) for pair in zip(*files, strict=True)]
    )
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
    (scenes.folder / "panoptic.json").write_text("{}")
    with pytest.raises(ValueError, match="is not in COCO's panoptic format: KeyError"):
        MappedPanopticEvaluator(scenes.name, num_clusters=5)
    del MetadataCatalog.get(scenes.name).panoptic_root
    with pytest.raises(ValueError, match="evaluation_scenes has no panoptic_root in its metadata"):
        MappedPanopticEvaluator(scenes.name, num_clusters=5)
