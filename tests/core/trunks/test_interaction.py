from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from s2uniseg_d2.core.trunks.interaction import (
    Extractor,
    Injector,
    Interaction,
    PyramidConvolution,
    PyramidFeedForward,
    TokenGrids,
)

H, W, DIM = 4, 6, 16
PATCHES, PYRAMID = H * W, 21 * H * W // 4


@pytest.fixture
def grids() -> TokenGrids:
    return TokenGrids.of(H, W, torch.zeros(1))


@pytest.fixture
def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, PATCHES, DIM), torch.randn(2, PYRAMID, DIM)


def make_extractor(drop_path_rate: float = 0.0) -> Extractor:
    return Extractor(DIM, num_heads=2, num_points=3, value_ratio=0.5, ffn_ratio=0.25, drop_path_rate=drop_path_rate)


def test_grids_split_a_sequence_row_major(grids):
    sequence = torch.arange(PYRAMID).view(1, -1, 1).float()
    stride8, stride16, stride32 = grids.split(sequence)
    assert stride8.shape == (1, 1, 8, 12)
    assert stride16.shape == (1, 1, 4, 6)
    assert stride32.shape == (1, 1, 2, 3)
    assert stride8[0, 0, 1, 0] == 12
    assert stride16[0, 0, 0, 0] == 96
    assert stride32[0, 0, 1, 2] == PYRAMID - 1
    again = torch.cat([part.flatten(2) for part in (stride8, stride16, stride32)], dim=2).transpose(1, 2)
    assert torch.equal(again, sequence)


def test_reference_points_are_cell_centres(grids):
    assert grids.patch_points.shape == (1, PATCHES, 1, 2)
    assert grids.pyramid_points.shape == (1, PYRAMID, 1, 2)
    torch.testing.assert_close(grids.patch_points[0, W + 2, 0], torch.tensor([2.5 / 6, 1.5 / 4]))
    torch.testing.assert_close(grids.pyramid_points[0, 0, 0], torch.tensor([0.5 / 12, 0.5 / 8]))
    torch.testing.assert_close(grids.pyramid_points[0, -1, 0], torch.tensor([2.5 / 3, 1.5 / 2]))


def test_injector_starts_as_the_identity_and_moves_with_gamma(grids, tokens):
    patches, pyramid = tokens
    injector = Injector(DIM, num_heads=2, num_points=3, value_ratio=0.5)
    assert torch.equal(injector(patches, pyramid, grids), patches)
    assert injector.attn.sampling_offsets.out_features == 2 * 3 * 3 * 2  # heads, levels, points, axes
    torch.nn.init.ones_(injector.gamma)
    read = injector.attn(injector.query_norm(patches), grids.patch_points, injector.feat_norm(pyramid), grids.pyramid)
    torch.testing.assert_close(injector(patches, pyramid, grids), patches + read)


def test_extractor_is_attention_then_feed_forward_both_residual(grids, tokens):
    patches, pyramid = tokens
    extractor = make_extractor()
    read = extractor.attn(
        extractor.query_norm(pyramid), grids.pyramid_points, extractor.feat_norm(patches), [grids.patches]
    )
    middle = pyramid + read
    expected = middle + extractor.ffn(extractor.ffn_norm(middle), grids)
    torch.testing.assert_close(extractor(pyramid, patches, grids), expected)


def test_every_norm_has_the_vits_epsilon():
    norms = [part for part in make_extractor().modules() if isinstance(part, torch.nn.LayerNorm)]
    assert [norm.eps for norm in norms] == [1e-6] * 3


def test_the_feed_forward_is_a_share_of_the_width():
    assert make_extractor().ffn.fc1.weight.shape == (DIM // 4, DIM)


def test_drop_path_drops_the_feed_forward_alone(grids, tokens):
    patches, pyramid = tokens
    extractor = make_extractor(drop_path_rate=0.999999)
    read = extractor.attn(
        extractor.query_norm(pyramid), grids.pyramid_points, extractor.feat_norm(patches), [grids.patches]
    )
    torch.testing.assert_close(extractor(pyramid, patches, grids), pyramid + read)


def test_pyramid_convolution_shares_one_kernel_and_mixes_no_levels(grids, tokens):
    convolution = PyramidConvolution(DIM)
    _, pyramid = tokens
    output = grids.split(convolution(pyramid, grids))
    for before, after in zip(grids.split(pyramid), output, strict=True):
        kernel, bias = convolution.dwconv.weight, convolution.dwconv.bias
        torch.testing.assert_close(after, functional.conv2d(before, kernel, bias, padding=1, groups=DIM))


def test_feed_forward_with_a_centre_kernel_is_an_ordinary_one(grids, tokens):
    feed_forward = PyramidFeedForward(DIM, 8)
    kernel = feed_forward.dwconv.dwconv.weight
    with torch.no_grad():
        kernel.zero_()
        kernel[:, :, 1, 1] = 1.0
        feed_forward.dwconv.dwconv.bias.zero_()
    _, pyramid = tokens
    expected = feed_forward.fc2(functional.gelu(feed_forward.fc1(pyramid)))
    torch.testing.assert_close(feed_forward(pyramid, grids), expected)


def test_interaction_hides_the_prefix_from_injector_and_extractor(grids, tokens):
    patches, pyramid = tokens
    interaction = Interaction(
        DIM, num_heads=2, num_points=3, value_ratio=0.5, ffn_ratio=0.25, drop_path_rate=0.0, extra_extractors=2
    )
    torch.nn.init.ones_(interaction.injector.gamma)
    prefix = torch.randn(2, 3, DIM)

    def run_blocks(sequence: torch.Tensor) -> torch.Tensor:
        assert torch.equal(sequence[:, :3], prefix)
        return sequence * 2.0

    out_prefix, out_patches, out_pyramid = interaction(prefix, patches, pyramid, run_blocks, grids)
    assert torch.equal(out_prefix, 2.0 * prefix)
    assert torch.equal(out_patches, 2.0 * interaction.injector(patches, pyramid, grids))
    expected = pyramid
    for extractor in (interaction.extractor, *interaction.extra_extractors):
        expected = extractor(expected, out_patches, grids)
    assert torch.equal(out_pyramid, expected)
    # what the blocks make of the prefix reaches the pyramid through the patches alone
    zeroed = interaction(torch.zeros_like(prefix), patches, pyramid, lambda sequence: sequence * 2.0, grids)
    assert torch.equal(zeroed[2], out_pyramid)
