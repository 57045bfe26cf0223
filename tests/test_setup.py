"""Set-up files: what the two commands, the requirements and the licence promise."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import setuptools
import torch
from packaging.requirements import Requirement
from packaging.version import Version

import s2uniseg_d2
from s2uniseg_d2 import _detectron2

PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def call_make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # make's own variables would reach the inner make when the tests run under make; so would a PYTHON of the user's.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "PYTHON"}
    return subprocess.run(["make", *arguments], cwd=folder, env=kept, capture_output=True, text=True, check=False)


def write_python(path: Path, version: str, venv: bool = True) -> str:
    """A stand-in for a Python interpreter that states `version` and can or cannot import venv."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\ncase "$2" in *ensurepip*) exit {0 if venv else 1};; *) echo {version};; esac\n')
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def checkout(repository, tmp_path):
    """A folder with the set-up files alone, where make cannot install anything real."""
    for name in ("Makefile", "requirements.txt", "setup.py"):
        (tmp_path / name).write_bytes((repository / name).read_bytes())
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "install_detectron2.py").touch()
    return tmp_path


def read_pins(repository: Path, name: str = "requirements.txt") -> list[Requirement]:
    lines = (repository / name).read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def read_setup(repository: Path, monkeypatch) -> dict[str, object]:
    arguments: dict[str, object] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **given: arguments.update(given))
    monkeypatch.chdir(repository)
    runpy.run_path("setup.py")
    return arguments


class TestMakefile:
    def test_help_is_the_default_and_lists_every_target(self, repository):
        text = (repository / "Makefile").read_text()
        internal = {"same-python"}
        targets = set(re.findall(r"^\.PHONY: (.*)$", text, flags=re.MULTILINE)[0].split()) - internal
        listed = call_make(repository).stdout
        assert set(re.findall(r"^  make (\S+) +\S", listed, flags=re.MULTILINE)) == targets
        assert {"help", "setup", "demo", "test", "lint", "types", "check", "bench", "clean"} <= targets
        assert listed == call_make(repository, "help").stdout

    @pytest.mark.parametrize(("target", "command"), [("demo", "tools/run_demo.py"), ("test", "-m pytest")])
    def test_starts_at_once_when_set_up(self, checkout, target, command):
        (checkout / ".venv").mkdir()
        (checkout / ".venv" / ".setup-done").touch()
        planned = call_make(checkout, "--dry-run", target).stdout
        assert command in planned
        assert "pip install" not in planned

    @pytest.mark.parametrize("changed", ["requirements.txt", "setup.py", "tools/install_detectron2.py"])
    def test_sets_up_again_when_what_it_installs_changes(self, checkout, changed):
        (checkout / ".venv").mkdir()
        stamp = checkout / ".venv" / ".setup-done"
        stamp.touch()
        later = stamp.stat().st_mtime + 10
        os.utime(checkout / changed, (later, later))
        assert "pip install" in call_make(checkout, "--dry-run", "test").stdout

    @pytest.mark.parametrize("version", ["3.9", "3.14", "2.7"])
    def test_refuses_another_python(self, checkout, version):
        python = write_python(checkout / "bin" / "python", version)
        result = call_make(checkout, f"PYTHON={python}", "setup")
        assert result.returncode != 0
        assert f"is Python {version}, 3.10 to 3.13 is needed" in result.stderr
        assert not (checkout / ".venv").exists()

    def test_says_when_python_does_not_run(self, checkout):
        result = call_make(checkout, "PYTHON=no-such-python", "setup")
        assert result.returncode != 0
        assert "'no-such-python' does not run: install Python 3.10 to 3.13" in result.stderr

    def test_says_when_venv_is_missing(self, checkout):
        python = write_python(checkout / "bin" / "python", "3.12", venv=False)
        result = call_make(checkout, f"PYTHON={python}", "setup")
        assert result.returncode != 0
        assert "apt-get install python3.12-venv" in result.stderr

    def test_refuses_to_run_another_python_than_asked_for(self, checkout):
        write_python(checkout / ".venv" / "bin" / "python", "3.11")
        (checkout / ".venv" / ".setup-done").touch()
        python = write_python(checkout / "bin" / "python", "3.12")
        result = call_make(checkout, f"PYTHON={python}", "test")
        assert result.returncode != 0
        assert ".venv was set up with Python 3.11, not 3.12: run 'make clean-all' first" in result.stderr

    def test_ci_runs_check(self, repository):
        script = repository / ".ci" / "run"
        assert os.access(script, os.X_OK)
        assert script.read_text().rstrip().endswith("make --no-print-directory check")
        planned = call_make(repository, "--dry-run", "--old-file=.venv/.setup-done", "check").stdout.splitlines()
        assert "pytest" in planned[-1]


class TestRequirements:
    @pytest.mark.parametrize("python", PYTHONS)
    def test_pins_each_name_exactly_once_for_every_python(self, repository, python):
        environment = {"python_version": python, "python_full_version": f"{python}.0"}
        pins = [pin for pin in read_pins(repository) if pin.marker is None or pin.marker.evaluate(environment)]
        names = [pin.name.lower() for pin in pins]
        assert len(names) == len(set(names))
        assert set(names) == {pin.name.lower() for pin in read_pins(repository)}
        for pin in pins:
            assert [specifier.operator for specifier in pin.specifier] == ["=="]

    def test_pins_lie_within_the_loose_bounds(self, repository, monkeypatch):
        bounds = {
            bound.name.lower(): bound.specifier
            for bound in map(Requirement, read_setup(repository, monkeypatch)["install_requires"])
        }
        pins = read_pins(repository)
        assert set(bounds) <= {pin.name.lower() for pin in pins}
        for pin in pins:
            (specifier,) = pin.specifier
            assert pin.name.lower() not in bounds or bounds[pin.name.lower()].contains(specifier.version), pin

    def test_the_oldest_pins_are_the_lower_bounds(self, repository, monkeypatch):
        oldest: dict[str, list[Version]] = {}
        for pin in read_pins(repository, "requirements-oldest.txt"):
            (specifier,) = pin.specifier
            assert specifier.operator == "=="
            oldest.setdefault(pin.name.lower(), []).append(Version(specifier.version))
        for bound in map(Requirement, read_setup(repository, monkeypatch)["install_requires"]):
            lower = [Version(part.version) for part in bound.specifier if part.operator == ">="]
            assert lower == [min(oldest[bound.name.lower()])], bound

    @pytest.mark.parametrize("python", PYTHONS)
    def test_the_oldest_are_pinned_once_for_every_python(self, repository, python):
        environment = {"python_version": python, "python_full_version": f"{python}.0"}
        pins = read_pins(repository, "requirements-oldest.txt")
        names = [pin.name.lower() for pin in pins if pin.marker is None or pin.marker.evaluate(environment)]
        assert len(names) == len(set(names))
        assert set(names) == {pin.name.lower() for pin in pins}
        # setuptools of those days builds with a package of its own
        assert set(names) - {"wheel"} <= {pin.name.lower() for pin in read_pins(repository)}


class TestSetup:
    def test_metadata(self, repository, monkeypatch):
        metadata = read_setup(repository, monkeypatch)
        assert metadata["name"] == "s2uniseg_d2"
        assert metadata["version"] == s2uniseg_d2.__version__
        assert metadata["license"] == "Apache-2.0"
        assert metadata["python_requires"] == ">=3.10"
        assert "torch>=2.4" in metadata["install_requires"]
        # On no registry: naming it would make `pip install -e .` fail everywhere.
        assert not [line for line in metadata["install_requires"] if line.startswith("detectron2")]

    def test_packages_are_the_package_alone(self, repository, monkeypatch):
        packages = read_setup(repository, monkeypatch)["packages"]
        folders = {path.parent.relative_to(repository) for path in (repository / "s2uniseg_d2").rglob("*.py")}
        assert set(packages) == {".".join(folder.parts) for folder in folders} | {"s2uniseg_d2.configs"}

    def test_licence_is_apache_2(self, repository):
        text = (repository / "LICENSE").read_text()
        assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
        assert re.findall(r"^   (\d)\. ", text, flags=re.MULTILINE) == list("123456789")
        assert "END OF TERMS AND CONDITIONS" in text
        assert "Copyright 2026 The S2-UniSeg D2 authors" in text


class TestRequireDetectron2:
    @pytest.fixture
    def missing(self, monkeypatch):
        """Make the named modules look absent."""

        def hide(name: str, spec: object = None) -> None:
            find = _detectron2.find_spec
            monkeypatch.setattr(_detectron2, "find_spec", lambda wanted: spec if wanted == name else find(wanted))

        return hide

    def test_passes_when_all_is_there(self):
        _detectron2.require_detectron2()

    @pytest.mark.parametrize("spec", [None, SimpleNamespace(origin=None)], ids=["absent", "bare folder"])
    def test_says_how_to_get_detectron2(self, missing, spec):
        missing("detectron2", spec)
        with pytest.raises(
            ImportError, match=r"run `python tools/install_detectron2\.py`, or follow https://"
        ) as error:
            _detectron2.require_detectron2()
        assert "\n" not in str(error.value)

    def test_says_how_to_get_torch(self, missing):
        missing("torch")
        with pytest.raises(ImportError, match=r"PyTorch is not installed: run `pip install -e \.`"):
            _detectron2.require_detectron2()

    @pytest.mark.parametrize("version", ["2.3.1", "1.13.0+cu117", "2.3.0a0+git1"])
    def test_refuses_old_torch(self, monkeypatch, version):
        monkeypatch.setattr(torch, "__version__", version)
        with pytest.raises(ImportError, match=rf"torch must be 2\.4 or newer, got {re.escape(version)}"):
            _detectron2.require_detectron2()

    @pytest.mark.parametrize("version", ["2.4.0", "2.10.0+cu130", "3.0.0a0"])
    def test_accepts_new_torch(self, monkeypatch, version):
        monkeypatch.setattr(torch, "__version__", version)
        _detectron2.require_detectron2()

    def test_training_script_prints_one_sentence(self, repository, tmp_path):
        # A site that hides Detectron2 from a whole process.
        (tmp_path / "sitecustomize.py").write_text(
            "import importlib.util as u\nfind = u.find_spec\n"
            "u.find_spec = lambda name, *rest: None if name == 'detectron2' else find(name, *rest)\n"
        )
        result = subprocess.run(
            [sys.executable, "train_net.py", "--config-file", "configs/tiny_photos.yaml"],
            cwd=repository,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 1
        assert result.stderr.startswith("train_net.py: Detectron2 is not installed: run `python tools/")
        assert result.stderr.count("\n") == 1
