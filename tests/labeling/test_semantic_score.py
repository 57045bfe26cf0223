from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from s2uniseg_d2.core.clustering import spherical_kmeans
from s2uniseg_d2.labeling import semantic_score
from s2uniseg_d2.labeling.semantic_score import SemanticScore

VOID = 2  # with two classes


def half(rows=slice(None), columns=slice(None)):
    mask = np.zeros((4, 4), bool)
    mask[rows, columns] = True
    return mask


LEFT, RIGHT = half(columns=slice(0, 2)), half(columns=slice(2, 4))
TRUTH = np.where(LEFT, 0, 1)


def score_one(masks, levels, embeddings, truth=TRUTH, **settings):
    score = SemanticScore(["a", "b"], **settings)
    score.add(masks, np.asarray(levels), torch.tensor(embeddings, dtype=torch.float32), truth)
    return score.figures("here")


def test_masks_that_fit_their_classes_have_an_iou_of_100():
    figures = score_one([LEFT, RIGHT], [0, 0], [[0, 1], [1, 0]])
    assert {figures[f"{name}_{way}"] for name in ("mIoU", "PixelAcc") for way in ("hungarian", "majority")} == {100.0}


def test_pixels_without_a_mask_are_wrong_and_pixels_without_truth_count_nowhere():
    top_right = half(slice(0, 2), slice(2, 4))
    figures = score_one([LEFT, top_right], [0, 0], [[0, 1], [1, 0]])
    # class a 8 of 8; class b 4 of 8
    assert figures["mIoU_hungarian"] == pytest.approx(100 * (1 + 4 / 8) / 2)
    assert figures["PixelAcc_hungarian"] == pytest.approx(100 * 12 / 16)
    truth = TRUTH.copy()
    truth[2:, 2:] = VOID
    assert score_one([LEFT, top_right], [0, 0], [[0, 1], [1, 0]], truth)["mIoU_hungarian"] == 100.0
    assert score_one([LEFT, half()], [0, 0], [[0, 1], [1, 0]], truth)["mIoU_majority"] == pytest.approx(50 * 8 / 12)


def test_the_coarsest_mask_covers_a_pixel_and_levels_are_reported():
    figures = score_one([LEFT, RIGHT, half()], [0, 0, 2], [[0, 1, 0], [1, 0, 0], [0, 0, 1]])
    assert figures["mIoU_hungarian-level_0"] == figures["mIoU_hungarian-level_1"] == 100.0
    # one mask on all pixels is one class: 8 of 16, the other class 0
    assert figures["mIoU_hungarian-level_2"] == figures["mIoU_hungarian"] == pytest.approx(25.0)
    assert "mIoU_hungarian-level_3" not in figures


def test_one_to_one_leaves_a_cluster_over_where_majority_does_not():
    top, bottom = half(slice(0, 2), slice(0, 2)), half(slice(2, 4), slice(0, 2))
    rows = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    figures = score_one([top, bottom, RIGHT], [0, 0, 0], rows, num_clusters=3)
    assert figures["mIoU_majority"] == 100.0
    assert figures["mIoU_hungarian"] == pytest.approx((50 + 100) / 2)
    assert figures["PixelAcc_hungarian"] == pytest.approx(75)


def test_embeddings_join_masks_of_different_pictures():
    score = SemanticScore(["a", "b"])
    swapped = 1 - TRUTH
    for truth, rows in ((TRUTH, [[0, 1.0], [1, 0.1]]), (swapped, [[1.0, 0], [0.1, 1]])):
        score.add([LEFT, RIGHT], np.zeros(2, dtype=np.int64), torch.tensor(rows), truth)
    figures = score.figures("here")
    assert figures["mIoU_hungarian"] == 100.0
    # what embeddings say is lost when they are shuffled; with this seed two masks change sides
    assert figures["mIoU_hungarian_shuffled"] < 60


def test_few_masks_with_a_cluster_each_are_remembered_and_the_shuffled_figure_says_so():
    figures = score_one([LEFT, RIGHT], [0, 0], [[0, 1], [1, 0]])
    assert figures["mIoU_hungarian_shuffled"] == 100.0


def test_a_mask_counts_by_the_pixels_that_it_shows(monkeypatch):
    seen = []

    def cluster(rows, count, *, weights, seed):
        seen.append(weights.tolist())
        return spherical_kmeans(rows, count, weights=weights, seed=seed)

    monkeypatch.setattr(semantic_score, "spherical_kmeans", cluster)
    score_one([LEFT, half(0)], [0, 0], [[0, 1], [1, 0]])
    assert seen[0] == [6.0, 4.0]


def test_clusters_are_as_many_as_the_truth_holds_classes():
    score = SemanticScore([str(i) for i in range(50)])
    assert score.num_clusters == 1
    score.add([LEFT], np.zeros(1, dtype=np.int64), torch.eye(1), np.where(LEFT, 7, 50))
    score.add([LEFT], np.zeros(1, dtype=np.int64), torch.eye(1), np.where(LEFT, 7, 9))
    assert score.num_clusters == 2
    assert SemanticScore(["a"], num_clusters=27).num_clusters == 27


@pytest.mark.parametrize("seed", range(4))
def test_equals_painting_cluster_maps(seed):
    generator = np.random.default_rng(seed)
    kinds, classes = 5, 4
    score = SemanticScore([str(i) for i in range(classes)], num_clusters=kinds)
    votes = np.zeros((kinds + 1, classes + 1), dtype=np.int64)
    for _ in range(6):
        count = int(generator.integers(0, 9))
        masks, kind = generator.random((count, 7, 9)) > 0.6, generator.integers(0, kinds, count)
        levels, truth = np.sort(generator.integers(0, 3, count)), generator.integers(0, classes + 1, (7, 9))
        score.add(masks, levels, torch.eye(kinds)[torch.from_numpy(kind)], truth)
        painted = np.full((7, 9), kinds)
        for mask, label in zip(masks, kind, strict=True):
            painted[mask] = label
        np.add.at(votes, (painted, truth), 1)
    rows, columns = linear_sum_assignment(votes[:kinds, :classes], maximize=True)
    ious = []
    for label in range(classes):
        true = votes[:, label].sum()
        cluster = rows[columns == label]
        right = votes[cluster, label].sum()
        ious.append(right / (true + votes[cluster, :classes].sum() - right))
    figures = score.figures("here")
    assert figures["mIoU_hungarian"] == pytest.approx(100 * np.mean(ious))
    assert figures["PixelAcc_hungarian"] == pytest.approx(100 * votes[rows, columns].sum() / votes[:, :classes].sum())


def test_nothing_found_is_zero_and_no_truth_is_nan(caplog):
    none = np.zeros(0, dtype=np.int64)
    assert score_one([], none, np.zeros((0, 3)))["mIoU_hungarian"] == 0.0
    assert "votes for a class" in caplog.text
    assert np.isnan(score_one([LEFT], [0], [[1.0]], np.full((4, 4), VOID))["mIoU_hungarian"])
    assert np.isnan(SemanticScore(["a"]).figures("nowhere")["mIoU_majority"])


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="classes must name at least one"):
        SemanticScore([])
    with pytest.raises(ValueError, match="num_clusters must be at least 1, got 0"):
        SemanticScore(["a"], num_clusters=0)
    with pytest.raises(ValueError, match=r"levels must not decrease, got \[1, 0\]"):
        score_one([LEFT, RIGHT], [1, 0], [[0, 1], [1, 0]])
