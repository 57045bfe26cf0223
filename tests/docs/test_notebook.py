"""The notebook runs from top to bottom, and is kept without what a run leaves in it."""

from __future__ import annotations

import pytest
from nbclient import NotebookClient
from nbformat import read

from .commands import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "docs" / "notebooks").glob("*.ipynb"))


def load(path):
    return read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_kept_without_outputs(path):
    cells = [cell for cell in load(path).cells if cell.cell_type == "code"]
    assert cells
    assert [cell.outputs for cell in cells] == [[]] * len(cells)
    assert [cell.execution_count for cell in cells] == [None] * len(cells)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path):
    notebook = load(path)
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=600, startup_timeout=300, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    complained = "".join(output.text for output in outputs if output.get("name") == "stderr")
    drawn = [output for output in outputs if "image/png" in output.get("data", {})]
    assert "Warning" not in complained
    assert len(drawn) == 3
    # three regions on a ground, of which two are alike
    assert "groups after each layer: [4, 4, 4, 4, 4]" in printed
    assert "semantic masks, tokens: [260, 60, 64]" in printed
    assert "loss_query_sd" in printed
