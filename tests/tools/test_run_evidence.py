from __future__ import annotations

import importlib.util
import json
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from s2uniseg_d2.config import load_config
from tests.tiny import tiny_words


def load(repository, name):
    spec = importlib.util.spec_from_file_location(name, repository / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def report(repository):
    return load(repository, "evidence_report")


@pytest.fixture(scope="module")
def evidence(repository):
    return load(repository, "run_evidence")


def record(report, *, group="main", row="400 scenes", seed=0, scenes=400, student=(0.0, 7.0), labels=(5.0, 5.0)):
    """Every figure of a predictor is the same number, of the first and the last checkpoint."""
    figures = []
    for name, values in (("labels", labels), ("student", student)):
        for iteration, value in zip((0, 100), values, strict=True):
            results = {}
            for part, key in report.COLUMNS.values():
                results.setdefault(part, {})[key] = value
            figures.append({"iteration": iteration, "row": name, "results": results})
    return report.RunRecord(f"{group}_{seed}", group, row, seed, scenes, 100, group != "main", 61.0, figures)


FACTS = {
    "commit": "abc1234",
    "python": "3.11.0",
    "torch": "2.0",
    "machine": "2 CPU cores",
    "device": "cpu",
    "jobs": 2,
    "train": 400,
    "val": 64,
    "overrides": [],
    "recipe": {"k": 64, "delta": 2, "omega": "0.4, 0.6", "taus": "0.9, 0.8"},
    "minutes": 50.0,
}


def test_goals_are_counted_seed_by_seed_and_a_tie_is_missed(report):
    text = report.format_goals([record(report), record(report, seed=1, student=(0.0, 5.0))])
    assert "is met in 2 of 4 cases" in text
    assert "| 0 | 7.0, 5.0 | 7.0, 5.0 | AP met; AR@100 met |" in text
    assert "| 1 | 5.0, 5.0 | 5.0, 5.0 | AP missed; AR@100 missed |" in text


def test_progress_has_labels_and_student_of_every_checkpoint_with_their_range(report):
    text = report.format_progress([record(report), record(report, seed=1, student=(1.0, 9.0))])
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    assert [(row[0], row[1]) for row in rows] == [
        ("| 0", "labels"), ("| 0", "student"), ("| 100", "labels"), ("| 100", "student"),
    ]  # fmt: skip
    assert rows[3][2] == "8.0 (7.0 to 9.0)"
    assert rows[0][2] == "5.0 (5.0 to 5.0)"


def test_variants_show_their_difference_to_the_first_row_and_missing_figures_a_dash(report):
    less = record(report, group="ablation", row="no QuerySD", student=(0.0, 4.5))
    del less.figures[-1]["results"]["panoptic_mapped"]
    lines = report.format_variants([record(report, group="ablation", row="everything"), less]).splitlines()
    assert lines[2].startswith("| everything | 7.0 | 7.0 |")
    assert lines[3].startswith("| no QuerySD | 4.5 (-2.5) |")
    assert "| - (" not in lines[3]
    assert "| - |" in lines[3]


def test_the_document_has_each_part_that_was_run_and_the_curve_is_a_picture(report, tmp_path):
    records = [
        record(report),
        record(report, group="ablation", row="everything"),
        record(report, group="table3", row="K = 16"),
        record(report, group="scaling", row="100 scenes", scenes=100),
    ]
    path = tmp_path / "docs" / "evidence.md"
    report.write_document(path, FACTS, records)
    text = path.read_text()
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles == [
        "## Student against the final teacher's labels",
        "## What splitting and dropping duplicates does",
        "## Over training",
        "## Each part of the loss",
        "## Table 3 in miniature", "## More pictures", "## Time",
    ]  # fmt: skip
    assert "K = 64, δ = 2" in text
    assert "abc1234" in text
    assert "| all |  |  |  | 244 |" in text
    # the main run takes its place between fewer and more scenes
    scaling = text[text.index("## More pictures") : text.index("## Time")]
    assert scaling.index("| 100 scenes") < scaling.index("| 400 scenes")
    ElementTree.parse(tmp_path / "docs" / "evidence.svg")


def test_the_plan_covers_seeds_parts_rows_and_scales_under_names_of_their_own(evidence):
    runs = evidence.plan()
    assert len({run.name for run in runs}) == len(runs)
    assert [run.seed for run in runs if run.group == "main"] == [0, 1, 2]
    assert {run.scenes for run in runs} == {100, 400, 1600}
    assert {"no QuerySD", "no semantic group", "one view"} < {run.row for run in runs if run.group == "ablation"}
    for run in runs:
        cfg = load_config(evidence.REPOSITORY / evidence.CONFIG, list(run.overrides))
        assert not run.overrides or cfg.dump() != load_config(evidence.REPOSITORY / evidence.CONFIG).dump(), run.row


def test_seconds_of_training_count_every_iteration_once(evidence, tmp_path):
    lines = [{"iteration": 19, "time": 0.5}, {"iteration": 39, "time": 1.0}, {"iteration": 39, "time": 0.25}]
    lines += [{"iteration": 59}, {"iteration": 49, "time": 2.0}]
    (tmp_path / "metrics.json").write_text("\n".join(json.dumps(line) for line in lines))
    assert evidence._training_seconds(tmp_path) == 20 * 0.5 + 20 * 0.25 + 10 * 2.0


@pytest.mark.slow
def test_a_reduced_run_writes_the_document_and_is_not_repeated(evidence, tmp_path, capsys):
    words = ["--output", str(tmp_path / "out"), "--document", str(tmp_path / "evidence.md"), "--jobs", "1"]
    words += ["--only", "main", "--seeds", "3", "--train", "2", "--val", "2"]
    tiny = tiny_words(SOLVER__MAX_ITER=4, MODEL__LOSS__NUM_POINTS=0)
    del tiny[tiny.index("MODEL.DEVICE") : tiny.index("MODEL.DEVICE") + 2]
    assert evidence.main([*words, *tiny]) == 0
    text = (tmp_path / "evidence.md").read_text()
    assert "of 2 cases" in text
    iterations = [line.split(" | ")[0] for line in text.split("## Over training")[1].splitlines() if "student" in line]
    assert iterations == ["| 0", "| 1", "| 2", "| 3", "| 4"]
    before = (tmp_path / "out" / "seed_3" / "evaluation.json").stat().st_mtime_ns
    capsys.readouterr()
    assert evidence.main([*words, *tiny]) == 0
    assert (tmp_path / "out" / "seed_3" / "evaluation.json").stat().st_mtime_ns == before
    # the fourth seed is not run: it is named, and nothing is trained
    assert evidence.main([*words, "--seeds", "3", "4", "--finished", *tiny]) == 0
    assert (
        "Planned, but not run or not finished when this was written: main: 2 scenes"
        in (tmp_path / "evidence.md").read_text()
    )
    assert not (tmp_path / "out" / "seed_4").exists()
    with pytest.raises(SystemExit, match="holds a run with other settings"):
        evidence.main([*words, *tiny, "SOLVER.BASE_LR", "0.5"])


def test_nothing_is_written_up_where_nothing_is_done(evidence, tmp_path, capsys):
    with pytest.raises(SystemExit):
        evidence.main(["--finished", "--output", str(tmp_path / "out"), "--document", str(tmp_path / "evidence.md")])
    assert "no run is done in" in capsys.readouterr().err
    assert not (tmp_path / "evidence.md").exists()
