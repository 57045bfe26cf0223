from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks.uniap_baselines import cluster_by_ward, cut_masks, merge_by_scanning, merge_greedily


def at_angles(degrees: list[list[float]]) -> np.ndarray:
    """Plane vectors at these angles, of lengths that must not matter."""
    angles = np.deg2rad(np.array(degrees))
    lengths = 1 + np.arange(angles.size).reshape(angles.shape) % 3
    return (np.stack([np.cos(angles), np.sin(angles)]) * lengths).astype(np.float32)


def groups(labels: np.ndarray) -> list[int]:
    """Labels by first appearance."""
    numbers: dict[int, int] = {}
    return [numbers.setdefault(k, len(numbers)) for k in labels.ravel().tolist()]


def two_blobs(side: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    row, column = np.mgrid[:side, :side]
    first = (row - 3) ** 2 + (column - 3) ** 2 <= 5
    second = (row - 8) ** 2 + (column - 8) ** 2 <= 8
    features = np.zeros((4, side, side), np.float32)
    features[0, ~(first | second)] = features[1, first] = features[2, second] = 1
    noise = np.random.default_rng(0).normal(scale=0.05, size=features.shape)
    return features + noise.astype(np.float32), first, second


def test_greedy_merging_takes_the_most_similar_pair_first_and_then_the_mean():
    # 10° joins first. Its mean at 5° is 31° from the third: with its own 26° the third would have joined at 0.88.
    features = at_angles([[0, 10, 36, 90]])
    taus = [np.cos(np.deg2rad(a)) for a in (9, 11, 28, 32, 60)]
    partitions = merge_greedily(features, taus)
    assert [groups(p) for p in partitions] == [[0, 1, 2, 3], [0, 0, 1, 2], [0, 0, 1, 2], [0, 0, 0, 1], [0, 0, 0, 1]]
    # The mean of three tokens weighs the first two twice: at 15.3°, 74.7° from the last; of two means, 69.5°.
    assert groups(merge_greedily(features, [np.cos(np.deg2rad(72))])[0]) == [0, 0, 0, 1]
    assert groups(merge_greedily(features, [np.cos(np.deg2rad(76))])[0]) == [0, 0, 0, 0]


def test_greedy_merging_joins_neighbours_only():
    assert groups(merge_greedily(at_angles([[0, 90], [90, 0]]), [0.9])[0]) == [0, 1, 2, 3]
    assert groups(merge_greedily(at_angles([[0, 90], [0, 90]]), [0.9])[0]) == [0, 1, 0, 1]


def slow_greedy(features: np.ndarray, tau: float) -> np.ndarray:
    """All adjacent pairs anew before every merge."""
    rows = features.reshape(len(features), -1).T.astype(float)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    labels = np.arange(len(rows)).reshape(features.shape[1:])
    while True:
        pairs = {*zip(labels[:, 1:].flat, labels[:, :-1].flat, strict=True)}
        pairs |= {*zip(labels[1:].flat, labels[:-1].flat, strict=True)}
        sums = {k: rows[labels.ravel() == k].sum(axis=0) for k in np.unique(labels)}
        means = {k: total / np.linalg.norm(total) for k, total in sums.items()}
        best = max(((means[i] @ means[j], i, j) for i, j in pairs if i != j), default=(-2, 0, 0))
        if best[0] < tau:
            return labels
        labels[labels == best[1]] = best[2]


def test_greedy_merging_equals_the_slow_way():
    features = np.random.default_rng(1).normal(size=(6, 7, 9)).astype(np.float32) + 0.5
    taus = (0.8, 0.6, 0.4)
    partitions = merge_greedily(features, taus)
    assert len(np.unique(partitions[0])) > len(np.unique(partitions[2])) > 1
    for tau, partition in zip(taus, partitions, strict=True):
        assert groups(partition) == groups(slow_greedy(features, tau))


def test_normalised_cuts_find_the_blobs_one_after_the_other():
    features, first, second = two_blobs()
    masks = cut_masks(features, count=3)
    assert masks.shape == (3, 12, 12)
    found = [m.tolist() for m in masks]
    assert first.tolist() in found
    assert second.tolist() in found
    assert masks.sum(axis=0).max() == 1


def test_ward_gives_as_many_connected_clusters_as_asked():
    pytest.importorskip("sklearn")
    features, first, second = two_blobs()
    labels = cluster_by_ward(features, clusters=3)
    assert labels.shape == (12, 12)
    assert sorted(np.bincount(labels.ravel())) == sorted([first.sum(), second.sum(), (~(first | second)).sum()])
    assert len(np.unique(cluster_by_ward(features[:, :2, :2], clusters=50))) == 4
    # Like bands that do not touch stay apart, though the middle one varies more than they differ.
    bands = at_angles([[0, 0, 90, 94, 1, 1]] * 4)
    assert groups(cluster_by_ward(bands, clusters=3)) == [0, 0, 1, 1, 2, 2] * 4


def test_scanning_and_the_heap_merge_alike():
    features = np.random.default_rng(3).normal(size=(6, 9, 8)).astype(np.float32) + 0.4
    taus = (0.8, 0.5, 0.2)
    for scanned, heaped in zip(merge_by_scanning(features, taus), merge_greedily(features, taus), strict=True):
        assert groups(scanned) == groups(heaped)
        assert 1 < len(set(groups(scanned))) < 72
