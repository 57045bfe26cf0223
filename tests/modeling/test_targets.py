from __future__ import annotations

import pytest
import torch

from s2uniseg_d2.core.structures import Match, PseudoLabels, PseudoMasks, TargetMasks
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


def views_of(targets):
    return targets.masks.masks.split(list(targets.masks.counts))


def test_a_view_of_the_whole_picture_keeps_its_masks_and_a_flip_mirrors_them():
    masks = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5
    whole = [0.0, 0.0, 32.0, 32.0]
    targets = crop_labels_to_views([item(masks, [whole, whole], [False, True])], (8, 8), CPU)
    plain, mirrored = views_of(targets["instance"])
    assert torch.equal(plain, masks)
    assert torch.equal(mirrored, masks.flip(-1))
    plain, mirrored = views_of(targets["semantic"])
    assert torch.equal(plain, masks[:1])
    assert torch.equal(mirrored, masks[:1].flip(-1))


def test_masks_outside_a_view_are_dropped_with_their_embeddings():
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :2, :2] = masks[1, 6:, 6:] = True
    targets = crop_labels_to_views([item(masks, [[16.0, 16.0, 32.0, 32.0]], [False])], (4, 4), CPU)
    assert targets["instance"].masks.counts == (1,)
    assert torch.equal(targets["instance"].embeddings, torch.eye(2, 4)[1:])
    assert targets["semantic"].masks.counts == (0,)


def test_masks_of_too_few_cells_are_dropped_in_the_view_that_sees_so_little():
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :2, :2] = masks[1, :2, :3] = True
    batch = [item(masks, [[0.0, 0.0, 32.0, 32.0]] * 2, [False, True])]
    for least, counts in ((4, (2, 2)), (5, (1, 1)), (7, (0, 0))):
        targets = crop_labels_to_views(batch, (8, 8), CPU, min_cells=least)
        assert targets["instance"].masks.counts == counts
    assert torch.equal(
        crop_labels_to_views(batch, (8, 8), CPU, min_cells=5)["instance"].embeddings, torch.eye(2, 4)[[1, 1]]
    )


def test_a_kind_that_is_left_out_has_no_targets_and_changes_nothing_for_the_other():
    batch = [item(torch.ones(3, 8, 8, dtype=torch.bool), [[0.0, 0.0, 32.0, 32.0]] * 2, [False, True])]
    both, one = (
        crop_labels_to_views(batch, (8, 8), CPU, kinds=kinds) for kinds in (["semantic", "instance"], ["instance"])
    )
    assert one["semantic"].masks.counts == (0, 0)
    assert len(one["semantic"].embeddings) == 0
    assert both["semantic"].masks.counts == (1, 1)
    assert torch.equal(one["instance"].masks.masks, both["instance"].masks.masks)


def test_a_batch_equals_its_pictures_one_by_one_and_is_read_once(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    batch = [
        item(
            torch.rand(n, 8, 8, generator=generator) > 0.9,
            [[0.0, 0.0, 9.0, 9.0], [8.0, 4.0, 32.0, 30.0]],
            [False, True],
        )
        for n in (4, 1, 6)
    ]
    batch[1]["pseudo"] = PseudoLabels(*(labels(torch.zeros(0, 8, 8, dtype=torch.bool)) for _ in range(2)))
    alone = [crop_labels_to_views([one], (4, 4), CPU) for one in batch]
    copies = []
    original = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: copies.append(1) or original(self))
    together = crop_labels_to_views(batch, (4, 4), CPU)
    assert len(copies) == 1
    for kind, targets in together.items():
        parts = [one[kind] for one in alone]
        assert targets.masks.counts == sum((part.masks.counts for part in parts), ())
        assert torch.equal(targets.masks.masks, torch.cat([part.masks.masks for part in parts]))
        assert torch.equal(targets.embeddings, torch.cat([part.embeddings for part in parts]))
    assert sum(together["instance"].masks.counts) > 6


def test_pictures_of_different_sizes_share_a_batch():
    generator = torch.Generator().manual_seed(2)
    boxes = [[0.0, 0.0, 9.0, 9.0], [-3.0, 4.0, 16.0, 30.0]]
    batch = [
        item(torch.rand(3, rows, columns, generator=generator) > 0.5, boxes, [False, True])
        for rows, columns in ((8, 4), (5, 9), (8, 9))
    ]
    together = crop_labels_to_views(batch, (4, 4), CPU)
    for kind, targets in together.items():
        alone = [crop_labels_to_views([one], (4, 4), CPU)[kind] for one in batch]
        assert torch.equal(targets.masks.masks, torch.cat([part.masks.masks for part in alone]))
        assert torch.equal(targets.embeddings, torch.cat([part.embeddings for part in alone]))
    assert sum(together["instance"].masks.counts) > 9


@pytest.mark.parametrize("masks", [torch.ones(1, 8, 8), torch.ones(1, 1, 8, dtype=torch.bool)])
def test_masks_of_another_type_or_size_are_refused(masks):
    one = item(torch.ones(2, 8, 8, dtype=torch.bool), [[0.0, 0.0, 9.0, 9.0]], [False])
    one["pseudo"] = one["pseudo"]._replace(semantic=labels(masks))
    with pytest.raises(ValueError, match=r"masks must be bool of shape \(n, 8, 8\) in both kinds.*got"):
        crop_labels_to_views([one], (4, 4), CPU)


def test_matched_embeddings_follow_the_pairs_over_views_of_different_length():
    rows = torch.arange(12.0).view(6, 2)
    targets = ViewTargets(TargetMasks.of(torch.zeros(6, 1, 1, dtype=torch.bool), (3, 0, 3)), rows)
    match = Match(torch.tensor([0, 0, 2]), torch.tensor([5, 1, 0]), torch.tensor([2, 0, 1]))
    assert torch.equal(targets.matched_embeddings(match), rows[[2, 0, 4]])


def test_unlabelled_batches_are_refused():
    with pytest.raises(ValueError, match="must hold 'pseudo' labels"):
        crop_labels_to_views([{"boxes": torch.zeros(0, 4), "flips": torch.zeros(0)}], (4, 4), CPU)
