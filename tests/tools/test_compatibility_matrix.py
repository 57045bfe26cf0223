"""The matrix on invented cells and interpreters: nothing here reaches a network or sets an environment up."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

PASSING = """<testsuites><testsuite time="12.4">
<testcase classname="tests.core.test_a" name="test_one"/>
<testcase classname="tests.core.test_a" name="test_two"/>
<testcase classname="tests.core.test_b" name="test_three"><skipped message="needs a GPU"/></testcase>
</testsuite></testsuites>"""


@pytest.fixture(scope="module")
def matrix(repository):
    path = str(repository / "tools")
    sys.path.insert(0, path)
    yield importlib.import_module("compatibility_matrix")
    sys.path.remove(path)
    for name in ("compatibility_matrix", "compatibility_cell", "compatibility_report", "install_detectron2"):
        sys.modules.pop(name, None)


@pytest.fixture
def cell(matrix):
    return sys.modules["compatibility_cell"]


@pytest.fixture
def arguments(tmp_path):
    return ["--output", str(tmp_path / "out"), "--work", str(tmp_path / "work"), "--document", str(tmp_path / "doc.md")]


@pytest.fixture
def cells_by_name(matrix):
    return {cell.name: cell for cell in matrix.CELLS}


def write_python(path, version):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {version}\n")
    path.chmod(0o755)
    return str(path)


class TestCells:
    def test_every_python_has_the_oldest_and_the_newest(self, matrix, cells_by_name):
        assert {f"{versions}-{python}" for versions in ("oldest", "newest") for python in matrix.PYTHONS} < set(
            cells_by_name
        )
        assert cells_by_name["newest-3.11-detectron2"] == matrix.Cell("3.11", "newest", "earlier")

    def test_the_oldest_take_the_place_of_the_newest(self, cell):
        newest = (
            "# why\ntorch==9; python_version >= '3.11'\ntorch==8; python_version < '3.11'\n\nPyYAML==6.0.3\nruff==1\n"
        )
        oldest = "# why\nTorch==2\npyyaml==6.0\n"
        assert cell.merge_requirements(newest, oldest) == "ruff==1\nTorch==2\npyyaml==6.0\n"


class TestFindPython:
    def test_on_path(self, matrix, tmp_path, monkeypatch):
        python = write_python(tmp_path / "bin" / "python3.12", "3.12")
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
        assert matrix.find_python("3.12", {}) == python

    @pytest.mark.parametrize("answer", ["3.9", ""])
    def test_none_that_works(self, matrix, tmp_path, monkeypatch, answer):
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        assert matrix.find_python("3.12", {}) is None
        write_python(tmp_path / "bin" / "python3.12", answer)
        assert matrix.find_python("3.12", {}) is None

    def test_a_given_one_must_be_that_version(self, matrix, tmp_path):
        python = write_python(tmp_path / "python", "3.11")
        assert matrix.find_python("3.11", {"3.11": python}) == python
        with pytest.raises(ValueError, match=r"--python 3\.12 must be a Python 3\.12 with venv, got .* \(3\.11\)"):
            matrix.find_python("3.12", {"3.12": python})
        with pytest.raises(ValueError, match=r"--python 3\.12 must be .*No such file"):
            matrix.find_python("3.12", {"3.12": str(tmp_path / "nothing")})

    def test_refuses_an_unknown_version(self, matrix, arguments, capsys):
        with pytest.raises(SystemExit):
            matrix.main([*arguments, "--python", "3.9=python3.9"])
        assert "--python must be one of 3.10, 3.11, 3.12, 3.13 with =PATH" in capsys.readouterr().err


class TestReport:
    def test_counts_and_reasons(self, cell, tmp_path):
        (tmp_path / "report.xml").write_text(PASSING)
        assert cell.read_report(tmp_path / "report.xml") == {
            "passed": 2, "failed": 0, "skipped": 1, "seconds": 12, "failed_tests": [],
            "skip_reasons": {"needs a GPU": 1},
        }  # fmt: skip

    @pytest.mark.parametrize("tag", ["failure", "error"])
    def test_failures_and_errors_are_named(self, cell, tmp_path, tag):
        text = PASSING.replace('name="test_two"/>', f'name="test_two"><{tag} message="no"/></testcase>')
        (tmp_path / "report.xml").write_text(text)
        report = cell.read_report(tmp_path / "report.xml")
        assert (report["passed"], report["failed"]) == (1, 1)
        assert report["failed_tests"] == ["tests.core.test_a::test_two"]

    def test_no_test_is_no_pass(self, cell, tmp_path):
        (tmp_path / "report.xml").write_text('<testsuites><testsuite time="1"/></testsuites>')
        with pytest.raises(ValueError, match="a test report must hold tests, got none"):
            cell.read_report(tmp_path / "report.xml")


class TestMain:
    @pytest.fixture
    def steps(self, matrix, monkeypatch):
        """Cells that are set up and tested by word alone: `steps` holds what each cell's test run came to."""
        outcomes = {}
        selections = outcomes["selections"] = []

        def test(run, selection, jobs):
            selections.append(selection)
            outcome = outcomes[run.cell.name]
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        def clone(run):
            run.folder.mkdir(parents=True)

        monkeypatch.setattr(matrix, "find_python", lambda version, given: "python" if version != "3.13" else None)
        monkeypatch.setattr(matrix.CellRun, "clone", clone)
        monkeypatch.setattr(matrix.CellRun, "set_up", lambda run: None)
        monkeypatch.setattr(matrix.CellRun, "read_versions", lambda run: {"python": "3.11.7", "torch": "2.4.0"})
        monkeypatch.setattr(matrix.CellRun, "test", test)
        return outcomes

    @staticmethod
    def outcome(failed=0):
        names = [f"test_{index}" for index in range(failed)]
        counts = {"passed": 5, "failed": failed, "skipped": 1, "cpu_seconds": 3}
        return {**counts, "failed_tests": names, "skip_reasons": {}}

    def test_goes_on_after_failures_and_names_what_was_not_run(self, matrix, steps, arguments, tmp_path, capsys):
        steps.update(
            {"oldest-3.10": matrix.SetUpError("requirements: no | wheel"), "oldest-3.11": self.outcome(2)},
            **{"newest-3.11": self.outcome()},
        )
        names = ["oldest-3.10", "oldest-3.11", "newest-3.11", "newest-3.13"]
        assert matrix.main([*arguments, "--only", *names]) == 1
        rows = {line.split(" | ")[0][2:]: line for line in capsys.readouterr().out.splitlines() if line[:2] == "| "}
        assert rows["oldest-3.10"].endswith("| set-up failed: requirements: no / wheel |")
        assert " | 5 | 2 | 1 | 3 | failed |" in rows["oldest-3.11"]
        assert " | 3.11.7 | 2.4.0 |" in rows["newest-3.11"]
        assert rows["newest-3.11"].endswith("| passed |")
        assert rows["newest-3.13"].endswith("| not run: no python3.13 with venv on PATH, and none named by --python |")
        assert not list((tmp_path / "work").iterdir()), "environments must go"
        steps["oldest-3.10"] = self.outcome()
        assert matrix.main([*arguments, "--only", "oldest-3.10"]) == 0, "a set-up that failed is tried again"

    def test_passes_if_all_pass_and_repeats_nothing(self, matrix, steps, arguments):
        steps["newest-3.11"] = self.outcome()
        asked = [*arguments, "--only", "newest-3.11"]
        assert matrix.main(asked) == 0
        steps["newest-3.11"] = self.outcome(1)
        assert matrix.main(asked) == 0
        assert matrix.main([*asked, "--again"]) == 1
        steps["newest-3.11"] = self.outcome()
        assert matrix.main([*asked, "--select", "fast"]) == 0
        assert matrix.main([*asked, "--select", "tests/core -k 'a or b'"]) == 0
        assert steps["selections"] == [[], [], ["-m", "not slow"], ["tests/core", "-k", "a or b"]]

    def test_another_commit_is_tested_anew(self, matrix, steps, arguments, monkeypatch, tmp_path):
        steps["newest-3.11"] = self.outcome(1)
        asked = [*arguments, "--only", "newest-3.11"]
        assert matrix.main(asked) == 1
        steps["newest-3.11"] = self.outcome()
        assert matrix.main(asked) == 1
        monkeypatch.setattr(matrix, "_commit", lambda: "another")
        assert matrix.main(asked) == 0
        assert json.loads((tmp_path / "out" / "newest-3.11.all.json").read_text())["commit"] == "another"

    def test_the_document_holds_table_failures_and_skips(self, matrix, steps, arguments, tmp_path):
        steps["oldest-3.11"] = {**self.outcome(1), "skip_reasons": {"needs a GPU": 1}}
        matrix.main([*arguments, "--only", "oldest-3.11"])
        matrix.main([*arguments, "--only", "oldest-3.11", "--select", "tests/core -k a"])
        matrix.main([*arguments, "--report"])
        text = (tmp_path / "doc.md").read_text()
        assert text.count("\n| ") == 2 + len(matrix.CELLS) + 1, "two selections of one cell are two rows"
        assert text.count("| `tests/core -k a` | 5 | 1 | 1 | 3 | failed |") == 1
        assert "* oldest-3.11: `test_0`" in text
        assert "* needs a GPU: oldest-3.11 (1)\n" in text
        assert text.count("not run: not yet") == len(matrix.CELLS) - 1


class TestCellRun:
    @pytest.fixture
    def run(self, matrix, tmp_path):
        run = matrix.CellRun(matrix.Cell("3.11", "newest"), sys.executable, tmp_path / "work", tmp_path / "log.txt")
        run.source.mkdir(parents=True)
        return run

    def test_a_failed_step_is_named_with_its_last_lines(self, matrix, run):
        program = "print('noise'); raise SystemExit('the reason')"
        with pytest.raises(matrix.SetUpError, match=r"^Detectron2: .*the reason"):
            run.call(sys.executable, "-c", program, step="Detectron2")
        assert "noise" in run.log.read_text()

    def test_a_pythonpath_of_the_user_does_not_reach_a_cell(self, run, monkeypatch):
        monkeypatch.setenv("PYTHONPATH", "elsewhere")
        said = run.call(sys.executable, "-c", "import os; print(os.environ.get('PYTHONPATH'))", step="x")
        assert said.strip() == "None"

    def test_pytest_without_a_report_has_not_passed(self, matrix, run, tmp_path):
        run.own_python = str(tmp_path / "python")
        write_python(tmp_path / "python", "usage error")
        with pytest.raises(matrix.SetUpError, match=r"tests: no report .*usage error"):
            run.test([], jobs=1)

    def test_a_run_counts_the_time_of_its_processes(self, run, tmp_path):
        run.own_python = str(tmp_path / "python")
        busy = "import time\nwhile time.process_time() < 1.2: pass"
        report = run.folder / "report.xml"
        (tmp_path / "python").write_text(
            f"#!/bin/sh\n'{sys.executable}' -c '{busy}'\ncat >{report} <<E\n{PASSING}\nE\n"
        )
        (tmp_path / "python").chmod(0o755)
        result = run.test([], jobs=1)
        assert (result["passed"], result["seconds"]) == (2, 12)
        assert 1 <= result["cpu_seconds"] < 12

    def test_a_clone_holds_the_last_commit_alone(self, cell, run, tmp_path, monkeypatch):
        checkout = tmp_path / "project"
        checkout.mkdir()
        git = ["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@b"]
        (checkout / "kept.py").write_text("committed")
        for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
            subprocess.run([*git, *words], check=True)
        (checkout / "kept.py").write_text("changed")
        (tmp_path / "shared" / "data").mkdir(parents=True)
        monkeypatch.setattr(cell, "REPOSITORY", checkout)
        run.clone()
        assert (run.source / "kept.py").read_text() == "committed"
        assert (run.source.parent / "shared" / "data").is_dir()

    @pytest.mark.parametrize("meddles", [False, True])
    def test_an_earlier_detectron2_must_be_left_alone(self, matrix, cell, run, tmp_path, monkeypatch, meddles):
        installer = matrix.install_detectron2
        package = tmp_path / "work" / run.cell.name / "venv" / "lib" / "python3.11" / "site-packages" / "detectron2"
        built = {}

        def call(*command, step, check=True):
            if command[-1].endswith(".whl"):
                package.mkdir(parents=True)
                (package / "__init__.py").write_bytes(built["__init__.py"])
            elif meddles:
                (package / "__init__.py").write_text("other")
            return "Detectron2 x is installed already and is left alone."

        def build_wheel(files, folder, version):
            built.update(files)
            return folder / f"detectron2-{version}.whl"

        monkeypatch.setattr(run, "call", call)
        monkeypatch.setattr(installer, "fetch_wheel", lambda python, cache: tmp_path)
        monkeypatch.setattr(installer, "check_hash", lambda wheel: None)
        monkeypatch.setattr(
            installer, "read_detectron2", lambda wheel: {"__init__.py": b'x = 1\n__version__ = "0.6"\n'}
        )
        monkeypatch.setattr(installer, "respell", lambda files: installer.Respelling(files, 1, 1))
        monkeypatch.setattr(installer, "build_wheel", build_wheel)
        if meddles:
            with pytest.raises(matrix.SetUpError, match="must leave an installed Detectron2 alone"):
                run._install_earlier_detectron2(("pip",))
        else:
            run._install_earlier_detectron2(("pip",))
        assert built["__init__.py"].decode() == f'x = 1\n__version__ = "{cell.EARLIER_DETECTRON2}"\n'
