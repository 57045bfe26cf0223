"""The table of tools/compatibility_matrix.py and its document, docs/compatibility.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

VERSIONS = ("python", "torch", "torchvision", "timm", "numpy", "detectron2")
SELECTIONS = {"all": "all tests", "fast": "without the slow tests"}

INTRODUCTION = """\
# Compatibility

`requirements.txt` pins the newest versions that are supported, `requirements-oldest.txt` the oldest, which are the
bounds of `setup.py`. `make matrix` sets each up from the package registry on each supported Python and runs the test
suite on the CPU; `make matrix ARGS="--report"` writes this document from the results.

A row is one selection of tests on one commit; a cell that was not run says so. A cell ending in `-detectron2` had
another Detectron2, named in its row, in its environment before the set-up, which left every file of it alone. Where an
oldest release has no wheel for a newer Python, the first that has takes its place. Warnings are errors in the tests,
whatever the versions, but for the exceptions in `pyproject.toml`, each with a reason. CPU seconds are of the test run,
processes that it started included.
"""


def format_table(results: Sequence[dict[str, Any]]) -> str:
    """A Markdown table with a row per cell, those that were not run or not set up included, with their reason."""
    titles = ["cell", *VERSIONS, "commit", "tests", "passed", "failed", "skipped", "CPU seconds", "result"]
    rows = [_format_row(result) for result in results]
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_document(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """Write the document of `results`: the table, the failed tests by cell and why tests were skipped."""
    parts = [INTRODUCTION, format_table(results), ""]
    failed = [result for result in results if result.get("failed_tests")]
    if failed:
        parts += ["## Failed tests", ""]
        parts += [
            f"* {result['name']}: " + ", ".join(f"`{name}`" for name in result["failed_tests"]) for result in failed
        ]
        parts.append("")
    reasons: dict[str, dict[str, int]] = {}
    for result in results:
        for reason, count in result.get("skip_reasons", {}).items():
            counts = reasons.setdefault(reason, {})
            counts[result["name"]] = max(count, counts.get(result["name"], 0))
    if reasons:
        parts += ["## Skipped tests", ""]
        for reason, counts in reasons.items():
            where = ", ".join(f"{name} ({count})" for name, count in counts.items())
            parts.append(f"* {reason or 'no reason given'}: {where}")
        parts.append("")
    path.write_text("\n".join(parts), encoding="utf-8")


def _format_row(result: dict[str, Any]) -> list[str]:
    found = result.get("versions_found", {})
    versions = [found.get(name, result["python"] if name == "python" else "") for name in VERSIONS]
    select = result.get("select", "")
    counts = [str(result.get(key, "")) for key in ("passed", "failed", "skipped", "cpu_seconds")]
    outcome = result["state"] + (f": {result['reason']}" if result.get("reason") else "")
    tests = SELECTIONS.get(select, f"`{select}`" if select else "")
    # A bar would end the column.
    return [
        result["name"],
        *versions,
        result.get("commit", ""),
        tests,
        *counts,
        " ".join(outcome.replace("|", "/").split()),
    ]
