"""Which modules the API reference describes."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from .commands import REPOSITORY


@pytest.fixture(scope="module")
def reference():
    path = REPOSITORY / "docs" / "extensions" / "reference.py"
    spec = importlib.util.spec_from_file_location("docs_reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_public_modules_are_on_one_page_each(reference):
    pages = reference.modules_by_page(REPOSITORY / "s2uniseg_d2")
    listed = [module for modules in pages.values() for module in modules]
    files = (REPOSITORY / "s2uniseg_d2").rglob("[!_]*.py")
    expected = {".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in files}
    assert sorted(listed) == sorted(expected)
    assert {"s2uniseg_d2", "s2uniseg_d2.core.labelers", "s2uniseg_d2.engine"} <= set(pages)


def test_private_modules_are_left_out(reference, tmp_path):
    package = tmp_path / "package"
    (package / "_hidden").mkdir(parents=True)
    for name in ("__init__.py", "shown.py", "_private.py", "_hidden/inner.py"):
        (package / name).touch()
    assert reference.modules_by_page(package) == {"package": ["package.shown"]}


def test_pages_are_written_and_old_ones_removed(reference, tmp_path):
    docs = tmp_path / "docs"
    (docs / "api").mkdir(parents=True)
    (docs / "api" / "gone.rst").touch()
    package = tmp_path / "s2uniseg_d2"
    package.mkdir()
    for name in ("__init__.py", "parts.py"):
        (package / name).touch()
    reference.write_pages(SimpleNamespace(srcdir=docs, tags=set()))
    assert {path.name for path in (docs / "api").iterdir()} == {"index.rst", "s2uniseg_d2.rst"}
    assert ".. automodule:: s2uniseg_d2.parts" in (docs / "api" / "s2uniseg_d2.rst").read_text()


def test_fields_of_named_tuples_are_described_by_their_class(reference):
    class Pair(NamedTuple):
        left: int

    assert reference.skip_fields(None, "class", "left", Pair.left, False, None) is True
    assert reference.skip_fields(None, "class", "f", test_private_modules_are_left_out, False, None) is None


def test_bars_outside_of_code_are_escaped(reference):
    lines = ["mean |D·F| of ``a|b``", "and |x|"]
    reference.escape_bars(None, "module", "m", None, None, lines)
    assert lines == [r"mean \|D·F\| of ``a|b``", r"and \|x\|"]
