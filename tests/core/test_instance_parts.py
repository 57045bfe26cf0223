from __future__ import annotations

import pytest
import torch

from s2uniseg_d2.core.instance_parts import MIN_PART_SHARE, OUTSIDE, drop_duplicates, split_connected


def logits(*regions, side=20):
    masks = torch.full((len(regions), side, side), -2.0)
    for mask, windows in zip(masks, regions, strict=True):
        for rows, columns in windows:
            mask[rows, columns] = 3.0
    return masks


LEFT, RIGHT = (slice(2, 8), slice(1, 5)), (slice(4, 15), slice(10, 18))


def test_a_mask_falls_into_its_connected_parts_and_keeps_its_logits_there():
    masks = logits([RIGHT], [LEFT, RIGHT])
    parts, queries = split_connected(masks)
    assert queries.tolist() == [0, 1, 1]
    assert [int((part > 0).sum()) for part in parts] == [88, 24, 88]
    inside = parts > OUTSIDE
    assert torch.equal(parts[inside], masks[queries][inside])
    assert torch.equal((parts[1] > 0) | (parts[2] > 0), masks[1] > 0)
    assert torch.equal(parts[0], parts[2])


def test_corners_do_not_connect_as_in_uniap():
    parts, _ = split_connected(logits([(slice(0, 5), slice(0, 5)), (slice(5, 9), slice(5, 9))]))
    assert len(parts) == 2


def test_crumbs_and_empty_masks_are_left_out():
    side = 100
    least = int(MIN_PART_SHARE * side * side)
    crumb, kept = (slice(0, 1), slice(0, least - 1)), (slice(50, 51), slice(0, least))
    parts, queries = split_connected(logits([crumb], [crumb, kept], [], side=side))
    assert queries.tolist() == [1]
    assert int((parts[0] > 0).sum()) == least
    parts, queries = split_connected(torch.zeros(0, 4, 6))
    assert parts.shape == (0, 4, 6)
    assert queries.shape == (0,)


def test_the_least_share_is_of_a_picture_of_any_shape():
    masks = torch.full((1, 10, 400), -2.0)
    masks[0, 0, :4] = 3.0  # 0.1 % of 4,000 pixels
    masks[0, 5, :3] = 3.0
    for wide in (masks, masks.mT):
        parts, _ = split_connected(wide)
        assert [int((part > 0).sum()) for part in parts] == [4]


def test_a_part_keeps_its_type_and_probability_outside_vanishes():
    parts, _ = split_connected(logits([LEFT, RIGHT]).half())
    assert parts.dtype == torch.float16
    assert float(parts[0].float().sigmoid().min()) < 1e-40


def test_the_better_of_two_near_duplicates_stays():
    masks = logits([(slice(0, 10), slice(0, 10))], [(slice(0, 10), slice(0, 9))], [RIGHT], [RIGHT]) > 0
    scores = torch.tensor([0.5, 0.8, 0.9, 0.9])
    assert drop_duplicates(masks, scores, 1.0).tolist() == [2, 3, 1, 0]
    # an overlap of exactly the limit stays
    assert drop_duplicates(masks, scores, 0.9).tolist() == [2, 1, 0]
    assert drop_duplicates(masks, scores, 0.89).tolist() == [2, 1]
    assert drop_duplicates(masks[:0], scores[:0], 0.5).tolist() == []


def test_what_a_dropped_mask_overlaps_stays():
    chain = [[(slice(0, 5), slice(start, start + 8))] for start in (0, 3, 6)]
    kept = drop_duplicates(logits(*chain) > 0, torch.tensor([0.9, 0.8, 0.7]), 0.4)
    assert kept.tolist() == [0, 2]


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"masks must have shape \(q, H, W\), got \(4, 4\)"):
        split_connected(torch.zeros(4, 4))
    with pytest.raises(ValueError, match=r"iou must lie in \[0, 1\], got 1\.5"):
        drop_duplicates(torch.zeros(1, 2, 2, dtype=torch.bool), torch.zeros(1), 1.5)
    with pytest.raises(ValueError, match=r"one value for each of 2 masks, got \(1,\)"):
        drop_duplicates(torch.zeros(2, 2, 2, dtype=torch.bool), torch.zeros(1), 0.5)
