"""Which truth class every pseudo-class stands for, from a table of votes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

UNMATCHED = -1


def hungarian_assignment(counts: ArrayLike) -> NDArray[np.int64]:
    """Return the one-to-one assignment of clusters to classes that collects the most votes.

    STEGO's protocol (``UnsupervisedMetrics``): with more clusters than classes the clusters left over get no class,
    with fewer clusters some classes get no cluster. A pair without a single vote is no pair. The paper is silent on
    its strategy, so this one and :func:`majority_assignment` are reported side by side.

    Args:
        counts: ``(K, C)`` finite votes >= 0 of K clusters for C classes.

    Returns:
        ``(K,)`` class in [0, C) of every cluster, -1 for none. Between assignments of equal total the solver's choice
        stands; it depends on ``counts`` alone. O(K^2 C) at worst.

    Raises:
        ValueError: if ``counts`` is no table of finite votes >= 0.
    """
    votes = _check_counts(counts)
    assignment = np.full(len(votes), UNMATCHED, dtype=np.int64)
    clusters, classes = linear_sum_assignment(votes, maximize=True)
    voted = votes[clusters, classes] > 0
    assignment[clusters[voted]] = classes[voted]
    return assignment


def majority_assignment(counts: ArrayLike) -> NDArray[np.int64]:
    """Return for every cluster the class most of its votes name, many clusters to one class.

    This is what U2Seg's published code does under the name "Hungarian matching".

    Args:
        counts: ``(K, C)`` finite votes >= 0 of K clusters for C classes.

    Returns:
        ``(K,)`` class in [0, C) of every cluster, the lowest of those with equal votes, -1 where there is no vote.

    Raises:
        ValueError: if ``counts`` is no table of finite votes >= 0.
    """
    votes = _check_counts(counts)
    if votes.shape[1] == 0:
        return np.full(len(votes), UNMATCHED, dtype=np.int64)
    return np.where(votes.max(axis=1) > 0, votes.argmax(axis=1), UNMATCHED).astype(np.int64)


def hungarian_then_majority_assignment(counts: ArrayLike) -> NDArray[np.int64]:
    """Return the one-to-one assignment, completed by the majority class of every cluster that it leaves over.

    CUPS's protocol (``cups/metrics/panoptic_quality.py``): no class that :func:`hungarian_assignment` reaches can go
    without a cluster, as it can by majority alone, and no cluster with a vote goes unused. Differs from CUPS: a pair
    without a single vote is no pair, so no cluster is spent on a class that the truth does not hold.

    Args:
        counts: ``(K, C)`` finite votes >= 0 of K clusters for C classes.

    Returns:
        ``(K,)`` class in [0, C) of every cluster, -1 where there is no vote.

    Raises:
        ValueError: if ``counts`` is no table of finite votes >= 0.
    """
    assignment = hungarian_assignment(counts)
    return np.where(assignment == UNMATCHED, majority_assignment(counts), assignment)


STRATEGIES: dict[str, Callable[[ArrayLike], NDArray[np.int64]]] = {
    "hungarian": hungarian_assignment,
    "majority": majority_assignment,
    "hungarian_then_majority": hungarian_then_majority_assignment,
}


def relabel(labels: NDArray[np.integer], assignment: ArrayLike) -> NDArray[np.int64]:
    """Return the class of every label by one look-up, so that no label is mapped twice.

    Args:
        labels: clusters in [0, K), or -1 where there is none; any shape.
        assignment: ``(K,)`` class of every cluster, -1 for none.

    Returns:
        Same shape as ``labels``; -1 where the label or its class is -1.

    Raises:
        ValueError: if a label lies outside [-1, K).
    """
    table = np.append(np.asarray(assignment, dtype=np.int64), UNMATCHED)  # label -1 reads this last entry
    clusters = len(table) - 1
    labels = np.asarray(labels)
    if labels.size and not (labels.min() >= UNMATCHED and labels.max() < clusters):
        wrong = labels.min() if labels.min() < UNMATCHED else labels.max()
        raise ValueError(f"labels must lie in [-1, {clusters}) for {clusters} clusters, got {wrong}")
    relabelled: NDArray[np.int64] = table[labels]
    return relabelled


def _check_counts(counts: ArrayLike) -> NDArray[np.generic]:
    votes = np.asarray(counts)
    if votes.ndim != 2:
        raise ValueError(f"counts must be a (clusters, classes) table, got shape {votes.shape}")
    if not (np.issubdtype(votes.dtype, np.number) and np.isrealobj(votes)):
        raise ValueError(f"counts must be real numbers, got {votes.dtype}")
    if votes.size and not (np.isfinite(votes).all() and votes.min() >= 0):
        raise ValueError(f"counts must be finite and not negative, got {votes.min()} to {votes.max()}")
    return votes
