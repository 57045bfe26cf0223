from __future__ import annotations

import pytest
import torch

from s2uniseg_d2.core.structures import Match, TargetMasks


def test_joined_masks_know_their_views_and_rows():
    generator = torch.Generator().manual_seed(0)
    views = [torch.rand(n, 3, 4, generator=generator) > 0.5 for n in (2, 0, 3)]
    joined = TargetMasks.join(views)
    assert joined.counts == (2, 0, 3)
    assert joined.views.tolist() == [0, 0, 2, 2, 2]
    match = Match(torch.tensor([0, 2, 2]), torch.tensor([7, 7, 7]), torch.tensor([1, 0, 2]))
    assert joined.rows(match).tolist() == [1, 2, 4]
    assert torch.equal(joined.masks[joined.rows(match)], torch.stack([views[0][1], views[2][0], views[2][2]]))


def test_counts_must_add_up():
    with pytest.raises(ValueError, match=r"counts must add up to the 3 masks, got \(1, 1\)"):
        TargetMasks.of(torch.zeros(3, 2, 2, dtype=torch.bool), (1, 1))
