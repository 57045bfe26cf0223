"""The document of `make evidence`: tables of figures, goals that were met and missed, and a curve."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

# column title -> (group, key) in an evaluation's results
COLUMNS: dict[str, tuple[str, str]] = {
    "AP": ("segm_agnostic", "AP"),
    "AR@100": ("segm_agnostic", "AR@100"),
    "class AP": ("segm_mapped", "AP_hungarian"),
    "mIoU": ("sem_seg_mapped", "mIoU_hungarian"),
    "PQ": ("panoptic_mapped", "PQ_hungarian"),
}
GOALS = ("AP", "AR@100")  # in which the student is to beat the final teacher's labels
TABLES = {
    "ablation": (
        "Each part of the loss",
        "Rows train like the first but for what they say; without the semantic group nothing learns a semantic map",
    ),
    "table3": (
        "Table 3 in miniature",
        "The first row is the recipe: K = {k}, δ = {delta}, ω_s, ω_f = {omega}, τ = {taus}; δ = 1 is one table up",
    ),
    "scaling": ("More pictures", "The same number of iterations on more or fewer scenes, seed 0"),
}


class RunRecord(NamedTuple):
    """What one run gave.

    Attributes:
        name: of its folder.
        group: main, ablation, table3 or scaling.
        row: of the table.
        seed: of the run.
        scenes: it learnt from.
        iterations: it trained for.
        is_short: whether that is less than a main run.
        seconds: of training.
        figures: ``iteration``, ``row`` (labels, student, or either after "plain") and ``results`` of each evaluation.
    """

    name: str
    group: str
    row: str
    seed: int
    scenes: int
    iterations: int
    is_short: bool
    seconds: float
    figures: list[dict[str, Any]]


def figure_of(record: RunRecord, row: str, column: str, iteration: int | None = None) -> float:
    """One figure in percent; of the last evaluation unless an iteration is named. nan where there is none."""
    wanted = record.iterations if iteration is None else iteration
    group, key = COLUMNS[column]
    for entry in record.figures:
        if entry["row"] == row and entry["iteration"] == wanted:
            return float(entry["results"].get(group, {}).get(key, float("nan")))
    return float("nan")


def write_document(path: Path, facts: dict[str, Any], records: Sequence[RunRecord]) -> None:
    """Write the document, and beside it its curve where there is a main run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    curve = path.with_suffix(".svg")
    main = [record for record in records if record.group == "main"]
    if main:
        curve.write_text(draw_curve(main))
    path.write_text(format_document(facts, records, curve.name))


def format_document(facts: dict[str, Any], records: Sequence[RunRecord], curve: str) -> str:
    """The whole document in Markdown."""
    main = [record for record in records if record.group == "main"]
    parts = [_introduction(facts)]
    if main:
        parts += [
            format_goals(main),
            format_plain(main),
            format_progress(main),
            f"![AR@100 and AP over training]({curve})",
        ]
    for group, (title, note) in TABLES.items():
        rows = [record for record in records if record.group == group]
        if not rows:
            continue
        if group == "table3":
            rows = [record for record in records if record.group == "ablation" and record.row == "everything"] + rows
            note = note.format(**facts["recipe"])
        if group == "scaling":
            rows = sorted([*rows, *(record for record in main if record.seed == 0)], key=lambda record: record.scenes)
        parts.append(f"## {title}\n\n{note} ({_length(rows)}).\n\n{format_variants(rows)}")
    parts.append(f"## Time\n\n{format_times(records)}")
    return "\n\n".join(parts) + "\n"


def _introduction(facts: dict[str, Any]) -> str:
    overrides = f", overrides `{' '.join(facts['overrides'])}`" if facts["overrides"] else ""
    return (
        "# Evidence that it learns\n\n"
        "`make evidence` wrote this file; nothing in it is edited by hand. All figures are in percent, on "
        f"{facts['val']} held-out generated scenes (seed 0 of `datasets/make_scenes.py`); the recipe "
        "`configs/evidence.yaml` starts from random weights, reads no label in training, and was chosen on other "
        "scenes (seed 77). \"Labels\" are UniAP's masks of the teacher's features, judged like the student's "
        "predictions, at the size at which they teach. Classes are mapped one to one on the held-out scenes "
        "themselves.\n\n"
        f"Commit {facts['commit']}, Python {facts['python']}, PyTorch {facts['torch']}, {facts['machine']}, device "
        f"{facts['device']}, {facts['jobs']} runs at a time with one thread each{overrides}; the last call of the "
        f"command took {facts['minutes']:.1f} minutes (runs that were done before are not repeated)."
        + _missing(facts.get("missing", []))
    )


def _missing(rows: Sequence[str]) -> str:
    return f"\n\nPlanned, but not run or not finished when this was written: {'; '.join(rows)}." if rows else ""


def format_goals(main: Sequence[RunRecord]) -> str:
    """Whether the student beats the final teacher's labels, seed by seed and figure by figure."""
    rows = [["seed", *(f"{column}: student, labels" for column in GOALS), "goal"]]
    missed = 0
    for record in main:
        cells, verdicts = [], []
        for column in GOALS:
            student, labels = (figure_of(record, row, column) for row in ("student", "labels"))
            cells.append(f"{_number(student)}, {_number(labels)}")
            verdicts.append(f"{column} {'met' if student > labels else 'missed'}")
            missed += not student > labels
        rows.append([str(record.seed), *cells, "; ".join(verdicts)])
    total = len(main) * len(GOALS)
    return (
        "## Student against the final teacher's labels\n\n"
        f"The goal, more AP and AR@100 than the labels on every seed, is met in {total - missed} of {total} cases.\n\n"
        f"{markdown(rows)}"
    )


def format_plain(main: Sequence[RunRecord]) -> str:
    """Final figures of labels and student, as the recipe evaluates and as the paper does."""
    rows = [["", *COLUMNS]]
    for title, row in (
        ("labels", "labels"),
        ("student", "student"),
        ("labels, duplicates kept", "plain labels"),
        ("student, masks whole and duplicates kept", "plain student"),
    ):
        rows.append([title, *(spread([figure_of(record, row, column) for record in main]) for column in COLUMNS)])
    return (
        "## What splitting and dropping duplicates does\n\n"
        "The recipe splits a query's mask into connected parts and leaves out near duplicates "
        "(`s2uniseg_d2/core/instance_parts.py`), of the labels' masks the duplicates alone, for they are connected by "
        "construction. The paper does neither. After the last iteration, mean and range over seeds:\n\n"
        f"{markdown(rows)}"
    )


def format_progress(main: Sequence[RunRecord]) -> str:
    """Labels and student over training, mean and range over the seeds."""
    rows = [["iteration", "", *COLUMNS]]
    for iteration in sorted({entry["iteration"] for record in main for entry in record.figures}):
        for row, title in (("labels", "labels"), ("student", "student")):
            cells = [spread([figure_of(record, row, column, iteration) for record in main]) for column in COLUMNS]
            rows.append([str(iteration), title, *cells])
    seeds = ", ".join(str(record.seed) for record in main)
    return f"## Over training\n\nMean and range over seeds {seeds}.\n\n{markdown(rows)}"


def format_variants(records: Sequence[RunRecord]) -> str:
    """One row per run: the student's figures, with the difference to the first row, and its labels' AP and AR@100."""
    rows = [["", *COLUMNS, "labels: AP", "AR@100"]]
    first = records[0]
    for record in records:
        cells = []
        for column in COLUMNS:
            value = figure_of(record, "student", column)
            change = value - figure_of(first, "student", column)
            known = record is not first and not math.isnan(change)
            cells.append(_number(value) + (f" ({change:+.1f})" if known else ""))
        rows.append([record.row, *cells, *(_number(figure_of(record, "labels", column)) for column in GOALS)])
    return markdown(rows)


def format_times(records: Sequence[RunRecord]) -> str:
    """Training time of every run."""
    rows = [["run", "seed", "scenes", "iterations", "seconds of training"]]
    for record in records:
        name = f"{record.group}: {record.row}"
        rows.append([name, str(record.seed), str(record.scenes), str(record.iterations), f"{record.seconds:.0f}"])
    rows.append(["all", "", "", "", f"{sum(record.seconds for record in records):.0f}"])
    return markdown(rows)


def _length(records: Sequence[RunRecord]) -> str:
    lengths = sorted({record.iterations for record in records})
    seeds = ", ".join(str(seed) for seed in sorted({record.seed for record in records}))
    return f"{' or '.join(str(length) for length in lengths)} iterations, seed {seeds}"


def spread(values: Sequence[float]) -> str:
    """Mean, and range where there are several values."""
    mean = _number(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} ({_number(min(values))} to {_number(max(values))})"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first row the head."""
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def draw_curve(main: Sequence[RunRecord]) -> str:
    """AR@100 (solid) and AP (dashed) of student and labels over training, the seeds' mean, as SVG."""
    width, height, left, bottom = 560, 320, 46, 36
    iterations = sorted({entry["iteration"] for record in main for entry in record.figures})
    lines = {
        (row, column): [statistics.fmean(figure_of(record, row, column, at) for record in main) for at in iterations]
        for row in ("labels", "student")
        for column in ("AR@100", "AP")
    }
    top = max(10.0, *(value for values in lines.values() for value in values if not math.isnan(value))) * 1.1
    across, up = (width - left - 130) / max(iterations[-1], 1), (height - bottom - 16) / top
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12"><rect width="100%" height="100%" fill="white"/>'
    ]
    base = height - bottom
    for value in range(0, int(top) + 1, 10):
        y = base - value * up
        parts.append(
            f'<path d="M{left} {y:.1f}H{width - 130}" stroke="#ddd"/><text x="8" y="{y + 4:.1f}">{value} %</text>'
        )
    for at in iterations:
        parts.append(f'<text x="{left + at * across:.1f}" y="{base + 16}" text-anchor="middle">{at}</text>')
    parts.append(f'<text x="{left}" y="{height - 4}">iterations</text>')
    for (row, column), values in lines.items():
        colour = {"labels": "#c60", "student": "#06c"}[row]
        dash = ' stroke-dasharray="5 4"' if column == "AP" else ""
        points = [(left + at * across, base - value * up) for at, value in zip(iterations, values, strict=True)]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points if not math.isnan(y))
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        x, y = points[-1]
        parts.append(f'<text x="{x + 6:.1f}" y="{y + 4:.1f}" fill="{colour}">{row} {column}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
