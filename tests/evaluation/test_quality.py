from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.detection import PanopticQuality

from s2uniseg_d2.evaluation.quality import PanopticStats, measure_overlaps, panoptic_quality
from tests.oracles.panoptic_slow import slow_panoptic_quality


def strip(*runs):
    """A one-row map from (id, pixels) runs."""
    return np.concatenate([np.full(pixels, number) for number, pixels in runs])[None]


def counts(stats, category=1):
    c = stats.of(category)
    return c.tp, c.fp, c.fn, c.iou


def quality(predicted_map, predicted, truth_map, truth):
    predicted = [{"id": i, "category_id": c} for i, c in predicted.items()]
    return panoptic_quality(predicted_map, predicted, truth_map, truth, {1, 2, 3})


def test_worked_example():
    # truth 8 + 12 pixels, prediction 6 + 14: IoU 6/8 and 12/14
    truth = [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 2}]
    stats = quality(strip((5, 6), (6, 14)), {5: 1, 6: 2}, strip((1, 8), (2, 12)), truth)
    assert counts(stats, 1) == (1, 0, 0, 6 / 8)
    assert counts(stats, 2) == (1, 0, 0, 12 / 14)
    assert stats.summary().pq == pytest.approx((6 / 8 + 12 / 14) / 2)
    assert stats.summary([2]).sq == 12 / 14
    assert stats.summary().categories == 2


def test_iou_of_one_half_is_no_match():
    truth = [{"id": 1, "category_id": 1}]
    stats = quality(strip((5, 10)), {5: 1}, strip((1, 5), (9, 5)), truth)  # 9 is not listed: neither void nor segment
    assert counts(stats) == (0, 1, 1, 0.0)
    assert counts(quality(strip((5, 10)), {5: 1}, strip((1, 6), (9, 4)), truth)) == (1, 0, 0, 0.6)


def test_void_leaves_the_union_and_excuses_more_than_half():
    truth = [{"id": 1, "category_id": 1}]
    # 4 pixels of the prediction on void: IoU 5/6, not 5/10
    assert counts(quality(strip((5, 5), (0, 1), (5, 4)), {5: 1}, strip((1, 6), (0, 4)), truth)) == (1, 0, 0, 5 / 6)
    # half on void is still a mistake, more than half is none
    for pixels, mistakes in ((4, 1), (5, 0)):
        stats = quality(strip((5, 4 + pixels)), {5: 2}, strip((1, 4), (0, pixels)), truth)
        assert counts(stats, 2) == (0, mistakes, 0, 0.0)
        assert counts(stats, 1) == (0, 0, 1, 0.0)


def test_crowd_is_neither_matched_nor_missed_and_excuses_its_category_only():
    truth = [{"id": 1, "category_id": 1, "iscrowd": 1}]
    assert counts(quality(strip((5, 10)), {5: 1}, strip((1, 10)), truth)) == (0, 0, 0, 0.0)
    assert counts(quality(strip((5, 10)), {5: 2}, strip((1, 10)), truth), 2) == (0, 1, 0, 0.0)
    # 3 on void and 3 on the crowd together are more than half of 10
    assert counts(quality(strip((5, 10)), {5: 1}, strip((1, 3), (0, 3), (9, 4)), truth)) == (0, 0, 0, 0.0)


def test_absent_categories_do_not_count_and_void_predictions_are_misses():
    truth = [{"id": 1, "category_id": 1}]
    stats = quality(strip((0, 10)), {}, strip((1, 10)), truth)
    assert counts(stats) == (0, 0, 1, 0.0)
    assert stats.summary() == (0.0, 0.0, 0.0, 1)
    assert stats.summary([2]).categories == 0
    assert np.isnan(stats.summary([2]).pq)
    assert (stats.of(3).pq, stats.summary()) == (0.0, (0.0, 0.0, 0.0, 1))  # asked for, yet nothing counted
    right = quality(strip((5, 10)), {5: 1}, strip((1, 10)), truth)
    right.of(3)
    assert right.summary() == (1.0, 1.0, 1.0, 1)
    # SQ of a category without a match is 0, not left out
    both = quality(strip((0, 10), (5, 10)), {5: 2}, strip((1, 10), (2, 10)), [*truth, {"id": 2, "category_id": 2}])
    assert both.summary() == (0.5, 0.5, 0.5, 2)


def test_pictures_add_up():
    truth = [{"id": 1, "category_id": 1}]
    total = PanopticStats()
    for pixels in (6, 8, 2):
        total.add(quality(strip((5, pixels), (0, 10 - pixels)), {5: 1}, strip((1, 10)), truth))
    assert counts(total) == pytest.approx((2, 1, 1, 1.4))
    assert total.summary().pq == pytest.approx(1.4 / 3)
    assert total.summary().sq == pytest.approx(0.7)
    assert total.summary().rq == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("predicted", "segments", "message"),
    [
        (strip((5, 9)), {5: 1}, r"predicted_map must have the truth's size \(1, 10\), got \(1, 9\)"),
        (strip((5, 5), (6, 5)), {5: 1}, r"must list every id of the map, got none for \[6\]"),
        (strip((5, 10)), {5: 1, 6: 1}, r"must have pixels in the map, got none for \[6\]"),
        (strip((5, 10)), {5: 7}, r"must be of known categories, got \[7\]"),
        (strip((5, 10)), {5: 1, 0: 1}, "different ids other than 0"),
        (strip((-1, 10)), {5: 1}, r"ids in \[0, 2\^31\), got -1 to -1"),
    ],
)
def test_bad_predictions(predicted, segments, message):
    with pytest.raises(ValueError, match=message):
        quality(predicted, segments, strip((1, 10)), [{"id": 1, "category_id": 1}])


def test_overlaps_count_every_pixel_once():
    overlaps = measure_overlaps(strip((5, 3), (0, 2)), strip((0, 1), (1, 4)))
    assert list(zip(*(column.tolist() for column in overlaps), strict=True)) == [(0, 5, 1), (1, 0, 2), (1, 5, 2)]


def random_picture(generator, categories, *, void):
    """Blocky random maps, at least ``void`` as the lowest id, with segments for all other ids."""
    ids = np.kron(generator.integers(void, 9, (4, 5)), np.ones((4, 3), dtype=np.int64))
    noise = generator.uniform(size=ids.shape) < 0.1
    ids[noise] = generator.integers(void, 9, noise.sum())
    listed = [int(i) for i in np.unique(ids) if i]
    return ids, [{"id": i, "category_id": int(generator.choice(categories))} for i in listed]


@pytest.fixture
def double_precision():
    """Torchmetrics divides integers, whose quotients are of the default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double_precision")
def test_equal_to_torchmetrics_where_both_define_the_same():
    # without crowds, and without void in the prediction, which torchmetrics also takes out of the union
    generator = np.random.default_rng(3)
    things, stuff = [1, 2], [3, 4]
    metric, mean = (
        PanopticQuality({1, 2}, {3, 4}, allow_unknown_preds_category=True, return_sq_and_rq=True, return_per_class=each)
        for each in (True, False)
    )
    total = PanopticStats()
    for _ in range(25):
        truth_map, truth = random_picture(generator, [1, 2], void=0)
        predicted_map = np.where(generator.uniform(size=truth_map.shape) < 0.1, truth_map % 8 + 1, truth_map)
        predicted_map[predicted_map == 0] = 9
        category = {s["id"]: s["category_id"] for s in truth}
        predicted = [{"id": int(i), "category_id": category.get(int(i), 1)} for i in np.unique(predicted_map)]
        total.add(panoptic_quality(predicted_map, predicted, truth_map, truth, things + stuff))
        colour = {s["id"]: s["category_id"] for s in predicted}
        pair = [
            np.stack([np.vectorize(lambda i, table=table: table.get(i, 99))(ids), ids], axis=-1)
            for ids, table in ((predicted_map, colour), (truth_map, category))
        ]
        for updated in (metric, mean):
            updated.update(*(torch.as_tensor(ids)[None] for ids in pair))
    for column, number in enumerate(things):
        c = total.of(number)
        assert c.tp > 20
        assert c.fp > 2
        whole = (metric.true_positives, metric.false_positives, metric.false_negatives)
        assert [c.tp, c.fp, c.fn] == [values[column].item() for values in whole]
        assert c.iou == pytest.approx(metric.iou_sum[column].item(), rel=0, abs=1e-12)
        assert (c.pq, c.sq, c.rq) == pytest.approx(metric.compute()[column].tolist(), rel=0, abs=1e-9)
    # categories 3 and 4 are absent: in no mean here, nor there
    assert total.summary()[:3] == pytest.approx(mean.compute().tolist(), rel=0, abs=1e-9)


@pytest.fixture(scope="module")
def photographs(shared_data):
    folder = shared_data / "panoptic2"
    content = json.loads((folder / "panoptic.json").read_text())
    pictures = []
    for entry in content["annotations"]:
        colours = np.asarray(Image.open(folder / "panoptic" / entry["file_name"]), dtype=np.int64)
        pictures.append((colours @ [1, 256, 65536], entry["segments_info"]))
    return pictures, {c["id"]: c["isthing"] for c in content["categories"]}


def total_of(pictures, categories):
    total = PanopticStats()
    for picture in pictures:
        total.add(panoptic_quality(*picture, categories))
    return total


def test_truth_as_prediction_is_perfect(photographs):
    pictures, categories = photographs
    exact = [(ids, [s for s in segments if s["area"]], ids, segments) for ids, segments in pictures]
    assert total_of(exact, categories).summary()[:3] == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("seed", range(4))
def test_perturbed_photographs_equal_the_slow_rules(photographs, seed):
    pictures, categories = photographs
    generator = np.random.default_rng(seed)
    perturbed = []
    for truth_map, truth in pictures:
        predicted_map = np.roll(truth_map, generator.integers(0, 8, 2), axis=(0, 1))
        size = predicted_map[60:200, 80:300].shape
        predicted_map[60:200, 80:300] = 7 if seed % 2 else 0
        predicted_map[60:70, 80:90] = generator.choice([s["id"] for s in truth], (1, 1))
        category = {s["id"]: s["category_id"] for s in truth} | {7: 1}
        assert size == (140, 220)
        ids = [int(i) for i in np.unique(predicted_map) if i]
        predicted = [{"id": i, "category_id": category[i] if generator.uniform() < 0.8 else 184} for i in ids]
        perturbed.append((predicted_map, predicted, truth_map, truth))
    total = total_of(perturbed, categories)
    expected = slow_panoptic_quality(perturbed, categories)
    for group, kind in (("All", None), ("Things", 1), ("Stuff", 0)):
        chosen = None if kind is None else [c for c, is_thing in categories.items() if is_thing == kind]
        assert total.summary(chosen)[:3] == pytest.approx(expected[group], abs=1e-12)
    assert 0.05 < total.summary().pq < 0.95


def test_random_maps_with_void_and_crowds_equal_the_slow_rules():
    generator = np.random.default_rng(11)
    categories = {1: 1, 2: 1, 3: 0}
    for _ in range(60):
        truth_map, truth = random_picture(generator, [1, 2, 3], void=0)
        for segment in truth:
            segment["iscrowd"] = int(generator.uniform() < 0.2)
        predicted_map = np.where(generator.uniform(size=truth_map.shape) < 0.3, truth_map[::-1], truth_map)
        ids = [int(i) for i in np.unique(predicted_map) if i]
        predicted = [{"id": i, "category_id": int(generator.integers(1, 4))} for i in ids]
        picture = (predicted_map, predicted, truth_map, truth)
        expected = slow_panoptic_quality([picture], categories)["All"]
        assert total_of([picture], categories).summary()[:3] == pytest.approx(expected, abs=1e-12)
