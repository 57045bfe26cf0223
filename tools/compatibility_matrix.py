#!/usr/bin/env python
"""Run the test suite with the oldest and the newest supported versions on every supported Python, and print a table.

A cell is a Python, a set of versions and where Detectron2 comes from. Each is set up in an environment of its own from
the package registry and tests a clone of the last commit; its result is kept, its environment (about 6 GB) is removed.
A cell that fails does not stop the others; a cell whose Python is not on this machine is named as not run.

* `make matrix`                                       all cells, one after the other (hours)
* `make matrix ARGS="--list"`                         the cells
* `make matrix ARGS="--only oldest-3.10 newest-3.13"` some of them
* `make matrix ARGS="--select fast"`                  without the slow tests
* `make matrix ARGS="--python 3.12=PATH/python3.12"`  an interpreter that is not on PATH as python3.12
* `make matrix ARGS="--report"`                       the table of what was run, into docs/compatibility.md

A cell that was tested at this commit with this selection is not run again unless --again says so; each selection has a
row of its own, with the commit that it ran on. Only the standard library is needed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import install_detectron2
from compatibility_cell import REPOSITORY, Cell, CellRun, SetUpError
from compatibility_report import format_table, write_document

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
SELECTIONS = {"all": "", "fast": "-m 'not slow'"}  # words for pytest


CELLS = (
    *(Cell(python, versions) for versions in ("oldest", "newest") for python in PYTHONS),
    Cell("3.11", "newest", "earlier"),
)


def find_python(version: str, given: dict[str, str]) -> str | None:
    """The path of an interpreter of `version`: the given one, else ``python{version}`` on PATH; None without one.

    Raises:
        ValueError: the given interpreter is another version or does not run.
    """
    path = given.get(version) or shutil.which(f"python{version}")
    if path is None:
        return None
    code = "import sys, ensurepip, venv; print('%d.%d' % sys.version_info[:2])"
    try:
        answer = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
        found = answer.stdout.strip() or (answer.stderr.strip().splitlines() or ["no answer"])[-1]
    except OSError as error:
        found = str(error)
    if found == version:
        return path
    if version in given:
        raise ValueError(f"--python {version} must be a Python {version} with venv, got {path} ({found})")
    return None


def run_cell(cell: Cell, args: argparse.Namespace, python: str | None, commit: str) -> dict[str, Any]:
    """The result of a cell as its JSON file holds it; whatever goes wrong in it is named there and raises nothing."""
    result: dict[str, Any] = {**cell._asdict(), "name": cell.name, "commit": commit, "select": args.select}
    if python is None:
        return {
            **result,
            "state": "not run",
            "reason": f"no python{cell.python} with venv on PATH, and none named by --python",
        }
    log = args.output / f"{cell.name}.log"
    log.unlink(missing_ok=True)
    run = CellRun(cell, python, args.work, log, args.uv)
    start = time.monotonic()
    try:
        run.clone()
        run.set_up()
        result["versions_found"] = run.read_versions()
        result["setup_seconds"] = round(time.monotonic() - start)
        result |= run.test(shlex.split(SELECTIONS.get(args.select, args.select)), args.jobs)
        result["state"] = "failed" if result["failed"] else "passed"
    except (SetUpError, install_detectron2.InstallationError, OSError, subprocess.SubprocessError) as error:
        result |= {"state": "set-up failed", "reason": str(error)}
    finally:
        if not args.keep:
            shutil.rmtree(run.folder, ignore_errors=True)
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the cells that were asked for; returns 0 if each of them passed."""
    args = _parse(arguments)
    if args.list:
        print("\n".join(cell.name for cell in CELLS))
        return 0
    args.output.mkdir(parents=True, exist_ok=True)
    commit = _commit()
    cells = [cell for cell in CELLS if not args.only or cell.name in args.only]
    if not args.report:
        pythons = {cell.python: find_python(cell.python, args.python) for cell in cells}
        for cell in cells:
            path = args.output / f"{cell.name}.{_label(args.select)}.json"
            if not args.again and _is_done(path, commit):
                print(f"{cell.name}: done already", flush=True)
                continue
            print(f"{cell.name}: setting up and testing (log: {cell.name}.log)", flush=True)
            result = run_cell(cell, args, pythons[cell.python], commit)
            _write_json(path, result)
            print(f"{cell.name}: {result['state']} {result.get('reason', '')}".rstrip(), flush=True)
    select = None if args.report else args.select
    results = [result for cell in cells for result in _read_results(args.output, cell, select)]
    print(format_table(results))
    if args.report:
        write_document(args.document, results)
    return 0 if all(result["state"] == "passed" for result in results) else 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [cell.name for cell in CELLS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="CELL", help="these cells alone")
    parser.add_argument("--list", action="store_true", help="name the cells and end")
    parser.add_argument("--select", default="all", help="all, fast or words for pytest (default %(default)s)")
    parser.add_argument("--python", action="append", default=[], metavar="3.X=PATH", help="an interpreter; repeatable")
    parser.add_argument("--jobs", type=int, default=1, help="test processes (default %(default)s)")
    parser.add_argument("--uv", action="store_true", help="requirements by uv, whose cache is linked, not copied")
    parser.add_argument("--again", action="store_true", help="repeat cells that are done")
    parser.add_argument("--keep", action="store_true", help="keep the environments (about 6 GB each) for the next call")
    parser.add_argument("--report", action="store_true", help="run nothing, write the document from the results")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "output" / "matrix", help="results and logs")
    parser.add_argument("--work", type=Path, default=REPOSITORY / ".cache" / "matrix", help="environments")
    parser.add_argument("--document", type=Path, default=REPOSITORY / "docs" / "compatibility.md")
    args = parser.parse_args(arguments)
    given = dict(item.split("=", 1) for item in args.python if "=" in item)
    if len(given) < len(args.python) or not set(given) <= set(PYTHONS):
        parser.error(f"--python must be one of {', '.join(PYTHONS)} with =PATH, once each, got {args.python}")
    args.python = given
    args.output, args.work = args.output.resolve(), args.work.resolve()
    return args


def _commit() -> str:
    """The last commit's short name, which is what the cells test."""
    command = ["git", "rev-parse", "--short=9", "HEAD"]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()


def _label(select: str) -> str:
    """A selection as part of a file's name: each has a result of its own."""
    return select if select in SELECTIONS else hashlib.sha256(select.encode()).hexdigest()[:8]


def _is_done(path: Path, commit: str) -> bool:
    if not path.is_file():
        return False
    result = json.loads(path.read_text(encoding="utf-8"))
    return result["commit"] == commit and result["state"] in ("passed", "failed")


def _read_results(folder: Path, cell: Cell, select: str | None) -> list[dict[str, Any]]:
    """Of one selection, or of all with None; a cell without any is one that was not run."""
    paths = sorted(folder.glob(f"{cell.name}.{'*' if select is None else _label(select)}.json"))
    results = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return results or [{**cell._asdict(), "name": cell.name, "state": "not run", "reason": "not yet"}]


def _write_json(path: Path, value: dict[str, Any]) -> None:
    # A killed run leaves the old result or the new one.
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
