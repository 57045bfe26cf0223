from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
from PIL import Image

from s2uniseg_d2.data import register_benchmarks


@pytest.fixture(scope="session")
def load_tool(repository):
    """A function that imports a tool of ``datasets/`` by its name."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, repository / "datasets" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def root(tmp_path):
    """An empty folder of all data sets, to which the benchmarks' names lead for one test."""
    folder = tmp_path / "data sets"
    folder.mkdir()
    register_benchmarks(folder)
    yield folder
    register_benchmarks()


@pytest.fixture
def run(root, load_tool, capsys):
    """A function that runs a tool on ``root``; returns exit status, output and errors."""

    def call(name, *arguments, partial=True):
        options = ["--root", str(root), *(["--partial"] if partial else [])]
        status = load_tool(name).main([*options, *map(str, arguments)])
        return status, *capsys.readouterr()

    return call


def write_picture(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels)).save(path)
    return path


def write_photo(path, height, width, seed=0):
    return write_picture(path, np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_truth(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def snapshot(folder):
    """Contents and times of all files below a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.fixture
def files():
    """The functions that write and compare files."""

    class Files:
        picture = staticmethod(write_picture)
        photo = staticmethod(write_photo)
        truth = staticmethod(write_truth)
        snapshot = staticmethod(snapshot)

    return Files
