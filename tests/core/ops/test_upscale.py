from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from s2uniseg_d2.core.ops import upscale
from s2uniseg_d2.core.ops.guided_filter import GuidedFilter
from s2uniseg_d2.core.ops.upscale import UPSCALE_METHODS, maps_to_pixels, masks_to_pixels
from tests.benchmarks.bm_upscale import measure, read_truth


def random_masks(n=5, h=6, w=8, seed=0):
    return torch.rand(n, h, w, generator=torch.Generator().manual_seed(seed)) > 0.6


def noise(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def slow_bilinear(mask, valid, size):
    """One pixel after the other; cells from the picture's last on are not there."""
    rows, columns = (int(-(-v // 1)) for v in valid)
    out = np.zeros(size)
    for y, x in np.ndindex(*size):
        row = min(max((y + 0.5) * valid[0] / size[0] - 0.5, 0), rows - 1)
        column = min(max((x + 0.5) * valid[1] / size[1] - 0.5, 0), columns - 1)
        for i, j in np.ndindex(rows, columns):
            out[y, x] += max(0, 1 - abs(row - i)) * max(0, 1 - abs(column - j)) * float(mask[i, j])
    return out


def test_nearest_gives_each_pixel_its_cell():
    masks = random_masks()
    wanted = masks.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    assert torch.equal(masks_to_pixels(masks, (6, 8), (24, 32)), wanted)
    # a picture that ends inside the last cells, its grid padded further
    assert torch.equal(masks_to_pixels(masks, (4.75, 6.25), (19, 25)), wanted[:, :19, :25])


@settings(max_examples=40, deadline=None)
@given(st.floats(0.3, 6), st.floats(0.3, 8), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_nearest_equals_a_slow_loop_for_maps_of_any_type(rows, columns, height, width, seed):
    labels = torch.randint(-1, 9, (6, 8), generator=torch.Generator().manual_seed(seed))
    pixels = maps_to_pixels(labels, (rows, columns), (height, width))
    for y, x in np.ndindex(height, width):
        assert pixels[y, x] == labels[int((y + 0.5) * (rows / height)), int((x + 0.5) * (columns / width))]


@pytest.mark.parametrize("size", [(6, 8), (24, 32), (13, 50)])
def test_bilinear_is_torchs_half_pixel_one(size):
    masks = random_masks()
    wanted = functional.interpolate(masks[None].double(), size, mode="bilinear", align_corners=False)[0] > 0.5
    assert torch.equal(masks_to_pixels(masks, (6, 8), size, "bilinear"), wanted)


@settings(max_examples=25, deadline=None)
@given(st.floats(1, 6), st.floats(1, 8), st.integers(6, 30), st.integers(8, 30), st.integers(0, 99))
def test_bilinear_equals_a_slow_loop_and_never_reads_padding(rows, columns, height, width, seed):
    masks = random_masks(2, seed=seed)
    wanted = np.stack([slow_bilinear(mask, (rows, columns), (height, width)) for mask in masks])
    got = masks_to_pixels(masks, (rows, columns), (height, width), "bilinear").numpy()
    certain = (np.abs(wanted - 0.5) > 1e-5) & (wanted > 0.5).any(axis=(1, 2), keepdims=True)
    assert np.array_equal(got[certain], (wanted > 0.5)[certain])


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["bilinear", "edges"]),
    st.floats(0.2, 6),
    st.floats(0.2, 8),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 99),
)
def test_no_mask_that_nearest_shows_is_lost(method, rows, columns, height, width, seed):
    masks = torch.zeros(48, 6, 8, dtype=torch.bool)
    masks.view(48, 48).fill_diagonal_(True)
    masks[0] = False
    shown = masks_to_pixels(masks, (rows, columns), (height, width)).flatten(1).any(dim=1)
    picture = noise((height, width), seed)
    got = masks_to_pixels(masks, (rows, columns), (height, width), method, picture).flatten(1).any(dim=1)
    assert (got | ~shown).all()
    assert not got[0]


@pytest.mark.parametrize("method", UPSCALE_METHODS)
def test_mirrored_masks_and_pictures_give_mirrored_results(method):
    masks, picture = random_masks(8), noise((24, 32))
    straight = masks_to_pixels(masks, (6, 8), (24, 32), method, picture)
    mirrored = masks_to_pixels(masks.flip(-1), (6, 8), (24, 32), method, picture[:, ::-1].copy())
    assert (straight != mirrored.flip(-1)).float().mean() < 1e-3  # ties


@pytest.mark.parametrize("method", UPSCALE_METHODS)
def test_each_mask_is_treated_alone_whatever_the_chunk(method, monkeypatch):
    masks, picture = random_masks(7), torch.from_numpy(noise((24, 32)))
    together = masks_to_pixels(masks, (6, 8), (24, 32), method, picture)
    monkeypatch.setattr(upscale, "_CHUNK_VALUES", 2 * 24 * 32)
    assert torch.equal(masks_to_pixels(masks, (6, 8), (24, 32), method, picture), together)
    for i in range(7):
        assert torch.equal(masks_to_pixels(masks[i : i + 1], (6, 8), (24, 32), method, picture)[0], together[i])
    assert masks_to_pixels(masks[:0], (6, 8), (24, 32), method, picture).shape == (0, 24, 32)


def test_edges_snap_to_the_colours_and_full_masks_stay_full():
    y, x = np.mgrid[:64, :64]
    disc = (y - 33) ** 2 + (x - 30) ** 2 < 20**2
    picture = np.where(disc[:, :, None], [200, 40, 40], [40, 90, 180]).astype(np.uint8)
    cells = torch.from_numpy(disc.reshape(8, 8, 8, 8).mean(axis=(1, 3)) > 0.5)[None]
    errors = {
        m: (masks_to_pixels(cells, (8, 8), (64, 64), m, picture)[0].numpy() ^ disc).sum() for m in UPSCALE_METHODS
    }
    assert errors["edges"] < errors["bilinear"] / 4 < errors["nearest"] / 4
    full = torch.ones(1, 8, 8, dtype=torch.bool)
    for method in UPSCALE_METHODS:
        assert masks_to_pixels(full, (8, 8), (64, 64), method, picture).all()


def test_edges_within_a_masks_reach_are_those_of_the_whole_picture():
    masks = torch.zeros(3, 20, 24, dtype=torch.bool)
    masks[0, 9:11, 12] = masks[1, 0, 0] = masks[1, 19, 5] = masks[2, 3:17, 2:20] = True
    picture = noise((100, 120)) // 8  # faint, so that colours do not decide alone
    got = masks_to_pixels(masks, (20, 24), (100, 120), "edges", picture, radius_cells=2.0, eps=1e-4)
    guided = GuidedFilter(picture, radius_px=10, eps=1e-4)
    soft = functional.interpolate(masks[None].float(), (100, 120), mode="bilinear", align_corners=False)[0]
    wanted = np.stack([guided(mask) for mask in soft.numpy()])
    certain = np.abs(wanted - 0.5) > 1e-4
    shown = (wanted > 0.5).any(axis=(1, 2), keepdims=True)
    assert shown.sum() >= 1
    assert np.array_equal(got.numpy()[certain & shown], (wanted > 0.5)[certain & shown])


@pytest.mark.parametrize("stride", [4, 16])
def test_edges_follow_the_borders_of_real_objects_better(shared_data, stride):
    pictures = itertools.islice(read_truth(shared_data / "coco64"), 2, 8)
    rows = measure(pictures, stride)
    for figure in ("IoU", "boundary_IoU", "boundary_IoU_3px"):
        assert rows["edges"][figure] > rows["bilinear"][figure] > rows["nearest"][figure]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": random_masks().float()}, "masks must be bool of shape"),
        ({"masks": random_masks()[0]}, "masks must be bool of shape"),
        ({"valid": (6.5, 8)}, r"valid must lie in \(0, 6\] x \(0, 8\], the grid, got \(6.5, 8\)"),
        ({"valid": (6, 0)}, "valid must lie in"),
        ({"valid": (float("nan"), 8)}, "valid must lie in"),
        ({"size": (0, 9)}, r"size must be positive, got \(0, 9\)"),
        ({"method": "cubic"}, "method must be one of .*'edges'.*, got 'cubic'"),
        ({"method": "edges"}, r"image must be uint8 of shape \(24, 32, 3\) for method 'edges', got None"),
        ({"method": "edges", "image": noise((32, 24))}, r"image must be .*, got uint8 \(32, 24, 3\)"),
        ({"method": "edges", "image": noise((24, 32)) / 255}, "image must be uint8 .*, got float64"),
        ({"method": "edges", "image": noise((24, 32)), "radius_cells": 0.0}, "radius_cells must be positive"),
        ({"method": "edges", "image": noise((24, 32)), "eps": 0.0}, "eps must be positive and finite, got 0.0"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    arguments = {"masks": random_masks(), "valid": (6, 8), "size": (24, 32), **change}
    with pytest.raises(ValueError, match=message):
        masks_to_pixels(**arguments)
