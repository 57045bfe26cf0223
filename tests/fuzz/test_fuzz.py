"""Bad input of every kind succeeds or is refused by name; and the harness would tell otherwise."""

import json

import numpy as np
import pytest
from hypothesis import strategies as st

from s2uniseg_d2.data.coco_json import read_json
from s2uniseg_d2.data.pictures import read_picture
from tests.fuzz.harness import Target, end_of, is_ours, try_target
from tests.fuzz.targets import TARGETS, cases_of

SHORT = 1000


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_bad_input_is_refused_by_name(target):
    count = cases_of(target, SHORT)
    ends = try_target(target, count, seed=0)
    assert ends.total() >= count
    assert ends["refused"] > 0


def test_a_thousand_cases_are_tried():
    assert sum(cases_of(target, SHORT) for target in TARGETS) >= SHORT
    assert sum(cases_of(target, 10_000) for target in TARGETS) >= 10_000


def raise_type_error(case, folder):
    return np.zeros(2) + {}


def raise_librarys_value_error(case, folder):
    return json.loads("{")


def raise_numpys_value_error(case, folder):
    return np.zeros(3).reshape(2, 2)


@pytest.mark.parametrize("run", [raise_type_error, raise_librarys_value_error, raise_numpys_value_error])
def test_an_error_of_others_is_a_failure(run):
    target = Target("bad", st.just(0), run, 1)
    with pytest.raises((TypeError, ValueError)):
        try_target(target, 3, seed=0)


def test_only_raised_words_of_the_package_count(tmp_path):
    for call in (lambda: read_json(tmp_path / "none"), lambda: read_picture(tmp_path / "none")):
        with pytest.raises(ValueError, match="cannot read") as caught:
            call()
        assert is_ours(caught.value)
    with pytest.raises(ValueError, match="x") as caught:
        raise ValueError("x" * 30)
    assert not is_ours(caught.value)
    assert end_of(Target("good", st.just(0), lambda case, folder: folder.exists(), 1), 0) == "succeeded"
