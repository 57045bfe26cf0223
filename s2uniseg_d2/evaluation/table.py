"""The results of an evaluation as tables: all in one, beside published figures, and class by class."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from .published import PROTOCOLS, PublishedRow, published_rows

COLUMNS = ("AP", "AP50", "AP75", "AR@1", "AR@10", "AR@100", "AP@1000", "AR@1000", "PixelAcc", "mIoU", "PQ", "SQ", "RQ")
_MORE_COLUMNS = ("APs", "APm", "APl", "PQ_th", "SQ_th", "RQ_th", "PQ_st", "SQ_st", "RQ_st", "s/picture")
_OURS = "ours, this run"


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
            provenance = mapping_provenance(figures)
            splits.update(split for _, split in provenance)
            for strategy in [name for name, _ in provenance] or [""]:
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


def mapping_provenance(figures: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return strategy and fitted split of every mapping that a task's figures were made with."""
    parts = [key[len("votes_") :].partition("-") for key in figures if key.startswith("votes_")]
    return [(strategy, split) for strategy, _, split in parts]


def format_comparison(
    results: Mapping[str, Any], protocol: str, seconds: Mapping[str, float] | None = None
) -> dict[str, str]:
    """Return one table per data set and group of results: ours first, then the published rows with their sources.

    Args:
        results: figures by group by data set.
        protocol: of :data:`~.published.PROTOCOLS`; "" has no published rows and gives no tables.
        seconds: per picture, by data set; shown beside published times.

    Returns:
        Title -> table, in percent. The notes below a table say what keeps a published row from being comparable.

    Raises:
        ValueError: if the protocol is unknown.
    """
    tables = {}
    for dataset, tasks in results.items():
        for group, figures in tasks.items():
            published = published_rows(protocol, group)
            if published:
                times = {"s/picture": seconds[dataset]} if seconds and dataset in seconds else {}
                title = f"{protocol}: {group} on {dataset}"
                if dataset not in PROTOCOLS[protocol]:
                    title += " (not the protocol's data: published figures do not compare)"
                tables[title] = _format_beside(_our_rows(figures, times), published)
    return tables


def _our_rows(figures: Mapping[str, float], times: dict[str, float]) -> dict[str, dict[str, float]]:
    rows = {}
    for strategy, split in mapping_provenance(figures) or [("", "")]:
        suffix = f"_{strategy}" if strategy else ""
        name = f"{_OURS}: {strategy} mapping fitted on {split}" if strategy else _OURS
        shown = {c: figures[c + suffix] for c in (*COLUMNS, *_MORE_COLUMNS) if c + suffix in figures}
        rows[name] = shown | times
    return rows


def _format_beside(ours: dict[str, dict[str, float]], published: list[PublishedRow]) -> str:
    known = {metric for row in published for metric in row.figures}
    held = known | {metric for row in ours.values() for metric in row if metric != "s/picture"}
    columns = [column for column in (*COLUMNS, *_MORE_COLUMNS) if column in held]
    notes: list[str] = []
    table = [[name, *(_format(row.get(c), c) for c in columns), "measured here"] for name, row in ours.items()]
    for row in published:
        source = row.source + (", its own claim" if row.is_claim else "")
        if row.note:
            if row.note not in notes:
                notes.append(row.note)
            source += f" [{notes.index(row.note) + 1}]"
        name = f"{row.method} ({row.trained_on})" if row.trained_on != "none" else row.method
        table.append([name, *(f"{row.figures[c]:g}" if c in row.figures else "" for c in columns), source])
    text = tabulate(
        table,
        headers=["method", *columns, "source"],
        tablefmt="pipe",
        disable_numparse=True,
        colalign=("left", *["right"] * len(columns), "left"),
    )
    return "\n".join([text, *(f"[{number}] {note}" for number, note in enumerate(notes, start=1))])


def format_classes(results: Mapping[str, Any]) -> dict[str, str]:
    """Return one table of per-class figures per data set and group, classes down and metrics across, in percent.

    Args:
        results: figures by group by data set.

    Returns:
        Title -> table; a group without per-class figures has none. nan, a class that the truth does not hold, is
        left blank.
    """
    tables = {}
    for dataset, tasks in results.items():
        for group, figures in tasks.items():
            cells: dict[str, dict[str, float]] = {}
            for key, value in figures.items():
                metric, separator, name = key.partition("-")
                if separator and not key.startswith("votes_") and not math.isnan(value):
                    cells.setdefault(name, {})[metric] = value
            if cells:
                columns = list(dict.fromkeys(metric for row in cells.values() for metric in row))
                rows = [[name, *(_format(row.get(c)) for c in columns)] for name, row in cells.items()]
                tables[f"{group} on {dataset}"] = tabulate(
                    rows, headers=["class", *columns], tablefmt="pipe", disable_numparse=True, stralign="right"
                )
    return tables


def _by_dataset(results: Mapping[str, Any]) -> dict[str, Mapping[str, Mapping[str, float]]]:
    """Results as data set -> task -> figure; the data set is "" where the results name none."""
    nested: dict[str, Any] = {}
    for key, value in results.items():
        if isinstance(value, Mapping) and value and all(isinstance(inner, Mapping) for inner in value.values()):
            nested[key] = value
        elif isinstance(value, Mapping):
            nested.setdefault("", {})[key] = value
    return nested


def _format(value: float | None, column: str = "") -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if column == "s/picture" else f"{value:.2f}"
