"""What a wheel and a source archive hold, and that the wheel works away from the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import s2uniseg_d2
from tests.checkpoint import write_checkpoint
from tests.tiny import tiny_words, write_pictures

DIST = f"s2uniseg_d2-{s2uniseg_d2.__version__}"
# Of a checkout, what a source archive leaves out.
ONLY_IN_GIT = {".gitignore", ".ci/run"}
WRITTEN_BY_SETUPTOOLS = {"PKG-INFO", "setup.cfg", "MANIFEST.in"}
# What builds and runs leave in a checkout.
LITTER = (
    "docs/api/index.rst",
    "datasets/scenes/train/images/000001.jpg",
    "output/model_final.pth",
    "configs/__pycache__/x.cpython-311.pyc",
    "s2uniseg_d2/core/__pycache__/x.cpython-311.pyc",
    "s2uniseg_d2/notes.txt",
    "tests/left.npz",
    "notes.txt",
)


def run(*words: object, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(word) for word in words]
    result = subprocess.run(command, cwd=cwd, env=kept | more, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def tracked_files(repository: Path) -> set[str]:
    """Files of the commit and of the work on it; an archive without git is the checkout itself."""
    if not (repository / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no git here to say which files are the checkout's")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=repository).stdout
    return {name for name in listed.split("\0") if name and (repository / name).is_file()}


@pytest.fixture(scope="module")
def source(repository, tmp_path_factory):
    """A copy of the checkout's files, with litter between them."""
    folder = tmp_path_factory.mktemp("source")
    for name in (*tracked_files(repository), *LITTER):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name in LITTER:
            (folder / name).write_bytes(b"x")
        else:
            shutil.copy2(repository / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def archives(source):
    """The wheel and the source archive, by the hooks that pip and build call."""
    code = (
        "from setuptools import build_meta as b\n"
        "import pathlib; pathlib.Path('dist').mkdir()\n"
        "b.build_sdist('dist'); b.build_wheel('dist')\n"
    )
    run(sys.executable, "-c", code, cwd=source)
    return source / "dist"


@pytest.fixture(scope="module")
def wheel(archives):
    return archives / f"{DIST}-py3-none-any.whl"


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A fresh virtual environment with the wheel; its dependencies are those that the tests run with."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    options = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=folder)
    packages = Path(run(python, "-c", "import sysconfig as s; print(s.get_path('purelib'))", cwd=folder).stdout.strip())
    # A path alone: the editable install of the checkout beside it is not read.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


class TestContents:
    def test_wheel_holds_the_package_and_nothing_else(self, repository, wheel):
        names = set(zipfile.ZipFile(wheel).namelist())
        tracked = tracked_files(repository)
        package = {name for name in tracked if name.startswith("s2uniseg_d2/")}
        package |= {f"s2uniseg_d2/{name}" for name in tracked if name.startswith("configs/")}
        metadata = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "LICENSE"}
        names = {name.replace(".dist-info/licenses/", ".dist-info/") for name in names}  # as newer setuptools has it
        assert names == package | {f"{DIST}.dist-info/{name}" for name in metadata}
        assert "s2uniseg_d2/py.typed" in names
        assert {name for name in names if name.endswith((".html", ".css", ".js"))}

    def test_source_archive_holds_the_checkout_and_nothing_else(self, repository, archives):
        with tarfile.open(archives / f"{DIST}.tar.gz") as archive:
            names = {member.name.removeprefix(f"{DIST}/") for member in archive.getmembers() if member.isfile()}
        found = {name for name in names if not name.startswith("s2uniseg_d2.egg-info/")}
        assert found == (tracked_files(repository) - ONLY_IN_GIT) | WRITTEN_BY_SETUPTOOLS

    def test_a_wheel_built_from_the_source_archive_is_the_same(self, archives, wheel, tmp_path):
        with tarfile.open(archives / f"{DIST}.tar.gz") as archive:
            archive.extractall(tmp_path, filter="data")
        code = "from setuptools import build_meta as b; b.build_wheel('.')"
        run(sys.executable, "-c", code, cwd=tmp_path / DIST)
        again = tmp_path / DIST / wheel.name
        read = [{info.filename: info.CRC for info in zipfile.ZipFile(path).infolist()} for path in (wheel, again)]
        assert read[0] == read[1]

    def test_metadata_can_be_read_by_a_registry(self, wheel):
        text = zipfile.ZipFile(wheel).read(f"{DIST}.dist-info/METADATA").decode()
        head, _, description = text.partition("\n\n")
        assert "Description-Content-Type: text/markdown" in head
        assert "License-File: LICENSE" in head
        assert "Requires-Python: >=3.10" in head
        assert re.search(r"^Requires-Dist: torch ?\(?>=2\.4\)?$", head, re.MULTILINE)
        assert description.startswith("# S2-UniSeg on Detectron2")


class TestInstalled:
    """The package from the wheel, in a folder that has nothing of the checkout."""

    @pytest.fixture
    def python(self, environment):
        return environment / "bin" / "python"

    def test_is_what_is_imported(self, environment, python, tmp_path):
        code = "import s2uniseg_d2, importlib.metadata as m; print(s2uniseg_d2.__file__, m.version('s2uniseg_d2'))"
        where, version = run(python, "-c", code, cwd=tmp_path).stdout.split()
        assert Path(where).is_relative_to(environment)
        assert version == s2uniseg_d2.__version__

    def test_commands_say_how_they_are_used(self, environment, tmp_path):
        scripts = {path.name for path in (environment / "bin").glob("s2uniseg-*")}
        assert scripts == {"s2uniseg-demo", "s2uniseg-own-pictures", "s2uniseg-pseudo-masks"}
        for name in scripts:
            assert "--output" in run(environment / "bin" / name, "--help", cwd=tmp_path).stdout

    def test_recipes_are_found(self, environment, python, tmp_path):
        code = "from s2uniseg_d2.own_pictures import CONFIGS; print(CONFIGS)"
        folder = Path(run(python, "-c", code, cwd=tmp_path).stdout.strip())
        assert folder.is_relative_to(environment)
        code = f"from s2uniseg_d2.config import load_config; load_config('{folder}/own_pictures_cpu.yaml')"
        run(python, "-W", "ignore", "-c", code, cwd=tmp_path)

    @pytest.mark.slow
    def test_labels_pictures(self, python, tmp_path):
        write_pictures(tmp_path / "pictures", 1)
        words = ("--input", "pictures", "--output", "labels.json", "--weights", "", "--image-size", "96")
        result = run(python, "-m", "s2uniseg_d2.pseudo_masks", *words, "--", *tiny_words(), cwd=tmp_path)
        assert "masks of 1 picture;" in result.stdout
        assert (tmp_path / "labels.json").exists()

    @pytest.mark.slow
    def test_makes_a_gallery(self, environment, tmp_path):
        write_pictures(tmp_path / "pictures", 1)
        weights = write_checkpoint(tmp_path / "run")
        words = ("--input", "pictures", "--weights", weights, "--output", "masks", "--score-threshold", "0")
        result = run(environment / "bin" / "s2uniseg-demo", *words, cwd=tmp_path)
        assert "1 picture, " in result.stdout
        assert "<script>" in (tmp_path / "masks" / "index.html").read_text()
        assert np.asarray(Image.open(next((tmp_path / "masks").rglob("*.png")))).size

    def test_mypy_sees_its_types(self, wheel, tmp_path):
        """Without dependencies: what mypy says comes from the wheel's own annotations."""
        run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare", cwd=tmp_path)
        python = tmp_path / "bare" / "bin" / "python"
        options = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
        run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=tmp_path)
        (tmp_path / "client.py").write_text(
            "from s2uniseg_d2.core.labelers.uniap import UniAPConfig\n"
            "reveal_type(UniAPConfig().sigma)\n"
            "UniAPConfig(sigma='much')\n"
        )
        command = (sys.executable, "-m", "mypy", "--ignore-missing-imports", "--cache-dir", tmp_path / "cache")
        result = subprocess.run(
            [str(word) for word in (*command, "--python-executable", python, "client.py")],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert 'client.py:2: note: Revealed type is "float"' in result.stdout.replace("builtins.", "")
        assert 'client.py:3: error: Argument "sigma" to "UniAPConfig" has incompatible type "str"' in result.stdout
        assert "Found 1 error in 1 file" in result.stdout


class TestCitation:
    @pytest.fixture
    def citation(self, repository):
        return yaml.safe_load((repository / "CITATION.cff").read_text())

    def test_names_this_software(self, citation):
        required = {"cff-version", "message", "title", "authors"}
        assert required <= set(citation)
        assert citation["version"] == s2uniseg_d2.__version__
        assert citation["license"] == "Apache-2.0"
        assert citation["authors"] == [{"name": "The S2-UniSeg D2 authors"}]

    def test_cites_the_paper(self, citation):
        (paper,) = citation["references"]
        assert paper["title"].startswith("S2-UniSeg: Fast Universal Agglomerative Pooling")
        assert len(paper["authors"]) == 13
        assert all(set(author) == {"family-names", "given-names"} for author in paper["authors"])
        assert {"type", "title", "authors"} <= set(paper)
