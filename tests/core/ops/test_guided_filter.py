from __future__ import annotations

import numpy as np
import pytest

from s2uniseg_d2.core.ops.guided_filter import GuidedFilter


def noise(height=14, width=18, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def slow_filter(picture, values, radius, eps):
    """Ridge regression in every window, then the mean of all windows' predictions at a pixel (Eq. 14 to 16)."""
    colours = picture.astype(np.float64) / 255
    height, width = values.shape
    total, count = np.zeros(values.shape), np.zeros(values.shape)
    for y, x in np.ndindex(height, width):
        window = (slice(max(0, y - radius), y + radius + 1), slice(max(0, x - radius), x + radius + 1))
        inputs, wanted = colours[window].reshape(-1, 3), values[window].ravel()
        centred = inputs - inputs.mean(axis=0)
        covariance = centred.T @ centred / len(inputs) + eps * np.eye(3)
        slope = np.linalg.solve(covariance, centred.T @ (wanted - wanted.mean()) / len(inputs))
        total[window] += colours[window] @ slope + wanted.mean() - inputs.mean(axis=0) @ slope
        count[window] += 1
    return total / count


@pytest.mark.parametrize(("radius", "eps"), [(1, 1e-3), (2, 1e-2), (30, 1e-3)])
def test_equals_the_regression_window_by_window(radius, eps):
    picture, values = noise(), np.random.default_rng(1).random((14, 18), dtype=np.float32)
    got = GuidedFilter(picture, radius_px=radius, eps=eps)(values)
    np.testing.assert_allclose(got, slow_filter(picture, values, radius, eps), atol=2e-5)


def test_a_rectangle_with_zeros_around_gives_what_the_whole_picture_gives():
    picture, values = noise(40, 50), np.zeros((40, 50), np.float32)
    values[0:8, 20:27] = 1
    guided = GuidedFilter(picture, radius_px=3, eps=1e-3)
    whole = guided(values)
    np.testing.assert_allclose(guided(values[:14, 14:33], top=0, left=14), whole[:14, 14:33], atol=1e-6)
    outside = whole.copy()
    outside[:14, 14:33] = 0
    assert np.abs(outside).max() < 1e-6


def test_flat_colours_give_the_box_mean_twice_and_constants_stay():
    flat = np.full((9, 11, 3), 120, np.uint8)
    guided = GuidedFilter(flat, radius_px=1, eps=1e-3)
    np.testing.assert_allclose(guided(np.full((9, 11), 0.3, np.float32)), 0.3, atol=1e-6)
    point = np.zeros((9, 11), np.float32)
    point[4, 5] = 81
    np.testing.assert_allclose(guided(point)[2:7, 3:8], np.outer(*[[1, 2, 3, 2, 1]] * 2), atol=1e-4)


@pytest.mark.parametrize(
    ("picture", "radius", "eps", "message"),
    [
        (noise() / 255, 1, 1e-3, "picture must be uint8"),
        (noise()[:, :, 0], 1, 1e-3, r"picture must be uint8 \(H, W, 3\), got uint8 \(14, 18\)"),
        (noise()[:0], 1, 1e-3, "picture must be"),
        (noise(), 0, 1e-3, "radius_px must be at least 1, got 0"),
        (noise(), 1, 0.0, "eps must be positive and finite, got 0"),
        (noise(), 1, float("nan"), "eps must be positive"),
    ],
)
def test_bad_arguments_are_refused(picture, radius, eps, message):
    with pytest.raises(ValueError, match=message):
        GuidedFilter(picture, radius_px=radius, eps=eps)
