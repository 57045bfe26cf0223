from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from s2uniseg_d2.data import augmentation
from s2uniseg_d2.data.augmentation import (
    Crop,
    choose_reduction,
    cut_view,
    draw_crop,
    jitter_view,
    resize_longest,
)
from tests.data import pillow_recipe


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


def pictures(count=6, side=64):
    """Smooth colour fields with edges and noise: every hue, grey, black and white."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        picture = np.array(coarse.resize((side, side), Image.Resampling.BICUBIC))
        picture[: side // 4, : side // 4], picture[side // 2 :, : side // 8] = 0, 255
        picture[:, side // 2 : side // 2 + 8] = rng.integers(0, 256, (side, 8, 1))
        yield picture


def differences(ours, theirs):
    return np.abs(np.asarray(ours).astype(int) - np.asarray(theirs))


@pytest.mark.parametrize("crop", [Crop(0, 0, 64, 64), Crop(3, 5, 60, 41), Crop(10, 10, 21, 23), Crop(7, 7, 8, 8)])
@pytest.mark.parametrize("is_flipped", [False, True])
def test_cuts_are_pillows_within_a_level(crop, is_flipped):
    for picture in pictures():
        theirs = pillow_recipe.cut_view(picture, crop, 32, is_flipped=is_flipped)
        assert differences(cut_view(picture, crop, 32, is_flipped=is_flipped), theirs).max() <= 1


@pytest.mark.parametrize(("step", "largest", "mean"), [(0, 0, 0), (1, 0, 0), (2, 1, 0.5), (3, 12, 1)])
def test_colour_changes_are_pillows_within_the_stated_levels(step, largest, mean):
    changed = []
    for seed, picture in enumerate(pictures()):
        ours = augmentation._jitter_one(picture, step, np.random.default_rng(seed))
        theirs = pillow_recipe.jitter_one(Image.fromarray(picture), step, np.random.default_rng(seed))
        gap = differences(ours, theirs)
        assert gap.max() <= largest
        assert gap.mean() <= mean
        changed.append(differences(ours, picture).mean())
    assert np.mean(changed) > 2


def test_grey_and_blur_are_pillows_within_the_stated_levels(monkeypatch):
    for picture in pictures():
        image = Image.fromarray(picture)
        assert differences(augmentation._grey(picture), pillow_recipe.grey(image)).max() <= 1

    class Blurring:
        """Draws that blur and do nothing else."""

        def __init__(self, radius):
            self.values, self.radius = [1.0, 1.0, 0.0], radius

        def random(self):
            return self.values.pop(0)

        def uniform(self, low, high):
            assert (low, high) == (0.1, 2.0)
            return self.radius

    for radius in (0.1, 0.5, 1.0, 1.5, 2.0):
        for picture in pictures():
            gap = differences(
                jitter_view(picture, Blurring(radius)), pillow_recipe.blur(Image.fromarray(picture), radius)
            )
            assert gap.max() <= 16
            assert gap.mean() <= 0.6


def test_the_whole_recipe_draws_what_pillows_draws():
    gaps = []
    for seed in range(60):
        picture = list(pictures(6, 32))[seed % 6]
        ours, theirs = np.random.default_rng(seed), np.random.default_rng(seed)
        gaps.append(differences(jitter_view(picture, ours), pillow_recipe.jitter_view(picture, theirs)).mean())
        assert ours.random() == theirs.random()
    assert max(gaps) < 5
    assert np.mean(gaps) < 1


def test_the_reduction_is_the_largest_that_enlarges_nothing():
    options = {"longest_px": 512, "view_px": 224, "reductions": (8, 4, 2, 1)}
    large, small = Crop(0, 0, 1800, 1800), Crop(100, 200, 100 + 900, 200 + 910)
    assert choose_reduction(4000, 6000, [large], **options) == 8
    assert choose_reduction(3000, 4000, [large], **options) == 4  # 500 pixels would be left
    assert choose_reduction(4000, 6000, [large, small], **options) == 4
    assert choose_reduction(4000, 6000, [Crop(0, 0, 895, 1800)], **options) == 4  # 223.75 rounds to 224 whole pixels
    assert choose_reduction(4000, 6000, [Crop(0, 0, 892, 1800)], **options) == 2
    assert choose_reduction(375, 500, [Crop(0, 0, 375, 375)], **options) == 1
    assert choose_reduction(4000, 6000, [large], **{**options, "reductions": (1,)}) == 1


def test_a_reduced_crop_lies_inside_the_reduced_picture():
    for height, width, factor in ((1001, 1003, 8), (517, 999, 4), (33, 71, 2)):
        assert Crop(0, 0, width, height).reduce(factor).right <= -(-width // factor)
        assert Crop(0, 0, width, height).reduce(factor).bottom <= -(-height // factor)
