"""What the field uses instead of UniAP, on the same features; for bm_uniap.py and plain enough to be checked by eye.

Each function takes a map ``(d, rows, columns)`` of float32 and returns labels or masks on the grid.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.ndimage import label

Map = NDArray[np.float32]
# MaskCut's threshold on cosines, and the affinity of pairs below it.
CUT_THRESHOLD = 0.15
FAINT = 1e-5


def unit_rows(features: Map) -> Map:
    """Return the tokens as rows of unit length, ``(rows * columns, d)``."""
    rows = np.ascontiguousarray(features.reshape(features.shape[0], -1).T)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def merge_greedily(features: Map, taus: Sequence[float]) -> NDArray[np.int64]:
    """Return the partition ``(len(taus), rows, columns)`` at each threshold: the most similar neighbours merge first.

    The conquer step of UnSAM's divide-and-conquer: the adjacent pair with the largest cosine merges as long as that
    reaches τ, and the new region's feature is the mean of its tokens' unit features. All pairs wait in one heap; those
    whose ends have changed meanwhile are dropped when they come up.

    Args:
        features: ``(d, rows, columns)``.
        taus: thresholds, decreasing.
    """
    shape = features.shape[1:]
    sums = unit_rows(features)
    unit = sums.copy()
    tails, heads = _neighbours(shape)
    neighbours: list[set[int]] = [set() for _ in range(len(sums))]
    for i, j in zip(tails.tolist(), heads.tolist(), strict=True):
        neighbours[i].add(j)
        neighbours[j].add(i)
    # Only the feature changes what a pair is worth: a region's number of merges tells an old pair from a new one.
    version = [0] * len(sums)
    cosines = np.einsum("ed,ed->e", unit[tails], unit[heads])
    heap = [(-s, i, j, 0, 0) for s, i, j in zip(cosines.tolist(), tails.tolist(), heads.tolist(), strict=True)]
    heapq.heapify(heap)
    parent = np.arange(len(sums))
    partitions = []
    for tau in taus:
        while heap and -heap[0][0] >= tau:
            _, i, j, version_i, version_j = heapq.heappop(heap)
            if version[i] != version_i or version[j] != version_j:
                continue
            if len(neighbours[i]) < len(neighbours[j]):
                i, j = j, i
            _absorb(i, j, neighbours)
            parent[j] = i
            version[i] += 1
            version[j] = -1
            sums[i] += sums[j]
            unit[i] = sums[i] / np.sqrt(sums[i] @ sums[i])
            around = list(neighbours[i])
            now = version[i]
            for k, s in zip(around, (unit[around] @ unit[i]).tolist(), strict=True):
                heapq.heappush(heap, (-s, i, k, now, version[k]))
        parent = _roots(parent)
        partitions.append(parent.reshape(shape).copy())
    return np.stack(partitions)


def merge_by_scanning(features: Map, taus: Sequence[float]) -> NDArray[np.int64]:
    """Return what :func:`merge_greedily` returns, looking through all pairs for the most similar one before each merge.

    The plain form of iterative merging: no heap, one array of similarities, of which those of the new region are
    computed anew.

    Args:
        features: ``(d, rows, columns)``.
        taus: thresholds, decreasing.
    """
    shape = features.shape[1:]
    sums = unit_rows(features)
    unit = sums.copy()
    tails, heads = _neighbours(shape)
    cosines = np.einsum("ed,ed->e", unit[tails], unit[heads])
    parent = np.arange(len(sums))
    partitions = []
    for tau in taus:
        while len(cosines) and cosines[best := int(cosines.argmax())] >= tau:
            i, j = int(tails[best]), int(heads[best])
            parent[j] = i
            sums[i] += sums[j]
            unit[i] = sums[i] / np.sqrt(sums[i] @ sums[i])
            tails[tails == j] = i
            heads[heads == j] = i
            cosines[tails == heads] = -np.inf
            touched = np.flatnonzero(((tails == i) | (heads == i)) & (tails != heads))
            cosines[touched] = unit[np.where(tails[touched] == i, heads[touched], tails[touched])] @ unit[i]
        parent = _roots(parent)
        partitions.append(parent.reshape(shape).copy())
    return np.stack(partitions)


def cut_masks(features: Map, count: int = 3, threshold: float = CUT_THRESHOLD) -> NDArray[np.bool_]:
    """Return ``(count, rows, columns)`` masks, each from a dense normalised cut of what the ones before left over.

    MaskCut's recipe: affinities are 1 where the cosine exceeds the threshold and 1e-5 elsewhere; the second smallest
    eigenvector of (D − A) x = λ D x, in float64, is split at its mean; the connected part that holds the eigenvector's
    largest entry is the object, which leaves the graph before the next cut.

    Args:
        features: ``(d, rows, columns)``.
        count: number of cuts.
        threshold: see above.
    """
    shape = features.shape[1:]
    cosines = unit_rows(features)
    cosines = cosines @ cosines.T
    left = np.ones(len(cosines), dtype=bool)
    masks = []
    for _ in range(count):
        near = (cosines > threshold) & left & left[:, None]
        affinity = np.where(near, 1.0, FAINT)
        degrees = affinity.sum(axis=1)
        laplacian = np.diag(degrees) - affinity
        vector = eigh(
            laplacian, np.diag(degrees), subset_by_index=[1, 1], overwrite_a=True, overwrite_b=True, check_finite=False
        )[1][:, 0]
        vector[~left] = 0
        seed = int(np.abs(vector).argmax())
        above = vector > vector[left].mean()
        side = (above if above[seed] else ~above) & left
        parts = label(side.reshape(shape))[0].ravel()
        mask = (parts == parts[seed]) & side
        masks.append(mask.reshape(shape))
        left &= ~mask
        if not left.any():
            break
    masks += [np.zeros(shape, dtype=bool)] * (count - len(masks))
    return np.stack(masks)


def cluster_by_ward(features: Map, clusters: int = 50) -> NDArray[np.int64]:
    """Return the labels ``(rows, columns)`` of scikit-learn's Ward clustering along the grid.

    Args:
        features: ``(d, rows, columns)``.
        clusters: how many; all tokens if there are fewer.
    """
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.feature_extraction.image import grid_to_graph

    rows = unit_rows(features)
    shape = features.shape[1:]
    ward = AgglomerativeClustering(min(clusters, len(rows)), linkage="ward", connectivity=grid_to_graph(*shape))
    return ward.fit_predict(rows).reshape(shape)


def _neighbours(shape: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Both ends of every pair of tokens beside or below each other, numbered row by row."""
    index = np.arange(shape[0] * shape[1]).reshape(shape)
    tails = np.concatenate([index[:, :-1].ravel(), index[:-1].ravel()])
    return tails, np.concatenate([index[:, 1:].ravel(), index[1:].ravel()])


def _absorb(i: int, j: int, neighbours: list[set[int]]) -> None:
    """Hand the neighbours of j to i."""
    for k in neighbours[j]:
        neighbours[k].discard(j)
        if k != i:
            neighbours[k].add(i)
            neighbours[i].add(k)
    neighbours[j] = set()


def _roots(parent: NDArray[np.int64]) -> NDArray[np.int64]:
    while not np.array_equal(parent, parent[parent]):
        parent = parent[parent]
    return parent
