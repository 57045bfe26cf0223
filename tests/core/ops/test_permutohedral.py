from __future__ import annotations

import numpy as np
import pytest
import torch

from s2uniseg_d2.core.ops.permutohedral import PermutohedralLattice, _simplices, gaussian_sum


def scatter(count, dimensions, spread, channels=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    points = (torch.rand(count, dimensions, generator=generator) - 0.5) * spread
    return points, torch.rand(count, channels, generator=generator)


def test_the_exact_sum_is_the_definition():
    points, values = scatter(50, 3, 4)
    points, values = points.double(), values.double()
    expected = torch.stack(
        [sum(torch.exp(-((p - q) ** 2).sum() / 2) * v for q, v in zip(points, values, strict=True)) for p in points]
    )
    for chunk in (1, 7, 50, 100):
        torch.testing.assert_close(gaussian_sum(points, values, chunk=chunk), expected)
    assert gaussian_sum(points[:0], values[:0]).shape == (0, 2)


@pytest.mark.parametrize("dimensions", [1, 2, 3, 5])
def test_a_point_lies_inside_its_simplex(dimensions):
    points = scatter(300, dimensions, 20)[0].double().numpy()
    vertices, weights = _simplices(points)
    assert weights.min() >= -1e-12
    assert np.allclose(weights.sum(axis=1), 1)
    assert (vertices.sum(axis=2) == 0).all()
    # on the lattice: all coordinates of a vertex leave the same remainder
    assert ((vertices - vertices[..., :1]) % (dimensions + 1) == 0).all()
    axes = np.arange(1, dimensions + 1)
    scaled = points * np.sqrt(2 / 3) * (dimensions + 1) / np.sqrt(axes * (axes + 1))
    position = (vertices * weights[..., None]).sum(axis=1)
    assert np.allclose(position[:, -1], -dimensions * scaled[:, -1])


@pytest.mark.parametrize(("dimensions", "count", "spread"), [(1, 400, 12), (2, 2000, 8), (3, 4000, 6)])
def test_the_lattice_comes_near_the_exact_sum_where_points_are_dense(dimensions, count, spread):
    points, values = scatter(count, dimensions, spread)
    lattice = PermutohedralLattice(points)
    exact = gaussian_sum(points, values) / gaussian_sum(points, torch.ones(count, 1))
    found = lattice(values) / lattice(torch.ones(count, 1))
    assert (found - exact).abs().mean() < 0.15 * exact.std()
    assert np.corrcoef(found[:, 0], exact[:, 0])[0, 1] > 0.98


def test_far_points_do_not_meet_and_equal_points_do():
    points = torch.tensor([[0.0, 0.0], [50.0, 0.0], [50.0, 0.0]])
    lattice = PermutohedralLattice(points)
    found = lattice(torch.eye(3))
    assert found[0, 0] > 0
    assert found[0, 1:].abs().max() == 0
    torch.testing.assert_close(found[1, 1:], found[2, 1:])


def test_bad_input_is_named():
    points, values = scatter(4, 2, 1)
    with pytest.raises(ValueError, match=r"points must be \(n, d\) with n and d at least 1, got shape \(0, 2\)"):
        PermutohedralLattice(points[:0])
    with pytest.raises(ValueError, match=r"values must be \(4, c\), got shape \(3, 2\)"):
        PermutohedralLattice(points)(values[:3])
    with pytest.raises(ValueError, match="one row each per point"):
        gaussian_sum(points, values[:3])
    with pytest.raises(ValueError, match="spread less widely"):
        PermutohedralLattice(torch.tensor([[0.0] * 5, [1e6] * 5]))
