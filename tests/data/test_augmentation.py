from __future__ import annotations

import numpy as np
import pytest

from s2uniseg_d2.data.augmentation import Crop, cut_view, draw_crop, jitter_view, resize_longest


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((30, 60), (32, 64)), ((600, 100), (64, 11)), ((1, 1), (64, 64)), ((1, 5000), (1, 64)), ((64, 40), (64, 40))],
)
def test_resize_longest_keeps_the_proportions(shape, expected):
    picture = np.full((*shape, 3), 77, dtype=np.uint8)
    resized = resize_longest(picture, 64)
    assert resized.shape == (*expected, 3)
    assert (resized == 77).all()


def test_crops_lie_inside_and_keep_scale_and_ratio():
    rng = np.random.default_rng(0)
    areas, ratios = [], []
    for _ in range(500):
        left, top, right, bottom = draw_crop(300, 500, (0.05, 0.4), (3 / 4, 4 / 3), rng)
        assert 0 <= left < right <= 500
        assert 0 <= top < bottom <= 300
        areas.append((right - left) * (bottom - top) / 150_000)
        ratios.append((right - left) / (bottom - top))
    assert 0.049 < min(areas) < 0.07
    assert 0.38 < max(areas) < 0.402
    assert np.mean(areas) == pytest.approx(0.225, abs=0.015)
    assert 0.74 < min(ratios) < 0.78
    assert 1.28 < max(ratios) < 1.35
    assert np.median(ratios) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 3), (3, 1)])
def test_tiny_pictures_give_crops_of_at_least_a_pixel(size):
    rng = np.random.default_rng(0)
    for _ in range(50):
        left, top, right, bottom = draw_crop(*size, (0.05, 0.4), (3 / 4, 4 / 3), rng)
        assert 0 <= left < right <= size[1]
        assert 0 <= top < bottom <= size[0]


def test_a_thin_picture_gets_its_largest_central_crop():
    crop = draw_crop(1000, 10, (0.3, 0.4), (3 / 4, 4 / 3), np.random.default_rng(0))
    assert crop == Crop(0, 493, 10, 506)


def test_a_flipped_view_is_the_mirrored_view():
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    crop = Crop(5, 6, 37, 38)
    plain = cut_view(picture, crop, 32, is_flipped=False)
    np.testing.assert_array_equal(plain, picture[6:38, 5:37])  # the crop has the view's size already
    np.testing.assert_array_equal(cut_view(picture, crop, 32, is_flipped=True), plain[:, ::-1])


def test_jitter_follows_its_generator_and_its_recipe():
    view = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    kept = view.copy()
    twice = [jitter_view(view, np.random.default_rng(5)) for _ in range(2)]
    np.testing.assert_array_equal(*twice)
    np.testing.assert_array_equal(view, kept)
    rng = np.random.default_rng(0)
    changed = [jitter_view(view, rng) for _ in range(400)]
    grey = np.mean([(v[..., 0] == v[..., 1]).all() and (v[..., 1] == v[..., 2]).all() for v in changed])
    assert grey == pytest.approx(0.2, abs=0.06)
    untouched = np.mean([(v == view).all() for v in changed])
    assert untouched == pytest.approx(0.2 * 0.8 * 0.5, abs=0.04)
    assert all(v.shape == view.shape and v.dtype == np.uint8 for v in changed)
    # noise loses most of its contrast to a blur, and at most 0.4 of it otherwise
    blurred = np.mean([v.astype(float).mean(axis=2).std() < 0.45 * view.mean(axis=2).std() for v in changed])
    assert blurred == pytest.approx(0.5 * 0.75, abs=0.12)
