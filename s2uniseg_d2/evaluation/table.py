"""All results of an evaluation as one compact table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

COLUMNS = ("AP", "AP50", "AP75", "AR@1", "AR@10", "AR@100", "AP@1000", "AR@1000", "PixelAcc", "mIoU", "PQ", "SQ", "RQ")


def format_results(results: Mapping[str, Any]) -> str:
    """Return one table with a row per data set, task and mapping strategy, in percent.

    Args:
        results: what Detectron2's ``DefaultTrainer.test`` returns: figures per task, or the same per data set where
            there are several. Per-class figures, whose keys contain "-", and figures outside :data:`COLUMNS` are left
            out, and so are columns that no row fills.

    Returns:
        The table, or "no results" if there is no figure. The last line names the split that the mappings come from.
    """
    rows: dict[tuple[str, str, str], dict[str, float]] = {}
    splits: set[str] = set()
    for dataset, tasks in _by_dataset(results).items():
        for task, figures in tasks.items():
            provenance = [key[len("votes_") :].partition("-") for key in figures if key.startswith("votes_")]
            splits.update(split for _, _, split in provenance)
            for strategy in [name for name, _, _ in provenance] or [""]:
                suffix = f"_{strategy}" if strategy else ""
                shown = {column: figures[column + suffix] for column in COLUMNS if column + suffix in figures}
                if shown:
                    rows[dataset, task, strategy] = shown
    if not rows:
        return "no results"
    columns = [column for column in COLUMNS if any(column in figures for figures in rows.values())]
    headers = ["data set", "task", "mapping"]
    used = [i for i in range(3) if any(row[i] for row in rows)]
    table = [[row[i] for i in used] + [_format(figures.get(c)) for c in columns] for row, figures in rows.items()]
    text = tabulate(
        table, headers=[headers[i] for i in used] + columns, tablefmt="pipe", disable_numparse=True, stralign="right"
    )
    return text + (f"\nclass mappings fitted on: {', '.join(sorted(splits))}" if splits else "")


def _by_dataset(results: Mapping[str, Any]) -> dict[str, Mapping[str, Mapping[str, float]]]:
    """Results as data set -> task -> figure; the data set is "" where the results name none."""
    nested: dict[str, Any] = {}
    for key, value in results.items():
        if isinstance(value, Mapping) and value and all(isinstance(inner, Mapping) for inner in value.values()):
            nested[key] = value
        elif isinstance(value, Mapping):
            nested.setdefault("", {})[key] = value
    return nested


def _format(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
