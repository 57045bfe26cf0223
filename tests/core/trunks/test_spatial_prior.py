from __future__ import annotations

import pytest
import torch
from torch import nn

from s2uniseg_d2.core.trunks.spatial_prior import SpatialPrior


@pytest.mark.parametrize("size", [(32, 32), (96, 160)])
def test_outputs_have_strides_4_to_32(size):
    prior = SpatialPrior(4, 12, nn.BatchNorm2d).eval()
    maps = prior(torch.randn(2, 3, *size))
    assert [tuple(part.shape) for part in maps] == [(2, 12, size[0] // s, size[1] // s) for s in (4, 8, 16, 32)]


def test_norm_layer_makes_all_six_norms():
    made: list[int] = []

    def norm_layer(channels: int) -> nn.Module:
        made.append(channels)
        return nn.GroupNorm(2, channels)

    SpatialPrior(4, 12, norm_layer)
    assert made == [4, 4, 4, 8, 16, 16]


def test_base_size_has_the_published_number_of_parameters():
    with torch.device("meta"):
        prior = SpatialPrior(64, 768, nn.BatchNorm2d)
    # convolutions 3-64-64-64-128-256-256 without bias, their norms, four 1 x 1 convolutions with bias
    convolutions = 9 * (3 * 64 + 2 * 64 * 64 + 64 * 128 + 128 * 256 + 256 * 256)
    norms = 2 * (3 * 64 + 128 + 2 * 256)
    outputs = 768 * (64 + 128 + 256 + 256) + 4 * 768
    assert sum(parameter.numel() for parameter in prior.parameters()) == convolutions + norms + outputs


def test_a_pixel_reaches_only_its_neighbourhood():
    prior = SpatialPrior(4, 12, nn.BatchNorm2d).eval()
    images = torch.randn(1, 3, 64, 64)
    changed = images.clone()
    changed[0, :, 0, 0] += 1.0
    difference = (prior(images)[0] - prior(changed)[0]).abs().sum(dim=1)[0]
    assert difference[0, 0] > 0
    assert not difference[3:].any()
    assert not difference[:, 3:].any()
