from __future__ import annotations

import json

import numpy as np
import pytest

from s2uniseg_d2.evaluation import fit_mappings, load_mappings, load_panoptic_mappings, save_mappings
from s2uniseg_d2.evaluation.class_mapping import check_mappings

COUNTS = np.array([[5, 4], [3, 0], [0, 1]])


def test_mappings_survive_a_file(tmp_path):
    fitted = fit_mappings(COUNTS, ("hungarian", "majority", "hungarian_then_majority"), "some_split", ("cat", "dog"))
    assert [mapping.assignment.tolist() for mapping in fitted] == [[1, 0, -1], [0, 0, 1], [1, 0, 1]]
    save_mappings(tmp_path / "deep" / "mapping.json", fitted, ("cat", "dog"))
    loaded = load_mappings(tmp_path / "deep" / "mapping.json")
    for ours, theirs in zip(fitted, loaded, strict=True):
        assert ours.assignment.tolist() == theirs.assignment.tolist()
        assert (ours.name, ours.fitted_on, ours.votes) == (theirs.name, theirs.fitted_on, theirs.votes)
        assert ours.classes == theirs.classes == ("cat", "dog")
        assert theirs.provenance == {f"votes_{ours.name}-some_split": 13.0}
    assert check_mappings(loaded, 3, ["cat", "dog"]) == loaded


def test_no_vote_maps_nothing_and_says_so(caplog):
    (mapping,) = fit_mappings(COUNTS * 0, ("majority",), "some_split")
    assert "no prediction of some_split votes for a class: all 3 pseudo-classes go unmapped" in caplog.text
    assert mapping(np.array([0, 2, -1])).tolist() == [-1, -1, -1]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (
            ("cat", "cow"),
            "mapping 'majority' was fitted on a_split with other classes .*: class 1 is 'dog' there and 'cow'",
        ),
        (("cat", "dog", "cow"), "other classes than those evaluated: 2 there and 3 here"),
    ],
)
def test_other_classes_are_refused(classes, message):
    fitted = fit_mappings(COUNTS, ("majority",), "a_split", ("cat", "dog"))
    with pytest.raises(ValueError, match=message):
        check_mappings(fitted, 3, classes)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read class mappings .*absent.json: No such file or directory"):
        load_mappings(tmp_path / "absent.json")
    for text in ("{", "[]", '{"mappings": []}', '{"mappings": [{"name": "a"}], "classes": []}'):
        (tmp_path / "broken.json").write_text(text)
        with pytest.raises(ValueError, match=r"broken.json is not a file of class mappings"):
            load_mappings(tmp_path / "broken.json")


def test_things_and_stuff_must_be_of_the_same_strategies(tmp_path):
    for kind, strategies in (("things", ("majority",)), ("stuff", ("hungarian",))):
        fitted = fit_mappings(COUNTS, strategies, "a_split")
        save_mappings(tmp_path / f"class_mapping_panoptic_{kind}.json", fitted, ("a", "b"))
    with pytest.raises(ValueError, match=r"must be of the same strategies, got \[\['majority'\], \['hungarian'\]\]"):
        load_panoptic_mappings(tmp_path)
    content = json.loads((tmp_path / "class_mapping_panoptic_stuff.json").read_text())
    content["mappings"][0]["name"] = "majority"
    (tmp_path / "class_mapping_panoptic_stuff.json").write_text(json.dumps(content))
    (mapping,) = load_panoptic_mappings(tmp_path)
    assert mapping.stuff.assignment.tolist() == [1, 0, -1]
