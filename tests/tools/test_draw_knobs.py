from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.test_commands import load

MOST_BYTES = 150_000


@pytest.fixture(scope="module")
def knobs():
    return load("tools/draw_knobs.py")


def test_the_coarsest_mask_is_on_top(knobs):
    masks = np.zeros((3, 2, 3), dtype=bool)
    masks[0, 0, 0] = masks[1, 0] = masks[2, :, 2] = True
    assert knobs._coarsest(masks).tolist() == [[1, 1, 2], [-1, -1, 2]]


def test_a_region_keeps_its_number_from_cell_to_cell(knobs):
    before = np.array([[4, 4, 7, 7], [4, 4, 7, -1]])
    owner = np.array([[0, 0, 0, 2], [0, 0, 0, 1]])
    followed = knobs._follow(owner, before)
    # the large region shares most with 4, the small one takes 7, and what lay nowhere gets a number of its own
    assert followed.tolist() == [[4, 4, 4, 7], [4, 4, 4, 8]]


def test_each_picture_of_the_page_is_one_of_the_tool_and_small(knobs, repository):
    page = (repository / "docs" / "own-pictures.md").read_text(encoding="utf-8")
    for name in knobs.rows_by_picture((0.9, 0.8)):
        assert f"(pictures/{name})" in page
        path = repository / "docs" / "pictures" / name
        assert path.stat().st_size < MOST_BYTES
        with Image.open(path) as picture:
            assert picture.width > 3 * knobs.CELL_PX


def test_layers_and_changes_reach_the_cells(knobs):
    rows = knobs.rows_by_picture((0.9, 0.8))
    assert [[column.layers for column in row] for row in rows["knob_tau.png"]] == [[1, 2], [1, 2]]
    for column in rows["knob_omega.png"][0]:
        space, features = float(column.changes[1]), float(column.changes[3])
        assert space + features == pytest.approx(1)
