from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_coding
from pycocotools.coco import COCO

from s2uniseg_d2.evaluation.coco_metrics import (
    BACKENDS,
    class_figures,
    coco_figures,
    complete_truth,
    evaluate_coco,
    picture_overlaps,
    stdout_in_log,
)

LIMITS = (1, 10, 100, 1000)
SIDE = 100  # a rectangle can have 32^2 and 96^2 pixels exactly
AREAS = (0.0, 1023.5, 1024.0, 1024.5, 9215.999, 9216.0, 9216.5, 1e10, 1e10 + 1)

lengths = st.sampled_from((1, 2, 3, 5, 31, 32, 33, 95, 96, 97))
corners = st.integers(0, 6)
boxes = st.tuples(corners, corners, lengths, lengths)
objects = st.tuples(boxes, st.integers(1, 3), st.booleans(), st.none() | st.sampled_from(AREAS), st.integers(0, 2))
# few scores: many ties; of copies as many as the limits on detections cut
detections = st.tuples(
    boxes, st.integers(1, 3), st.sampled_from((0.0, 0.25, 0.5, 0.5, 1.0)), st.sampled_from((1, 1, 12))
)
pictures = st.tuples(st.lists(objects, max_size=4), st.lists(detections, max_size=8))


def draw(box):
    left, top, width, height = box
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8, order="F")
    mask[top : top + height, left : left + width] = 1
    return mask


def encode(mask):
    code = mask_coding.encode(np.asfortranarray(mask))
    return {**code, "counts": code["counts"].decode()}


def write(box, form):
    """The same rectangle as compressed run lengths, as plain ones or as a polygon."""
    mask = draw(box)
    if form == 0:
        return encode(mask)
    if form == 1:
        steps = np.flatnonzero(np.diff(mask.T.ravel().astype(int), prepend=0, append=0)).tolist()
        return {"size": [SIDE, SIDE], "counts": np.diff([0, *steps, SIDE * SIDE]).tolist()[: len(steps) + 1]}
    x, y, width, height = mask_coding.toBbox(encode(mask)).tolist()
    return [[x, y, x, y + height, x + width, y + height, x + width, y]]


def make_case(content, categories=3):
    """A COCO file and results of generated pictures."""
    images, annotations, results = [], [], []
    for number, (things, found) in enumerate(content):
        image_id = 50 - number
        images.append({"id": image_id, "height": SIDE, "width": SIDE})
        for box, label, crowd, area, form in things:
            entry = {"id": len(annotations) + 1, "image_id": image_id, "category_id": min(label, categories)}
            entry["bbox"] = mask_coding.toBbox(encode(draw(box))).tolist()
            entry["area"] = float(draw(box).sum()) if area is None else area
            annotations.append({**entry, "iscrowd": int(crowd), "segmentation": write(box, form)})
        for box, label, score, copies in found:
            code = encode(draw(box))
            entry = {"image_id": image_id, "category_id": min(label, categories), "score": score}
            results += [{**entry, "segmentation": code, "bbox": mask_coding.toBbox(code).tolist()}] * copies
    listed = [{"id": number, "name": str(number)} for number in range(1, categories + 1)]
    return {"images": images, "annotations": annotations, "categories": listed}, results


def load(content):
    truth = COCO()
    truth.dataset = copy.deepcopy(content)
    with stdout_in_log():
        truth.createIndex()
    complete_truth(truth, ("segm", "bbox"), "a test")
    return truth


def assert_equal_backends(content, results, iou_type, limits=LIMITS):
    fast, slow = (
        evaluate_coco(load(content), results, iou_type, max_dets=limits, backend=backend) for backend in BACKENDS
    )
    for key in ("precision", "recall"):
        assert fast.eval[key].shape == slow.eval[key].shape
        np.testing.assert_allclose(fast.eval[key], slow.eval[key], rtol=0, atol=1e-12)
    assert coco_figures(fast) == pytest.approx(coco_figures(slow), rel=0, abs=1e-10, nan_ok=True)
    for mine, theirs in zip(class_figures(fast), class_figures(slow), strict=True):
        assert mine == pytest.approx(theirs, rel=0, abs=1e-10, nan_ok=True)
    assert picture_overlaps(fast) == pytest.approx(picture_overlaps(slow), rel=0, abs=1e-12)
    return coco_figures(fast)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(pictures, min_size=1, max_size=3), st.sampled_from((1, 3)), st.sampled_from(("segm", "bbox")))
def test_backends_are_equal_on_generated_pictures(content, categories, iou_type):
    assert_equal_backends(*make_case(content, categories), iou_type)


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_backends_are_equal_at_a_thousand_detections_with_ties(iou_type):
    generator = np.random.default_rng(0)
    content = []
    for _ in range(2):
        things = [((x, 5 * x, 4, 4), 1 + x % 3, x == 3, None, x % 3) for x in range(8)]
        found = []
        for _ in range(1100):
            x, dx, dy = generator.integers((8, 3, 3))
            score = round(generator.uniform(), 2)
            found.append(((int(x + dx), int(5 * x + dy), 4, 4), 1 + int(generator.integers(3)), score, 1))
        content.append((things, found))
    for categories in (1, 3):
        figures = assert_equal_backends(*make_case(content, categories), iou_type)
        assert figures["AR@1000"] > figures["AR@100"] > figures["AR@10"] > 0


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools 2.0.11 decoding with numpy 2
@pytest.mark.parametrize("agnostic", [True, False])
@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_backends_are_equal_on_photographs(shared_data, agnostic, iou_type):
    content = json.loads((shared_data / "coco64" / "instances.json").read_text())
    assert any(entry["iscrowd"] for entry in content["annotations"])
    if agnostic:
        content["categories"] = [{"id": 1, "name": "object"}]
        content["annotations"] = [{**entry, "category_id": 1} for entry in content["annotations"]]
    truth, generator, results = load(content), np.random.default_rng(0), []
    for entry in truth.dataset["annotations"]:
        mask = truth.annToMask(entry)
        for _ in range(2):
            code = encode(np.roll(mask, generator.integers(0, 9, 2), axis=(0, 1)))
            found = {"image_id": entry["image_id"], "category_id": entry["category_id"], "segmentation": code}
            results.append({**found, "score": round(generator.uniform(), 1), "bbox": mask_coding.toBbox(code).tolist()})
    assert 10 < assert_equal_backends(content, results, iou_type)["AP"] < 90


@pytest.mark.parametrize("backend", BACKENDS)
def test_worked_example(backend):
    # two objects; the first is found exactly, after a wrong one, the second with IoU 60 / 100
    things = [((0, 0, 10, 10), 1, False, None, 0), ((50, 50, 10, 10), 1, False, None, 0)]
    found = [((80, 0, 5, 5), 1, 0.9, 1), ((0, 0, 10, 10), 1, 0.8, 1), ((50, 50, 10, 6), 1, 0.7, 1)]
    content, results = make_case([(things, found)], 1)
    evaluation = evaluate_coco(load(content), results, "segm", backend=backend)
    figures = coco_figures(evaluation)
    # at IoU 0.5, 0.55 and 0.6 precision is 2/3 for all recalls; at the other seven 1/2 up to recall 0.5, 51 of 101
    assert figures["AP50"] == pytest.approx(100 * 2 / 3)
    assert figures["AP75"] == pytest.approx(100 * 51 / 101 / 2)
    assert figures["AP"] == pytest.approx(100 * (0.3 * 2 / 3 + 0.7 * 51 / 101 / 2))
    assert figures["AR@100"] == figures["AR@10"] == pytest.approx(65)
    assert figures["AR@1"] == 0
    assert figures["APs"] == figures["AP"]
    assert np.isnan(figures["APm"])
    assert class_figures(evaluation) == [pytest.approx({"AP": figures["AP"], "AR@100": 65})]
    assert picture_overlaps(evaluation) == {50: pytest.approx(0.8)}


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_detections_change_no_figure_at_fewer(backend):
    generator = np.random.default_rng(1)
    things = [((x, 3 * x, 4, 4), 1, False, None, 0) for x in range(30)]
    found = []
    for _ in range(300):
        x, shift = (int(number) for number in generator.integers((30, 3)))
        found.append(((x + shift, 3 * x, 4, 4), 1, round(generator.uniform(), 1), 1))
    content, results = make_case([(things, found)], 1)
    few, many = (
        coco_figures(evaluate_coco(load(content), results, "segm", max_dets=limits, backend=backend))
        for limits in ((1, 10, 100), LIMITS)
    )
    assert {key: many[key] for key in few} == pytest.approx(few, rel=0, abs=0, nan_ok=True)
    assert set(many) - set(few) == {
        *(f"AP{kind}@{limit}" for kind in ("", "50", "75", "s", "m", "l") for limit in (100, 1000)),
        *(f"AR{kind}@1000" for kind in ("", "s", "m", "l")),
    }
    assert many["AP@100"] == many["AP"] < many["AP@1000"]


def test_picture_overlaps_leave_out_crowds_and_pictures_without_objects():
    crowd = ((0, 0, 50, 50), 1, True, None, 0)
    content, results = make_case(
        [
            ([crowd, ((60, 60, 10, 10), 2, False, None, 0)], [((60, 60, 10, 5), 1, 0.9, 1)]),  # of another class
            ([crowd], [((0, 0, 9, 9), 1, 0.9, 1)]),
            (
                [((0, 0, 10, 10), 1, False, None, 0), ((30, 30, 10, 10), 3, False, None, 0)],
                [((0, 0, 10, 5), 1, 0.1, 2)],
            ),
        ]
    )
    for backend in BACKENDS:
        assert picture_overlaps(evaluate_coco(load(content), results, "segm", backend=backend)) == {48: 0.25, 50: 0.0}


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_categories_asked_for_count(backend):
    things = [((0, 0, 10, 10), 1, False, None, 0), ((30, 30, 10, 10), 3, False, None, 0)]
    content, results = make_case([(things, [((0, 0, 10, 10), 1, 0.9, 1)])])
    settings = {"backend": backend, "category_ids": [1]}
    evaluation = evaluate_coco(load(content), results, "segm", **settings)
    assert coco_figures(evaluation)["AP"] == pytest.approx(100)
    assert picture_overlaps(evaluation) == {50: 1.0}


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"image_id": 7}, "got image_id 7"), ({"category_id": 9}, "got category_id 9")],
)
def test_predictions_of_another_data_set(changed, message):
    content, results = make_case([([], [((0, 0, 10, 10), 1, 0.9, 1)])])
    with pytest.raises(ValueError, match=message):
        evaluate_coco(load(content), [results[0] | changed], "segm")


def test_predictions_are_left_as_they_are():
    content, results = make_case([([((0, 0, 10, 10), 1, False, None, 0)], [((0, 0, 10, 10), 1, 0.9, 3)])])
    before = copy.deepcopy(results)
    for backend in BACKENDS:
        evaluate_coco(load(content), results, "segm", backend=backend)
        evaluate_coco(load(content), results, "bbox", backend=backend)
    assert results == before
