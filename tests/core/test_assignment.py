from __future__ import annotations

import itertools

import numpy as np
import pytest

from s2uniseg_d2.core.assignment import (
    STRATEGIES,
    hungarian_assignment,
    hungarian_then_majority_assignment,
    majority_assignment,
    relabel,
)


def test_strategies_differ_where_one_class_is_wanted_twice():
    counts = np.array([[10, 8], [9, 0], [0, 0]])
    assert hungarian_assignment(counts).tolist() == [1, 0, -1]
    assert majority_assignment(counts).tolist() == [0, 0, -1]


def test_diagonal_is_the_identity():
    counts = np.diag([3, 1, 4])
    assert hungarian_assignment(counts).tolist() == majority_assignment(counts).tolist() == [0, 1, 2]


@pytest.mark.parametrize("shape", [(3, 3), (5, 3), (3, 5), (4, 1), (1, 4)])
def test_hungarian_collects_as_many_votes_as_any_one_to_one_assignment(shape):
    generator = np.random.default_rng(sum(shape))
    for _ in range(10):
        counts = generator.integers(0, 6, shape) * generator.integers(0, 2, shape)
        assignment = hungarian_assignment(counts)
        taken = assignment[assignment >= 0]
        assert len(set(taken.tolist())) == len(taken)
        assert (counts[np.flatnonzero(assignment >= 0), taken] > 0).all()
        table = counts if shape[0] <= shape[1] else counts.T
        best = max(
            sum(table[row, column] for row, column in enumerate(columns))
            for columns in itertools.permutations(range(table.shape[1]), table.shape[0])
        )
        assert counts[np.flatnonzero(assignment >= 0), taken].sum() == best


def test_the_third_strategy_completes_the_first():
    # one to one: 0 -> 1, 1 -> 0; left over: 2 joins its majority, 3 has no vote
    counts = np.array([[10, 8], [9, 0], [1, 2], [0, 0]])
    assert hungarian_then_majority_assignment(counts).tolist() == [1, 0, 1, -1]
    assert majority_assignment(counts).tolist() == [0, 0, 1, -1]
    fewer = counts[:1].T.repeat(3, axis=1)  # fewer clusters than classes
    assert hungarian_then_majority_assignment(fewer).tolist() == hungarian_assignment(fewer).tolist()


def test_majority_takes_the_lowest_of_equal_classes():
    assert majority_assignment([[0, 7, 7], [2, 2, 2]]).tolist() == [1, 0]


@pytest.mark.parametrize("assign", STRATEGIES.values())
def test_empty_tables(assign):
    assert assign(np.zeros((0, 3))).shape == (0,)
    assert assign(np.zeros((3, 0))).tolist() == [-1, -1, -1]
    assert assign(np.zeros((2, 2))).tolist() == [-1, -1]
    assert assign(np.ones((2, 2))).dtype == np.int64


@pytest.mark.parametrize("assign", STRATEGIES.values())
@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (np.zeros(3), r"\(clusters, classes\) table, got shape \(3,\)"),
        (np.full((2, 2), -1), "not negative, got -1 to -1"),
        (np.array([[1.0, np.nan]]), "must be finite"),
        (np.array([["a"]]), "must be real numbers"),
    ],
)
def test_bad_counts(assign, counts, message):
    with pytest.raises(ValueError, match=message):
        assign(counts)


def test_relabel_maps_every_label_once_and_keeps_none():
    # in place and one after the other, 0 -> 1 -> 2 would end at 2 everywhere
    assert relabel(np.array([[0, 1, 2], [-1, 0, 3]]), [1, 2, 0, -1]).tolist() == [[1, 2, 0], [-1, 1, -1]]
    assert relabel(np.zeros((0,), dtype=np.int64), [1]).shape == (0,)
    with pytest.raises(ValueError, match=r"labels must lie in \[-1, 2\) for 2 clusters, got 2"):
        relabel(np.array([0, 2]), [0, 1])
    with pytest.raises(ValueError, match="got -2"):
        relabel(np.array([0, -2]), [0, 1])
