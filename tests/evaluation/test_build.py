from __future__ import annotations

import pytest

from s2uniseg_d2.evaluation import available_tasks, build_evaluator, format_results

from .conftest import run

ALL = {"segm_agnostic", "segm_mapped", "sem_seg_mapped", "panoptic_mapped"}


def test_all_truth_gives_all_evaluators_with_keys_of_their_own(scenes, predictions, tmp_path):
    evaluator = build_evaluator(scenes.name, num_clusters=5, output_dir=str(tmp_path), match_score=0.1)
    results = run(evaluator, *predictions)
    assert set(results) == ALL
    assert all(isinstance(value, float) for figures in results.values() for value in figures.values())
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.json")}
    assert {
        "agnostic/coco_instances_results_agnostic.json",
        "instance/coco_instances_results_hungarian.json",
        "instance/class_mapping_instance.json",
        "semantic/class_mapping_semantic.json",
        "panoptic/class_mapping_panoptic_stuff.json",
    } <= written


def test_voting_rule_reaches_the_mapping(scenes, predictions):
    key = f"votes_majority-{scenes.name}"
    votes = [
        run(build_evaluator(scenes.name, num_clusters=5, tasks=("instance",), **rule), *predictions)["segm_mapped"][key]
        for rule in ({}, {"match_score": 0.6}, {"match_iou": 0.9}, {"match_by": "bbox", "match_iou": 0.6})
    ]
    assert len(set(votes)) == 4
    assert max(votes) == votes[0]


@pytest.mark.parametrize(
    ("tasks", "keys"),
    [
        (("semantic",), {"sem_seg_mapped"}),
        (("panoptic", "agnostic"), {"segm_agnostic", "panoptic_mapped"}),
        ((), set()),
    ],
)
def test_tasks_choose(scenes, predictions, tasks, keys):
    assert set(run(build_evaluator(scenes.name, num_clusters=5, tasks=tasks), *predictions)) == keys


def test_truth_decides(scenes, register):
    register("evaluation_instances_only", scenes.records, json_file=str(scenes.folder / "instances.json"))
    assert available_tasks("evaluation_instances_only") == ("agnostic", "instance")
    register("evaluation_labels_only", scenes.records, stuff_classes=["sky"])
    assert available_tasks("evaluation_labels_only") == ("semantic",)
    half = [scenes.records[0], {"file_name": "b.jpg"}]
    register("evaluation_half_labelled", half, stuff_classes=["sky"])
    assert available_tasks("evaluation_half_labelled") == ()
    assert available_tasks(scenes.name) == ("agnostic", "instance", "semantic", "panoptic")


def test_no_truth_gives_no_result_and_says_so(scenes, register, caplog):
    json_file = str(scenes.folder / "instances.json")
    register("evaluation_pictures", scenes.records, json_file=json_file, evaluator_type="none")
    evaluator = build_evaluator("evaluation_pictures", num_clusters=5)
    assert run(evaluator, scenes.records, [{}] * 4) == {}
    assert "evaluation_pictures has no truth for any of" in caplog.text
    with pytest.raises(ValueError, match=r"tasks must be among .*, got \['depth'\]"):
        build_evaluator("evaluation_pictures", num_clusters=5, tasks=("depth",))


def test_table_of_one_data_set(scenes, predictions):
    table = format_results(run(build_evaluator(scenes.name, num_clusters=5), *predictions))
    lines = table.splitlines()
    assert len(lines) == 2 + 1 + 3 * 2 + 1
    assert [cell.strip() for cell in lines[0].split("|")[1:4]] == ["task", "mapping", "AP"]
    assert lines[-1] == f"class mappings fitted on: {scenes.name}"
    assert "segm_agnostic" in lines[2]
    assert max(map(len, lines)) < 160


def test_table_of_several_data_sets():
    figures = {"AP": 12.345, "AR@100": float("nan"), "AP-person": 1.0}
    mapped = {"PQ_hungarian": 1.0, "PQ_majority": 2.0, "votes_hungarian-val-a": 7.0, "votes_majority-val-a": 7.0}
    table = format_results({"a": {"segm_agnostic": figures}, "b": {"panoptic_mapped": mapped}})
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert lines[0] == ["data set", "task", "mapping", "AP", "AR@100", "PQ"]
    assert lines[2] == ["a", "segm_agnostic", "", "12.35", "nan", ""]
    assert lines[3] == ["b", "panoptic_mapped", "hungarian", "", "", "1.00"]
    assert lines[4] == ["b", "panoptic_mapped", "majority", "", "", "2.00"]
    assert table.endswith("fitted on: val-a")


@pytest.mark.parametrize("results", [{}, {"a": {}}, {"segm_agnostic": {"AP-person": 1.0}}])
def test_table_of_nothing(results):
    assert format_results(results) == "no results"
