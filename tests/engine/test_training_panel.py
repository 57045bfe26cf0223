from __future__ import annotations

import numpy as np
import pytest
import torch

from s2uniseg_d2.core.structures import PseudoLabels, PseudoMasks
from s2uniseg_d2.engine.drawing import TITLE_PX, draw_label_map, draw_masks
from s2uniseg_d2.engine.training_panel import TITLES, draw_training_step
from s2uniseg_d2.modeling.inspection import MaskPairs, ViewInspection

HEIGHT, GAP = 64, 6
SIDE = HEIGHT * 3 // 4


def half(side):
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:, :4] = side == "left"
    mask[:, 4:] = side == "right"
    return mask


@pytest.fixture
def item():
    grid = torch.zeros(16, 16, dtype=torch.bool)
    labels = PseudoMasks(grid[None], torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64))
    return {
        "image": torch.full((3, 64, 64), 90, dtype=torch.uint8),
        "views": torch.full((5, 3, 32, 32), 120, dtype=torch.uint8),
        "boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]] * 5),
        "flips": torch.zeros(5, dtype=torch.bool),
        "pseudo": PseudoLabels(labels, labels),
    }


def inspection(*clusters):
    masks = torch.stack([half("left"), half("right")])
    # the second mask has no partner, and the first one's is shifted
    partners = torch.stack([half("right"), half("neither")])
    pairs = MaskPairs(masks, torch.tensor(clusters[:2]), partners, torch.tensor([clusters[2], -1]))
    return ViewInspection(pairs, pairs, half("left")[None])


def cells(page, row):
    top = GAP + TITLE_PX + HEIGHT + GAP + GAP + TITLE_PX + row * (SIDE + GAP)
    return [page[top : top + SIDE, GAP + column * (SIDE + GAP) :][:, :SIDE] for column in range(len(TITLES))]


def test_partners_have_their_masks_colour_and_clusters_have_one_everywhere(item):
    page = draw_training_step(item, [inspection(5, 7, 7)] * 5, height_px=HEIGHT)
    view = np.full((SIDE, SIDE, 3), 120, dtype=np.uint8)
    left = np.arange(SIDE)[None].repeat(SIDE, axis=0) < SIDE // 2
    framed, instances, partners, best, semantic, answers = cells(page, 0)
    assert (framed != view).any()
    assert np.array_equal(framed[5:-5, 5:-5], view[5:-5, 5:-5])
    assert np.array_equal(instances, draw_label_map(view, np.where(left, 0, 1)))
    assert np.array_equal(partners, draw_label_map(view, np.where(left, -1, 0)))
    assert np.array_equal(best, draw_masks(view, left[None]))
    assert np.array_equal(semantic, draw_label_map(view, np.where(left, 5, 7)))
    assert np.array_equal(answers, draw_label_map(view, np.where(left, -1, 7)))


def test_four_views_are_shown_below_the_labels(item):
    page = draw_training_step(item, [inspection(0, 1, 2)] * 5, height_px=HEIGHT)
    assert len(page) == 2 * (GAP + TITLE_PX + GAP) + HEIGHT + 4 * SIDE + 3 * GAP
    assert page.shape[1] == 5 * (64 + GAP) + GAP
    assert (page[-GAP:] == 255).all()
    none = draw_training_step({**item, "views": item["views"][:0]}, [], height_px=HEIGHT)
    assert len(none) == GAP + TITLE_PX + GAP + HEIGHT


def test_an_inspection_is_missing(item):
    with pytest.raises(ValueError, match=r"one inspection per view \(5\), got 1"):
        draw_training_step(item, [inspection(0, 1, 2)])
