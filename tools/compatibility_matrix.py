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

A cell that was tested at this commit with this selection is not run again unless --again says so. Only the standard
library is needed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))
import install_detectron2
from compatibility_report import format_table, write_document

REPOSITORY = Path(__file__).resolve().parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
SELECTIONS = {"all": "", "fast": "-m 'not slow'"}  # words for pytest
EARLIER_DETECTRON2 = "0.6+installed.earlier"
STATED = ("torch", "torchvision", "timm", "numpy", "scipy", "opencv-python-headless", "pycocotools", "detectron2")


class SetUpError(Exception):
    """A cell could not be set up; the sentence names the step and its last lines."""


class Cell(NamedTuple):
    """One environment to test in.

    Attributes:
        python: "3.10" to "3.13".
        versions: "newest" (requirements.txt) or "oldest" (requirements-oldest.txt where it names a package).
        detectron2: "installer" (tools/install_detectron2.py brings it) or "earlier" (another one was there before).
    """

    python: str
    versions: str
    detectron2: str = "installer"

    @property
    def name(self) -> str:
        """What the command line, the files and the table call it."""
        return f"{self.versions}-{self.python}" + ("-detectron2" if self.detectron2 == "earlier" else "")


CELLS = (
    *(Cell(python, versions) for versions in ("oldest", "newest") for python in PYTHONS),
    Cell("3.11", "newest", "earlier"),
)


def merge_requirements(newest: str, oldest: str) -> str:
    """The lines of `newest` with those that `oldest` names replaced by its own."""
    replaced = {_name_of(line) for line in _pins(oldest)}
    return "\n".join([line for line in _pins(newest) if _name_of(line) not in replaced] + _pins(oldest)) + "\n"


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


def read_report(path: Path) -> dict[str, Any]:
    """Counts, seconds, failed tests and reasons of skips in a JUnit XML file that pytest wrote.

    Raises:
        ValueError: the file holds no test: a run that tested nothing has not passed.
    """
    counts: Counter[str] = Counter()
    failed: list[str] = []
    reasons: Counter[str] = Counter()
    suite = ET.parse(path).getroot().find("testsuite")
    cases = [] if suite is None else suite.findall("testcase")
    if suite is None or not cases:
        raise ValueError(f"a test report must hold tests, got none in {path.name}")
    for case in cases:
        state = next((tag for tag in ("error", "failure", "skipped") if case.find(tag) is not None), "passed")
        counts["failed" if state in ("error", "failure") else state] += 1
        if state in ("error", "failure"):
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        if state == "skipped":
            reasons[case.find(state).get("message", "")] += 1  # type: ignore[union-attr]
    return {
        **{state: counts[state] for state in ("passed", "failed", "skipped")},
        "seconds": round(float(suite.get("time", "0"))),
        "failed_tests": failed,
        "skip_reasons": dict(reasons.most_common()),
    }


class CellRun:
    """One cell being set up and tested below `work`; every command's output goes to its log."""

    def __init__(self, cell: Cell, python: str, work: Path, log: Path, uv: bool = False) -> None:
        self.cell = cell
        self.python = python
        self.folder = work / cell.name
        self.source = self.folder / "source"
        self.own_python = str(self.folder / "venv" / "bin" / "python")
        self.log = log
        self.uv = uv

    def call(self, *command: str, step: str, check: bool = True) -> str:
        """What the command printed.

        Raises:
            SetUpError: it failed and `check` is set.
        """
        # A PYTHONPATH of the user's would bring another copy of a package in; one thread each is what `make test` uses.
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        # Straight into the log, so that one can look at a test run of an hour while it runs.
        with self.log.open("ab+") as log:
            log.write(f"$ {' '.join(command)}\n".encode())
            log.flush()
            start = log.tell()
            answer = subprocess.run(
                command, cwd=self.source, env={**kept, "OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, check=False,
            )  # fmt: skip
            log.seek(start)
            said = log.read().decode(errors="replace")
        if check and answer.returncode:
            last = [line.strip() for line in said.splitlines() if line.strip()][-2:]
            raise SetUpError(f"{step}: {' '.join(last)[-300:]}")
        return said

    def clone(self) -> None:
        """A clone of the last commit, beside the COCO sample that some tests look for."""
        shutil.rmtree(self.source, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(self.source)], check=True)
        sample = REPOSITORY.parent / "shared"
        link = self.folder / "shared"
        if sample.is_dir() and not link.is_symlink():
            link.symlink_to(sample)

    def set_up(self) -> None:
        """The environment, in the steps of `make setup`; one that was kept with the same requirements is used again.

        Raises:
            SetUpError: a step failed, or an installed Detectron2 was not left alone.
        """
        wanted = self.folder / "requirements.txt"
        stamp = self.folder / "set-up-done"
        pins = (self.source / "requirements.txt").read_text(encoding="utf-8")
        if self.cell.versions == "oldest":
            pins = merge_requirements(pins, (self.source / "requirements-oldest.txt").read_text(encoding="utf-8"))
        if stamp.is_file() and stamp.read_text(encoding="utf-8") == pins:
            return
        stamp.unlink(missing_ok=True)
        shutil.rmtree(self.folder / "venv", ignore_errors=True)
        wanted.write_text(pins, encoding="utf-8")
        self.call(self.python, "-m", "venv", str(self.folder / "venv"), step="venv")
        pip = (self.own_python, "-m", "pip", "install")
        if self.uv:
            self.call("uv", "pip", "install", "--python", self.own_python, "-r", str(wanted), step="requirements")
        else:
            self.call(*pip, "--use-pep517", "-r", str(wanted), step="requirements")
        if self.cell.detectron2 == "earlier":
            self._install_earlier_detectron2(pip)
        self.call(self.own_python, "tools/install_detectron2.py", "--cache", str(self._cache), step="Detectron2")
        self.call(*pip, "--no-deps", "--no-build-isolation", "-e", ".", step="this package")
        stamp.write_text(pins, encoding="utf-8")

    @property
    def _cache(self) -> Path:
        return REPOSITORY / ".cache"

    def _install_earlier_detectron2(self, pip: tuple[str, ...]) -> None:
        source = install_detectron2.fetch_wheel(self.own_python, self._cache)
        install_detectron2.check_hash(source)
        files = install_detectron2.respell(install_detectron2.read_detectron2(source)).files
        files["__init__.py"] = re.sub(
            rb"^__version__ = .*$",
            f'__version__ = "{EARLIER_DETECTRON2}"'.encode(),
            files["__init__.py"],
            flags=re.MULTILINE,
        )
        wheel = install_detectron2.build_wheel(files, self.folder, EARLIER_DETECTRON2)
        self.call(*pip, "--no-deps", "--no-index", str(wheel), step="another Detectron2")
        before = self._digest_detectron2()
        said = self.call(self.own_python, "tools/install_detectron2.py", step="Detectron2")
        if "left alone" not in said or self._digest_detectron2() != before:
            raise SetUpError(f"tools/install_detectron2.py must leave an installed Detectron2 alone, but said: {said}")

    def _digest_detectron2(self) -> str:
        packages = next((self.folder / "venv" / "lib").glob("python*")) / "site-packages"
        digest = hashlib.sha256()
        for path in sorted(packages.glob("detectron2*/**/*")):
            if path.is_file() and path.suffix != ".pyc":
                digest.update(f"{path.relative_to(packages)}\0".encode() + path.read_bytes())
        return digest.hexdigest()

    def read_versions(self) -> dict[str, str]:
        """Of Python and of the packages in STATED, as the environment states them."""
        code = (
            "import importlib.metadata as m, json, platform, sys\n"
            "print(json.dumps({'python': platform.python_version(), **{n: m.version(n) for n in sys.argv[1:]}}))"
        )
        answer = self.call(self.own_python, "-c", code, *STATED, step="versions")
        return json.loads(answer.splitlines()[-1])

    def test(self, selection: Sequence[str], jobs: int) -> dict[str, Any]:
        """What the test run of `selection` came to.

        Raises:
            SetUpError: pytest ended without a report of tests.
        """
        report = self.folder / "report.xml"
        options = [
            "-p",
            "no:cacheprovider",
            "-n",
            str(jobs if jobs > 1 else 0),
            "--timeout",
            "900",
            "--junitxml",
            str(report),
        ]
        before = _child_cpu_seconds()
        said = self.call(self.own_python, "-m", "pytest", *options, *selection, step="tests", check=False)
        try:
            return {**read_report(report), "cpu_seconds": round(_child_cpu_seconds() - before)}
        except (OSError, ValueError, ET.ParseError) as error:
            raise SetUpError(f"tests: no report ({error}): {said.strip()[-300:]}") from error


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
            path = args.output / f"{cell.name}.json"
            if not args.again and _is_done(path, commit, args.select):
                print(f"{cell.name}: done already", flush=True)
                continue
            print(f"{cell.name}: setting up and testing (log: {cell.name}.log)", flush=True)
            result = run_cell(cell, args, pythons[cell.python], commit)
            _write_json(path, result)
            print(f"{cell.name}: {result['state']} {result.get('reason', '')}".rstrip(), flush=True)
    results = [_read_result(args.output / f"{cell.name}.json", cell) for cell in cells]
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


def _child_cpu_seconds() -> float:
    """Of every process that was started here and has ended; unlike seconds, it does not depend on what else runs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _commit() -> str:
    """The last commit's short name, which is what the cells test."""
    command = ["git", "rev-parse", "--short=9", "HEAD"]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()


def _is_done(path: Path, commit: str, select: str) -> bool:
    if not path.is_file():
        return False
    result = json.loads(path.read_text(encoding="utf-8"))
    return (result["commit"], result["select"]) == (commit, select) and result["state"] in ("passed", "failed")


def _read_result(path: Path, cell: Cell) -> dict[str, Any]:
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    return {**cell._asdict(), "name": cell.name, "state": "not run", "reason": "not asked for yet"}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    # A killed run leaves the old result or the new one.
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def _pins(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _name_of(line: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0].lower()


if __name__ == "__main__":
    sys.exit(main())
