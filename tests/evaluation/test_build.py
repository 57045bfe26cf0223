from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from s2uniseg_d2.evaluation import available_tasks, build_evaluator, format_results

from .conftest import predict, run

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


WORKER = """
import json, pickle, sys
import torch.distributed as dist
from detectron2.data import DatasetCatalog, MetadataCatalog
from s2uniseg_d2.evaluation import build_evaluator

folder, rank = sys.argv[1], int(sys.argv[2])
name, records, metadata, outputs = pickle.load(open(f"{folder}/job.pkl", "rb"))
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
DatasetCatalog.register(name, lambda: records)
MetadataCatalog.get(name).set(**metadata)
evaluator = build_evaluator(name, num_clusters=7)
evaluator.reset()
for number in (2, 0) if rank == 0 else (3, 1):
    evaluator.process([records[number]], [outputs[number]])
results = evaluator.evaluate()
json.dump(results, open(f"{folder}/results{rank}.json", "w"))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one(scenes, tmp_path, repository):
    outputs = [predict(scenes, r["image_id"], rename=[6, 0, 4, 1, 2].__getitem__) for r in scenes.records]
    expected = run(build_evaluator(scenes.name, num_clusters=7), scenes.records, outputs)
    metadata = {key: value for key, value in MetadataCatalog.get(scenes.name).as_dict().items() if key != "name"}
    (tmp_path / "job.pkl").write_bytes(pickle.dumps((scenes.name, scenes.records, metadata, outputs)))
    environment = os.environ | {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    workers = [subprocess.Popen([*command, str(rank)], env=environment) for rank in (0, 1)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    results = json.loads((tmp_path / "results0.json").read_text())
    np.testing.assert_equal(results, dict(expected))
    assert json.loads((tmp_path / "results1.json").read_text()) == {}
