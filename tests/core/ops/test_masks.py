from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2uniseg_d2.core.ops import masks as masks_module
from s2uniseg_d2.core.ops.masks import crop_masks, crop_masks_to_views, mask_boxes, nonempty

FULL = torch.tensor([0.0, 0.0, 64.0, 48.0])


def random_masks(n: int = 5, h: int = 12, w: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, h, w, generator=torch.Generator().manual_seed(seed)) > 0.5


def slow_crop(
    mask: torch.Tensor, box: list[float], flip: bool, size: tuple[int, int], stride: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """One cell after the other, in Python floats; also which cells float32 may round to the other side of a tie."""
    rows, columns = mask.shape
    x0, y0, x1, y1 = box
    out, doubtful = torch.zeros(2, *size, dtype=torch.bool)
    for i in range(size[0]):
        for j in range(size[1]):
            u, v = (j + 0.5) / size[1], (i + 0.5) / size[0]
            x = x0 + (1 - u if flip else u) * (x1 - x0)
            y = y0 + v * (y1 - y0)
            doubtful[i, j] = min(abs(x), abs(x - columns * stride), abs(y), abs(y - rows * stride)) < 1e-4
            if not (0 <= x <= columns * stride and 0 <= y <= rows * stride):
                continue
            value = 0.0
            for row in range(rows):
                for column in range(columns):
                    near_x = min(max(x / stride - 0.5, 0), columns - 1)
                    near_y = min(max(y / stride - 0.5, 0), rows - 1)
                    share = max(0.0, 1 - abs(near_x - column)) * max(0.0, 1 - abs(near_y - row))
                    value += share * float(mask[row, column])
            out[i, j] = value >= 0.5
            doubtful[i, j] |= abs(value - 0.5) < 1e-5
    return out, doubtful


def test_the_whole_view_is_the_identity_and_flip_mirrors():
    masks = random_masks()
    assert torch.equal(crop_masks(masks, FULL, False, (12, 16)), masks)
    assert torch.equal(crop_masks(masks, FULL, True, (12, 16)), masks.flip(-1))


def test_a_box_on_cell_borders_is_a_slice():
    masks = random_masks()
    box = torch.tensor([8.0, 4.0, 48.0, 36.0])
    assert torch.equal(crop_masks(masks, box, False, (8, 10)), masks[:, 1:9, 2:12])
    assert torch.equal(crop_masks(masks, box, True, (8, 10)), masks[:, 1:9, 2:12].flip(-1))


def test_stride_counts():
    masks = random_masks()
    assert torch.equal(
        crop_masks(masks, torch.tensor([32.0, 16.0, 192.0, 144.0]), False, (8, 10), stride=16), masks[:, 1:9, 2:12]
    )


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 40), st.floats(0, 30), st.floats(3.5, 24), st.floats(3.5, 18), st.booleans(), st.integers(0, 99))
def test_equals_a_slow_loop(x0, y0, width, height, flip, seed):
    mask = random_masks(1, 6, 8, seed)[0]
    box = [x0 / 2, y0 / 2, x0 / 2 + width, y0 / 2 + height]
    got = crop_masks(mask[None], torch.tensor(box, dtype=torch.float64), flip, (5, 7))[0]
    wanted, doubtful = slow_crop(mask, box, flip, (5, 7), 4)
    assert torch.equal(got & ~doubtful, wanted & ~doubtful)
    if all(value == int(value) for value in box):
        assert torch.equal(got, wanted)


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 24), st.floats(0, 24), st.floats(24, 40), st.floats(24, 40), st.booleans(), st.integers(0, 1000))
def test_cropping_the_mask_of_a_painting_equals_the_mask_of_the_cropped_painting(x0, y0, width, height, flip, seed):
    """A half-plane is painted into the global view and, by the same formula, into the local view."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.nn.functional.normalize(torch.randn(2, generator=generator), dim=0)
    centre = torch.tensor([x0 + width / 2, y0 + height / 2])

    def signed_distance(xs: torch.Tensor, ys: torch.Tensor) -> torch.Tensor:
        return (xs[None, :] - centre[0]) * normal[0] + (ys[:, None] - centre[1]) * normal[1]

    cells = torch.arange(16) * 4.0 + 2.0
    mask = signed_distance(cells, cells) > 0
    local = (torch.arange(14) + 0.5) / 14
    distance = signed_distance(x0 + (1 - local if flip else local) * width, y0 + local * height)
    cropped = crop_masks(mask[None], torch.tensor([x0, y0, x0 + width, y0 + height]), flip, (14, 14))[0]
    # the painting was seen in cells of 4 pixels: the edge is known to within one cell's diagonal
    certain = distance.abs() > 4 * 2**0.5
    assert torch.equal(cropped[certain], (distance > 0)[certain])


def test_a_full_mask_stays_full_up_to_the_rim_and_ends_there():
    masks = torch.ones(1, 12, 16, dtype=torch.bool)
    assert crop_masks(masks, torch.tensor([0.3, 0.1, 63.9, 47.9]), False, (50, 50)).all()
    over = crop_masks(masks, torch.tensor([-32.0, 0.0, 32.0, 48.0]), False, (12, 16))[0]
    assert not over[:, :8].any()
    assert over[:, 8:].all()


@pytest.mark.parametrize("cached", [1, 2 * 5 * 11, 2**18])
def test_pairs_of_masks_and_views_are_cropped_as_one_by_one(monkeypatch, cached):
    monkeypatch.setattr(masks_module, "CACHED", cached)
    generator = torch.Generator().manual_seed(3)
    masks = torch.rand(5, 9, 11, generator=generator) > 0.5
    extents = [(9, 11), (6, 8), (9, 4)]
    boxes = torch.tensor([[3.2, 0.0, 30.1, 33.0], [-4.0, 2.5, 20.0, 40.0], [1.0, 1.0, 9.5, 7.25]])
    flips = [False, True, True]
    pairs = torch.tensor([[4, 0, 2, 2, 1, 0], [0, 1, 2, 1, 1, 0]])
    found = crop_masks_to_views(masks, boxes, flips, pairs, (5, 7), extents=extents)
    for crop, (mask, view) in zip(found, pairs.T.tolist(), strict=True):
        rows, columns = extents[view]
        assert torch.equal(
            crop, crop_masks(masks[mask : mask + 1, :rows, :columns], boxes[view], flips[view], (5, 7))[0]
        )
    assert 0 < int(found.sum()) < found.numel()
    with pytest.raises(ValueError, match="masks must be bool"):
        crop_masks_to_views(masks.float(), boxes, flips, pairs, (5, 7), extents=extents)
    with pytest.raises(ValueError, match="overlap the global view of 16 x 36"):
        crop_masks_to_views(masks, boxes + torch.tensor([17.0, 0, 17, 0]), flips, pairs, (5, 7), extents=extents)


def test_ties_are_present():
    masks = torch.tensor([[[True, False]]])
    # the one sample lies half-way between the two cells
    assert crop_masks(masks, torch.tensor([3.0, 0.0, 5.0, 4.0]), False, (1, 1)).item()


def test_no_masks():
    assert crop_masks(torch.zeros(0, 12, 16, dtype=torch.bool), FULL, True, (7, 9)).shape == (0, 7, 9)


@pytest.mark.parametrize(
    ("box", "rule"),
    [
        ([5, 5, 5, 9], "x0 < x1"),
        ([9, 5, 5, 9], "x0 < x1"),
        ([float("nan"), 0, 5, 5], "finite"),
        ([0, 0, float("inf"), 5], "finite"),
        ([64, 0, 70, 5], "overlap the global view of 64 x 48"),
        ([0, -9, 5, 0], "overlap"),
        ([0, 0, 5], "four"),
    ],
)
def test_bad_boxes_are_refused(box, rule):
    with pytest.raises(ValueError, match=f"box must .*{rule}"):
        crop_masks(random_masks(), torch.tensor(box, dtype=torch.float32), False, (4, 4))


def test_bad_masks_and_sizes_are_refused():
    with pytest.raises(ValueError, match="masks must be bool"):
        crop_masks(random_masks().float(), FULL, False, (4, 4))
    with pytest.raises(ValueError, match="masks must be bool"):
        crop_masks(random_masks()[0], FULL, False, (4, 4))
    with pytest.raises(ValueError, match=r"size must be positive, got \(0, 4\)"):
        crop_masks(random_masks(), FULL, False, (0, 4))


def test_boxes_fit_tightly():
    masks = torch.zeros(4, 6, 9, dtype=torch.bool)
    masks[0, 0, 0] = True
    masks[1, 2:5, 3:7] = True
    masks[2, 5, 8] = masks[2, 1, 4] = True
    assert mask_boxes(masks).tolist() == [[0, 0, 1, 1], [3, 2, 7, 5], [4, 1, 9, 6], [0, 0, 0, 0]]
    assert nonempty(masks).tolist() == [True, True, True, False]


@pytest.mark.parametrize("shape", [(0, 5, 5), (3, 0, 5), (0, 0, 0)])
def test_boxes_of_nothing(shape):
    masks = torch.zeros(shape, dtype=torch.bool)
    assert torch.equal(mask_boxes(masks), torch.zeros(shape[0], 4))
    assert nonempty(masks).shape == (shape[0],)
    assert not nonempty(masks).any()
