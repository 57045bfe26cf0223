"""One cell of tools/compatibility_matrix.py: its environment, and what its test run came to."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))
import install_detectron2

REPOSITORY = Path(__file__).resolve().parents[1]
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


def merge_requirements(newest: str, oldest: str) -> str:
    """The lines of `newest` with those that `oldest` names replaced by its own."""
    replaced = {_name_of(line) for line in _pins(oldest)}
    return "\n".join([line for line in _pins(newest) if _name_of(line) not in replaced] + _pins(oldest)) + "\n"


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


def _child_cpu_seconds() -> float:
    """Of every process that was started here and has ended; unlike seconds, it does not depend on what else runs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _pins(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _name_of(line: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0].lower()
