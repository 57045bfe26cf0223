"""The files and tables that an evaluation leaves."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detectron2.config import CfgNode

from s2uniseg_d2.evaluation.class_mapping import write_json
from s2uniseg_d2.evaluation.published import PUBLISHED
from s2uniseg_d2.evaluation.table import format_classes, format_comparison, format_results

from .evaluation_record import constants_of, device_name, versions, without_nan

if TYPE_CHECKING:
    from .evaluation import SetResult

logger = logging.getLogger(__name__)


def report(
    cfg: CfgNode, results: Mapping[str, SetResult], identity: Mapping[str, Any], weights: Mapping[str, str]
) -> None:
    """Log the tables and write them and all figures to ``OUTPUT_DIR``.

    Args:
        cfg: reads ``OUTPUT_DIR`` and ``EVALUATION.PROTOCOL``; its constants go into the record.
        results: by data set.
        identity: digests of weights and pictures, and all settings that figures depend on.
        weights: where they come from and their hash.
    """
    output = Path(cfg.OUTPUT_DIR)
    protocol = cfg.EVALUATION.PROTOCOL
    figures = {name: result.figures for name, result in results.items()}
    shown = figures if len(figures) > 1 else next(iter(figures.values()))
    summary = format_results(shown)
    seconds = {name: result.seconds_per_picture for name, result in results.items()}
    beside = format_comparison(figures, protocol, seconds)
    classes = format_classes(figures)
    logger.info("Results:\n%s", summary)
    for title, table in {**beside, **{f"Classes, {title}": table for title, table in classes.items()}}.items():
        logger.info("%s\n%s", title, table)
    sections = {"Results, in percent": summary, **beside, **{f"Classes: {t}": table for t, table in classes.items()}}
    text = "\n\n".join(f"## {title}\n\n{table}" for title, table in sections.items())
    _write_text(output / "tables.md", text + "\n")

    about = {
        "protocol": protocol,
        "constants": constants_of(cfg),
        "weights": dict(weights),
        "versions": versions(),
        "device": device_name(cfg),
        "seconds_per_picture": seconds,
        "pictures": {
            name: {
                "listed": result.pictures,
                "predicted": len(result.seconds),
                "skipped": result.pictures - len(result.seconds),
                "kept_from_a_stopped_run": result.kept,
            }
            for name, result in results.items()
        },
    }
    published = [row._asdict() for row in PUBLISHED if row.protocol == protocol]
    whole = {"results": figures, **about, "published": published, "made_with": dict(identity)}
    write_json(output / "results.json", without_nan(whole), indent=1)
    scores = {
        name: {task: {str(key): score for key, score in of.items()} for task, of in result.per_picture.items()}
        for name, result in results.items()
    }
    write_json(output / "per_picture.json", without_nan(scores))
    append_metrics(output / "metrics.json", {**shown, "about": about})


def append_metrics(path: Path, results: Mapping[str, Any]) -> None:
    """Add one JSON line with an evaluation's figures to Detectron2's metrics file."""
    with path.open("a") as file:
        file.write(json.dumps(without_nan(results), default=float) + os.linesep)


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
