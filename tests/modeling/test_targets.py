from __future__ import annotations

import pytest
import torch

from s2uniseg_d2.core.structures import Match, PseudoLabels, PseudoMasks
from s2uniseg_d2.modeling.targets import ViewTargets, crop_labels_to_views

CPU = torch.device("cpu")


def labels(masks):
    return PseudoMasks(masks, torch.eye(len(masks), 4), torch.arange(len(masks)))


def item(masks, boxes, flips):
    return {
        "pseudo": PseudoLabels(labels(masks), labels(masks[:1])),
        "boxes": torch.tensor(boxes),
        "flips": torch.tensor(flips),
    }


def test_a_view_of_the_whole_picture_keeps_its_masks_and_a_flip_mirrors_them():
    masks = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5
    whole = [0.0, 0.0, 32.0, 32.0]
    targets = crop_labels_to_views([item(masks, [whole, whole], [False, True])], (8, 8), "instance", CPU)
    assert torch.equal(targets.masks[0], masks)
    assert torch.equal(targets.masks[1], masks.flip(-1))
    semantic = crop_labels_to_views([item(masks, [whole], [False])], (8, 8), "semantic", CPU)
    assert torch.equal(semantic.masks[0], masks[:1])


def test_masks_outside_a_view_are_dropped_with_their_embeddings():
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :2, :2] = masks[1, 6:, 6:] = True
    targets = crop_labels_to_views([item(masks, [[16.0, 16.0, 32.0, 32.0]], [False])], (4, 4), "instance", CPU)
    assert len(targets.masks[0]) == 1
    assert torch.equal(targets.embeddings[0], torch.eye(2, 4)[1:])


def test_matched_embeddings_follow_the_pairs_over_views_of_different_length():
    rows = torch.arange(12.0).view(6, 2)
    targets = ViewTargets([], [rows[:3], rows[3:3], rows[3:]])
    match = Match(torch.tensor([0, 0, 2]), torch.tensor([5, 1, 0]), torch.tensor([2, 0, 1]))
    assert torch.equal(targets.matched_embeddings(match), rows[[2, 0, 4]])


def test_unlabelled_batches_are_refused():
    with pytest.raises(ValueError, match="must hold 'pseudo' labels"):
        crop_labels_to_views([{"boxes": torch.zeros(0, 4), "flips": torch.zeros(0)}], (4, 4), "instance", CPU)
