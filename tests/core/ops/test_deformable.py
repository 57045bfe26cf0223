from __future__ import annotations

import math

import pytest
import torch

from s2uniseg_d2.core.ops.deformable import MSDeformAttn, pixel_centres


def read_bilinear(values: torch.Tensor, y: float, x: float) -> torch.Tensor:
    """Value of a map ``(h, w, c)`` at pixel coordinates (centres at whole numbers), zero outside."""
    h, w, channels = values.shape
    read = torch.zeros(channels, dtype=values.dtype)
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < h and 0 <= column < w:
                read += (1 - abs(y - row)) * (1 - abs(x - column)) * values[row, column]
    return read


def literal_attention(module: MSDeformAttn, query, reference, value, shapes) -> torch.Tensor:
    """Eq. 3 of Deformable DETR, one query, head, level and sample after the other."""
    b, n_q, _ = query.shape
    heads, levels, points = module.num_heads, module.num_levels, module.num_points
    offsets = module.sampling_offsets(query).view(b, n_q, heads, levels, points, 2)
    weights = module.attention_weights(query).view(b, n_q, heads, levels * points).softmax(-1)
    weights = weights.view(b, n_q, heads, levels, points)
    values = module.value_proj(value)
    width = values.shape[-1] // heads
    output = torch.zeros(b, n_q, heads * width, dtype=query.dtype)
    for i in range(b):
        for q in range(n_q):
            for m in range(heads):
                start = 0
                for level, (h, w) in enumerate(shapes):
                    level_map = values[i, start : start + h * w, m * width : (m + 1) * width].view(h, w, width)
                    start += h * w
                    point = reference[i % len(reference), q, level % reference.shape[2]]
                    for k in range(points):
                        dx, dy = offsets[i, q, m, level, k].tolist()
                        read = read_bilinear(level_map, float(point[1]) * h + dy - 0.5, float(point[0]) * w + dx - 0.5)
                        output[i, q, m * width : (m + 1) * width] += weights[i, q, m, level, k] * read
    return module.output_proj(output)


@pytest.fixture
def scattered():
    """Attention whose offsets and weights depend on the query, in float64 for a tight comparison."""

    def make(dim: int, **sizes) -> MSDeformAttn:
        torch.manual_seed(0)
        module = MSDeformAttn(dim, **sizes).double()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return module

    return make


@pytest.mark.parametrize(
    ("shapes", "heads", "points", "ratio"),
    [
        ([(3, 5)], 2, 4, 1.0),
        ([(5, 3), (2, 7), (1, 1)], 3, 3, 0.5),
        ([(6, 4), (3, 2), (1, 3)], 3, 1, 2.0),
    ],
)
@torch.no_grad()
def test_equals_the_literal_loop(scattered, shapes, heads, points, ratio):
    module = scattered(12, num_levels=len(shapes), num_heads=heads, num_points=points, value_ratio=ratio)
    query = torch.randn(2, 7, 12, dtype=torch.float64)
    value = torch.randn(2, sum(h * w for h, w in shapes), 12, dtype=torch.float64)
    for reference in (torch.rand(1, 7, 1, 2), torch.rand(2, 7, len(shapes), 2)):
        reference = reference.double()
        expected = literal_attention(module, query, reference, value, shapes)
        torch.testing.assert_close(module(query, reference, value, shapes), expected, atol=1e-10, rtol=0)


def test_gradients_are_those_of_finite_differences(scattered):
    shapes = [(3, 2), (2, 1)]
    module = scattered(4, num_levels=2, num_heads=2, num_points=2)
    query = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    reference = torch.rand(1, 3, 1, 2, dtype=torch.float64, requires_grad=True)
    value = torch.randn(1, 8, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, r, v: module(q, r, v, shapes), (query, reference, value))


def test_without_offsets_every_query_reads_its_own_cell():
    module = MSDeformAttn(4, num_levels=1, num_heads=1, num_points=1)
    with torch.no_grad():
        module.sampling_offsets.bias.zero_()
        for projection in (module.value_proj, module.output_proj):
            projection.weight.copy_(torch.eye(4))
    value = torch.randn(2, 15, 4)
    read = module(torch.randn(2, 15, 4), pixel_centres([(3, 5)], value), value, [(3, 5)])
    torch.testing.assert_close(read, value, atol=1e-5, rtol=0)


def test_samples_far_outside_read_zeros():
    module = MSDeformAttn(4, num_levels=1, num_heads=1, num_points=2)
    with torch.no_grad():
        module.sampling_offsets.bias.fill_(100.0)
    value = torch.randn(1, 6, 4)
    read = module(torch.randn(1, 6, 4), pixel_centres([(2, 3)], value), value, [(2, 3)])
    assert not read.any()


def test_initial_samples_lie_on_squares_around_the_reference():
    module = MSDeformAttn(16, num_levels=2, num_heads=8, num_points=3)
    offsets = module.sampling_offsets.bias.detach().view(8, 2, 3, 2)
    assert torch.equal(offsets[:, 0], offsets[:, 1])
    torch.testing.assert_close(offsets.abs().amax(dim=-1), torch.tensor([1.0, 2.0, 3.0]).expand(8, 2, 3))
    torch.testing.assert_close(offsets[1, 0, 0], torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(offsets[2, 0, 2], torch.tensor([0.0, 3.0]), atol=1e-6, rtol=0)
    assert not module.sampling_offsets.weight.any()
    assert not module.attention_weights.weight.any()
    assert not module.attention_weights.bias.any()


def test_autocast_computes_in_the_weights_precision():
    torch.manual_seed(0)
    module = MSDeformAttn(8, num_levels=1, num_heads=2)
    value = torch.randn(1, 12, 8)
    reference = pixel_centres([(3, 4)], value)
    plain = module(value, reference, value, [(3, 4)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(value, reference, value, [(3, 4)]), plain)
        half = module(value.bfloat16(), reference, value.bfloat16(), [(3, 4)])
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), plain, atol=0.05, rtol=0.05)


def test_pixel_centres_are_row_major_and_in_the_order_of_the_levels():
    like = torch.zeros(1)
    points = pixel_centres([(2, 4), (1, 1)], like)
    assert points.shape == (1, 9, 1, 2)
    assert points.dtype == torch.float32
    torch.testing.assert_close(points[0, 0, 0], torch.tensor([0.125, 0.25]))
    torch.testing.assert_close(points[0, 1, 0], torch.tensor([0.375, 0.25]))
    torch.testing.assert_close(points[0, 4, 0], torch.tensor([0.125, 0.75]))
    torch.testing.assert_close(points[0, 8, 0], torch.tensor([0.5, 0.5]))


def test_a_value_width_that_the_heads_do_not_divide_is_refused():
    for heads, ratio in ((5, 1.0), (4, 0.1)):
        with pytest.raises(ValueError, match="num_heads must divide the value width"):
            MSDeformAttn(16, num_levels=1, num_heads=heads, value_ratio=ratio)


@pytest.mark.parametrize("shapes", [[(2, 3)], [(2, 3), (1, 1)], [(2, 3), (1, 2), (1, 1)]])
def test_levels_that_do_not_fit_the_values_are_refused(shapes):
    module = MSDeformAttn(4, num_levels=2, num_heads=1)
    value = torch.zeros(1, 8, 4)
    with pytest.raises(ValueError, match="shapes must name 2 levels that hold the 8 values, got"):
        module(value, torch.rand(1, 8, 1, 2), value, shapes)
