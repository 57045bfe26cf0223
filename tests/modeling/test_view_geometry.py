"""A mask that is cut like the picture and one that the teacher's crop brings to the view are the same mask."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from s2uniseg_d2.core.structures import PseudoLabels, PseudoMasks
from s2uniseg_d2.data.mapper import MultiViewMapper
from s2uniseg_d2.modeling.targets import crop_labels_to_views

VIEW_PX = 64


class Shape(NamedTuple):
    """A half-plane (``radius`` 0) or a disc in the unit square of a picture."""

    x: float
    y: float
    angle: float
    radius: float

    def depth(self, columns, rows, size):
        """Signed distance to the outline in pixels of the original, positive inside; points in the same pixels."""
        height, width = size
        across, down = columns - self.x * width, rows - self.y * height
        if self.radius:
            return self.radius * min(size) - np.hypot(across, down)
        return across * math.cos(self.angle) + down * math.sin(self.angle)


def views_of(path, shape, size, *, draw, num_views=4, scale=(0.05, 0.9)):
    """Paint a shape and map the picture; returns for every view three maps of its stride-4 grid and their scales.

    The maps: what the view shows of the painted picture, what the teacher's crop shows of the painted global view, and
    the depth of each cell's centre in the shape. The scales: pixels of the original per cell of the teacher's grid and
    of the view's, the larger axis.
    """
    height, width = size
    rows, columns = np.mgrid[:height, :width] + 0.5
    # pixels on the outline are as bright as they are covered
    painted = np.round(255 * np.clip(shape.depth(columns, rows, size) + 0.5, 0, 1)).astype(np.uint8)
    Image.fromarray(painted).convert("RGB").save(path)
    mapper = MultiViewMapper(
        global_longest_px=160, view_px=VIEW_PX, num_views=num_views, view_scale=scale, photometric=False, seed=1
    )
    item = mapper({"file_name": str(path), "draw": draw})
    whole = item["image"][:1].float()
    # as the teacher's grid: cells of 4 x 4 pixels, the last ones perhaps cut
    cells = functional.avg_pool2d(whole, 4, ceil_mode=True, count_include_pad=False) >= 127.5
    item["pseudo"] = PseudoLabels(*(PseudoMasks(cells, torch.zeros(1, 1), torch.zeros(1)) for _ in range(2)))
    grid = VIEW_PX // 4
    cropped = crop_labels_to_views([item], (grid, grid), torch.device("cpu"))["instance"].masks
    maps = iter(cropped.masks)
    teacher = [next(maps) if count else torch.zeros(grid, grid, dtype=torch.bool) for count in cropped.counts]
    shown = functional.avg_pool2d(item["views"][:, :1].float(), 4)[:, 0] >= 127.5
    across, down = width / whole.shape[-1], height / whole.shape[-2]
    for view, crop, box, flip in zip(shown, teacher, item["boxes"].tolist(), item["flips"].tolist(), strict=True):
        left, top, right, bottom = box[0] * across, box[1] * down, box[2] * across, box[3] * down
        steps = (np.arange(grid) + 0.5) / grid
        x = left + (right - left) * (1 - steps if flip else steps)
        y = top + (bottom - top) * steps
        depth = shape.depth(*np.meshgrid(x, y), size)
        scales = 4 * max(across, down), max(right - left, bottom - top) / grid
        yield view.numpy(), crop.numpy(), depth, scales, flip


shapes = st.builds(
    Shape,
    x=st.floats(0.1, 0.9),
    y=st.floats(0.1, 0.9),
    angle=st.floats(0, 2 * math.pi),
    radius=st.sampled_from([0.0, 0.15, 0.4]),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=shapes, size=st.tuples(st.integers(100, 340), st.integers(100, 340)), draw=st.integers(0, 10**6))
def test_both_ways_agree_with_the_shape_beyond_a_band_around_its_outline(tmp_path, shape, size, draw):
    for view, crop, depth, (teacher_cell, view_cell), _ in views_of(tmp_path / "shape.png", shape, size, draw=draw):
        # half a cell of each grid, both along the diagonal, and a pixel of the original for painting and resampling
        own = math.sqrt(0.5) * view_cell + 1
        assert np.array_equal((depth >= 0)[abs(depth) > own], view[abs(depth) > own])
        band = math.sqrt(0.5) * teacher_cell + own
        assert np.array_equal((depth >= 0)[abs(depth) > band], crop[abs(depth) > band])


@pytest.mark.parametrize("angle", [0.0, 0.5 * math.pi, math.pi, 1.5 * math.pi])
def test_the_crop_shifts_no_outline(tmp_path, angle):
    """An error of half a cell, which the band would hide, adds up over views: the mean shift of an outline is none."""
    shifts = {True: [], False: []}
    across = 1 if angle in (0.0, math.pi) else 0
    rng = np.random.default_rng(0)
    for number in range(120):
        shape = Shape(*rng.uniform(0.3, 0.7, 2), angle, 0.0)
        size = tuple(map(int, rng.integers(200, 340, 2)))
        for _, crop, depth, (teacher_cell, view_cell), flip in views_of(
            tmp_path / "shape.png", shape, size, draw=number, scale=(0.05, 0.15)
        ):
            if depth.max() > teacher_cell and depth.min() < -teacher_cell:
                # cells that only the crop has, per row or column that the outline crosses, in cells of the teacher
                surplus = (crop.astype(int) - (depth >= 0)).sum(axis=across).mean()
                shifts[flip].append(surplus * view_cell / teacher_cell)
    for flip in (True, False):
        assert len(shifts[flip]) > 40
        assert abs(np.mean(shifts[flip])) < 0.15
