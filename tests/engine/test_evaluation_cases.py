from __future__ import annotations

import pytest

from s2uniseg_d2.engine.evaluation_cases import choose_cases


def test_best_median_and_worst():
    scores = dict(zip("abcdefg", [0.3, 0.9, 0.0, 0.5, 0.5, 0.7, 0.1], strict=True))
    chosen = choose_cases(scores, 2)
    assert chosen == {"best": ["b", "f"], "median": ["a", "d"], "worst": ["c", "g"]}
    assert choose_cases(scores, 1)["median"] == ["d"]


def test_ties_go_by_order_and_few_pictures_are_shown_all():
    assert choose_cases({3: 0.5, 1: 0.5}, 1) == {"best": [3], "median": [3], "worst": [3]}
    assert choose_cases({3: 0.5, 1: 0.4}, 4)["worst"] == [1, 3]
    assert choose_cases({}, 2) == {"best": [], "median": [], "worst": []}
    with pytest.raises(ValueError, match="count must be at least 1"):
        choose_cases({}, 0)
