from __future__ import annotations

import numpy as np
import pytest

from s2uniseg_d2.engine.drawing import palette
from s2uniseg_d2.gallery.overlay import FILL_ALPHA, draw_overlay, stack_masks

GREY = np.full((120, 160, 3), 128, dtype=np.uint8)


def boxes(*corners, size=(120, 160)):
    masks = np.zeros((len(corners), *size), dtype=bool)
    for mask, (left, top, right, bottom) in zip(masks, corners, strict=True):
        mask[top:bottom, left:right] = True
    return masks


def tint(cluster):
    return np.rint(128 + FILL_ALPHA * (palette([cluster])[0].astype(float) - 128))


def test_small_masks_lie_above_large_ones_whatever_their_order():
    masks = boxes((40, 40, 60, 60), (20, 20, 140, 100))
    for order in ([0, 1], [1, 0]):
        index = stack_masks(masks[order])
        assert index[50, 50] == order.index(0)
        assert index[30, 30] == order.index(1)
        assert index[0, 0] == -1


def test_an_order_of_ones_own_counts():
    masks = boxes((40, 40, 60, 60), (20, 20, 140, 100))
    assert stack_masks(masks, [0, 1])[50, 50] == 1


def test_a_cluster_has_one_colour_in_all_pictures():
    here = draw_overlay(GREY, boxes((10, 10, 60, 60), (80, 10, 150, 60)), [7, 2], has_numbers=False)
    there = draw_overlay(GREY, boxes((30, 50, 150, 110)), [7], has_numbers=False)
    assert (here[40, 40] == tint(7)).all()
    assert (there[80, 90] == tint(7)).all()
    assert (here[40, 120] == tint(2)).all()
    assert (here[0, 0] == 128).all()


@pytest.mark.parametrize("side", [100, 1000, 3000])
def test_lines_grow_with_the_picture(side):
    picture = np.full((side, side, 3), 128, dtype=np.uint8)
    start, end = side // 4, 3 * side // 4
    drawn = draw_overlay(picture, boxes((start, start, end, end), size=(side, side)), [7], has_numbers=False)
    row = drawn[side // 2, start:end].astype(int)
    line = (np.abs(row - tint(7)).sum(axis=1) > 40).sum()
    assert line == 2 * max(1, round(side / 500))  # both sides


def test_two_masks_of_one_cluster_are_parted_by_a_line():
    drawn = draw_overlay(GREY, boxes((20, 20, 80, 100), (80, 20, 140, 100)), [7, 7], has_numbers=False)
    assert (drawn[60, 80] != tint(7)).any()


def test_numbers_stand_where_there_is_room():
    masks = boxes((20, 20, 120, 100), (130, 20, 136, 26))
    plain, numbered = (draw_overlay(GREY, masks, [17, 4], has_numbers=given) for given in (False, True))
    changed = (plain != numbered).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert changed.any()
    assert not changed[:, 125:].any()
    assert abs(rows.mean() - 60) < 8
    assert abs(columns.mean() - 70) < 40


def test_no_masks_leave_the_picture_and_the_picture_is_not_written_to():
    drawn = draw_overlay(GREY, boxes(), [])
    assert (drawn == GREY).all()
    assert drawn is not GREY
    draw_overlay(GREY, boxes((0, 0, 160, 120)), [3])
    assert (GREY == 128).all()


@pytest.mark.parametrize(
    ("masks", "clusters", "message"),
    [
        (boxes((0, 0, 5, 5), size=(20, 20)), [1], "masks must have the image's size"),
        (boxes((0, 0, 5, 5)), [], r"clusters must hold one number per mask \(1\), got 0"),
    ],
)
def test_bad_arguments_are_named(masks, clusters, message):
    with pytest.raises(ValueError, match=message):
        draw_overlay(GREY, masks, clusters)
