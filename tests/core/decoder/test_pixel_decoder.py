from __future__ import annotations

import re

import pytest
import torch

from s2uniseg_d2.core.decoder.pixel_decoder import PixelDecoder
from s2uniseg_d2.core.structures import FeaturePyramid

CHANNELS = (6, 8, 10, 12)
SIZES = ((16, 24), (8, 12), (4, 6), (2, 3))


def pyramid(sizes=SIZES, *, batch=2, channels=CHANNELS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return FeaturePyramid(
        *(torch.randn(batch, c, h, w, generator=generator) for c, (h, w) in zip(channels, sizes, strict=True))
    )


def tiny(**overrides):
    torch.manual_seed(0)
    settings = {"hidden_dim": 16, "mask_dim": 12, "num_layers": 2, "num_heads": 4, "ffn_dim": 24, **overrides}
    return PixelDecoder(CHANNELS, **settings)


@pytest.mark.parametrize("sizes", [SIZES, ((50, 37), (25, 19), (13, 10), (7, 5)), ((4, 4), (2, 2), (1, 1), (1, 1))])
def test_shapes(sizes):
    mask_features, memory = tiny()(pyramid(sizes))
    assert mask_features.shape == (2, 12, *sizes[0])
    assert [x.shape for x in memory] == [(2, 16, *size) for size in reversed(sizes[1:])]


def test_full_size_has_the_published_names_and_count():
    with torch.device("meta"):
        decoder = PixelDecoder([768] * 4)
    shapes = {name: tuple(value.shape) for name, value in decoder.state_dict().items()}
    assert sum(parameter.numel() for parameter in decoder.parameters()) == 5_839_296
    expected = {
        "input_proj.0.0.weight": (256, 768, 1, 1),
        "input_proj.2.0.bias": (256,),
        "input_proj.1.1.weight": (256,),
        "transformer.level_embed": (3, 256),
        "transformer.encoder.layers.0.self_attn.sampling_offsets.weight": (192, 256),
        "transformer.encoder.layers.5.self_attn.attention_weights.bias": (96,),
        "transformer.encoder.layers.5.self_attn.value_proj.weight": (256, 256),
        "transformer.encoder.layers.3.self_attn.output_proj.bias": (256,),
        "transformer.encoder.layers.5.norm1.weight": (256,),
        "transformer.encoder.layers.5.linear1.weight": (1024, 256),
        "transformer.encoder.layers.5.linear2.weight": (256, 1024),
        "transformer.encoder.layers.5.norm2.bias": (256,),
        "adapter_1.weight": (256, 768, 1, 1),
        "adapter_1.norm.weight": (256,),
        "adapter_1.norm.bias": (256,),
        "layer_1.weight": (256, 256, 3, 3),
        "layer_1.norm.weight": (256,),
        "mask_features.weight": (256, 256, 1, 1),
        "mask_features.bias": (256,),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    # 3 projections x 4, level_embed, 6 layers x (8 attention + 8), 3 + 3 convolutions, mask features
    assert len(shapes) == 12 + 1 + 6 * 16 + 6 + 2


def test_input_proj_0_reads_the_coarsest_map():
    with torch.device("meta"):
        decoder = tiny()
    assert [decoder.input_proj[i][0].in_channels for i in range(3)] == [12, 10, 8]
    assert decoder.adapter_1.in_channels == 6


def test_every_level_reaches_every_memory_map():
    decoder, features = tiny(), pyramid()
    with torch.no_grad():
        for layer in decoder.transformer.encoder.layers:
            layer.self_attn.attention_weights.weight.normal_()
    before = decoder(features).memory
    for index in (1, 2, 3):
        changed = list(features)
        changed[index] = torch.randn(features[index].shape, generator=torch.Generator().manual_seed(9))
        after = decoder(FeaturePyramid(*changed)).memory
        assert all((x - y).abs().max() > 1e-3 for x, y in zip(before, after, strict=True)), index


def test_res2_reaches_the_mask_features_alone():
    decoder, features = tiny(), pyramid()
    before, after = decoder(features), decoder(features._replace(res2=features.res2.flip(-1)))
    assert all(torch.equal(x, y) for x, y in zip(before.memory, after.memory, strict=True))
    assert (before.mask_features - after.mask_features).abs().max() > 1e-2


def test_pictures_of_a_batch_are_independent():
    decoder, features = tiny(), pyramid()
    both, second = decoder(features), decoder(FeaturePyramid(*(x[1:] for x in features)))
    torch.testing.assert_close(both.mask_features[1:], second.mask_features, atol=1e-5, rtol=0)
    for x, y in zip(both.memory, second.memory, strict=True):
        torch.testing.assert_close(x[1:], y, atol=1e-5, rtol=0)


@pytest.mark.parametrize("hidden_dim", [20, 48])
def test_group_norm_fits_widths_that_32_does_not_divide(hidden_dim):
    decoder = tiny(hidden_dim=hidden_dim)
    assert {20: 4, 48: 16}[hidden_dim] == decoder.adapter_1.norm.num_groups
    assert decoder(pyramid()).memory[0].shape[1] == hidden_dim


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_encoder_stays_float32_under_autocast(dtype):
    decoder, features = tiny(), pyramid()
    expected = decoder(features)
    with torch.autocast("cpu", dtype):
        mixed = decoder(features)
    for x, y in zip(mixed.memory, expected.memory, strict=True):
        assert x.dtype == torch.float32
        assert torch.equal(x, y)
    assert mixed.mask_features.dtype == dtype
    torch.testing.assert_close(mixed.mask_features.float(), expected.mask_features, atol=0.1, rtol=0.1)
    with torch.autocast("cpu", dtype):
        halved = decoder(FeaturePyramid(*(x.to(dtype) for x in features)))
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in halved.memory)
    mixed.mask_features.float().square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in decoder.parameters())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_heads": 3}, "num_heads must divide hidden_dim, got num_heads 3 and hidden_dim 16"),
        ({"num_heads": 0}, "num_heads must divide hidden_dim, got num_heads 0 and hidden_dim 16"),
        ({"hidden_dim": 18}, "hidden_dim must be a positive multiple of 4, got 18"),
        ({"mask_dim": 0}, "mask_dim must be at least 1, got 0"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"ffn_dim": -1}, "ffn_dim must be at least 1, got -1"),
        ({"num_points": 0}, "num_points must be at least 1, got 0"),
    ],
)
def test_refuses_impossible_sizes(overrides, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        tiny(**overrides)


def test_one_head_is_enough():
    mask_features, _ = tiny(num_heads=1)(pyramid())
    assert mask_features.isfinite().all()


@pytest.mark.parametrize("channels", [(8, 8, 8), (8, 8, 8, 0), (8,) * 5, ()])
def test_refuses_other_than_four_channel_counts(channels):
    with pytest.raises(
        ValueError, match=rf"in_channels must hold four positive counts.*got {re.escape(str(channels))}"
    ):
        PixelDecoder(channels, hidden_dim=16, num_heads=4)


def test_refuses_other_pyramids():
    decoder, features = tiny(), pyramid()
    with pytest.raises(ValueError, match=r"features must hold four maps .*, got 3$"):
        decoder(features[:3])
    with pytest.raises(ValueError, match=re.escape("features must have (6, 8, 10, 12) channels, got (6, 8, 12, 12)")):
        decoder(features._replace(res4=torch.zeros(2, 12, 4, 6)))
