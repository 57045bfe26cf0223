from __future__ import annotations

import re

import pytest
import torch

from s2uniseg_d2.core.decoder.pixel_decoder import PixelDecoder, PixelFeatures
from s2uniseg_d2.core.decoder.query_decoder import QueryDecoder, QueryGroup, visible_pixels
from s2uniseg_d2.core.structures import FeaturePyramid

GROUPS = (QueryGroup("ins", 5), QueryGroup("sem", 3))
SIZES = ((16, 24), (2, 3), (4, 6), (8, 12))


def pixel_features(*, batch=2, hidden_dim=16, mask_dim=12, sizes=SIZES):
    generator = torch.Generator().manual_seed(0)
    first, *rest = sizes
    mask_features = torch.randn(batch, mask_dim, *first, generator=generator)
    return PixelFeatures(
        mask_features, tuple(torch.randn(batch, hidden_dim, *size, generator=generator) for size in rest)
    )


def tiny(groups=GROUPS, **overrides):
    torch.manual_seed(0)
    settings = {"hidden_dim": 16, "mask_dim": 12, "num_layers": 4, "num_heads": 4, "ffn_dim": 24, **overrides}
    return QueryDecoder(groups, **settings)


def test_one_prediction_before_and_one_after_each_layer():
    predictions = tiny()(pixel_features())
    assert len(predictions) == 5
    for masks, objectness, queries in predictions:
        assert masks.shape == (2, 8, 16, 24)
        assert objectness.shape == (2, 8, 2)
        assert queries.shape == (2, 8, 16)


def test_first_prediction_is_of_the_raw_queries():
    decoder, pixels = tiny(), pixel_features()
    first = decoder(pixels)[0]
    queries = decoder.decoder_norm(decoder.raw_queries())
    torch.testing.assert_close(first.queries, queries.expand(2, -1, -1))
    torch.testing.assert_close(first.objectness, decoder.class_embed(first.queries))
    masks = torch.einsum("qc,bchw->bqhw", decoder.mask_embed(queries), pixels.mask_features)
    torch.testing.assert_close(first.masks, masks, atol=1e-5, rtol=1e-5)


def test_full_size_has_the_published_names_and_count():
    with torch.device("meta"):
        decoder = QueryDecoder([QueryGroup("ins", 150), QueryGroup("sem", 50)])
    shapes = {name: tuple(value.shape) for name, value in decoder.state_dict().items()}
    # The published decoder with 100 queries and 6 logits has 14,460,166 parameters. Ours has 100 queries more in two
    # embeddings, 4 logits (of 256 weights and a bias) less, and two type tokens.
    expected_count = 14_460_166 + 2 * 100 * 256 - 4 * 257 + 2 * 256
    assert sum(parameter.numel() for parameter in decoder.parameters()) == expected_count == 14_510_850
    cross, self_attention = "transformer_cross_attention_layers", "transformer_self_attention_layers"
    expected = {
        "query_feat.weight": (200, 256),
        "query_embed.weight": (200, 256),
        "query_type.weight": (2, 256),
        "level_embed.weight": (3, 256),
        "decoder_norm.weight": (256,),
        "class_embed.weight": (2, 256),
        "class_embed.bias": (2,),
        "mask_embed.layers.2.weight": (256, 256),
        f"{self_attention}.8.self_attn.in_proj_weight": (768, 256),
        f"{self_attention}.0.self_attn.in_proj_bias": (768,),
        f"{self_attention}.0.self_attn.out_proj.weight": (256, 256),
        f"{self_attention}.0.norm.bias": (256,),
        f"{cross}.8.multihead_attn.in_proj_weight": (768, 256),
        f"{cross}.8.multihead_attn.out_proj.bias": (256,),
        f"{cross}.8.norm.weight": (256,),
        "transformer_ffn_layers.8.linear1.weight": (2048, 256),
        "transformer_ffn_layers.8.linear2.bias": (256,),
        "transformer_ffn_layers.8.norm.weight": (256,),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    assert len(shapes) == 4 + 2 + 2 + 6 + 9 * (6 + 6 + 6)


def test_groups_stand_in_their_order():
    decoder = tiny([QueryGroup("sem", 2), QueryGroup("ins", 4), QueryGroup("part", 1)])
    assert decoder.slices == {"sem": slice(0, 2), "ins": slice(2, 6), "part": slice(6, 7)}
    with torch.no_grad():
        decoder.query_feat.weight.zero_()
    raw = decoder.raw_queries()
    for index, rows in enumerate(decoder.slices.values()):
        assert torch.equal(raw[rows], decoder.query_type.weight[index].expand(rows.stop - rows.start, -1))


def test_swapped_type_tokens_change_the_outputs():
    decoder, pixels = tiny(), pixel_features()
    before = decoder(pixels)
    with torch.no_grad():
        decoder.query_type.weight.copy_(decoder.query_type.weight.flip(0))
    after = decoder(pixels)
    for x, y in zip(before, after, strict=True):
        for part_x, part_y in zip(x, y, strict=True):
            assert (part_x - part_y).abs().amax(dim=tuple(range(2, part_x.ndim))).min() > 1e-4


def test_type_tokens_leave_the_positions_alone():
    decoder, pixels = tiny(), pixel_features()
    before = decoder(pixels)
    with torch.no_grad():
        # moving the token into the features must change nothing at all
        decoder.query_feat.weight.copy_(decoder.raw_queries())
        decoder.query_type.weight.zero_()
    for x, y in zip(before, decoder(pixels), strict=True):
        assert all(torch.equal(part_x, part_y) for part_x, part_y in zip(x, y, strict=True))


def test_groups_see_each_other():
    decoder, pixels = tiny(), pixel_features()
    ins = decoder.slices["ins"]
    before = decoder(pixels)
    with torch.no_grad():
        decoder.query_feat.weight[decoder.slices["sem"]] += 1.0
    after = decoder(pixels)
    assert torch.equal(before[0].queries[:, ins], after[0].queries[:, ins])
    assert (before[1].queries[:, ins] - after[1].queries[:, ins]).abs().amax(dim=-1).min() > 1e-4


def test_queries_permute_with_their_embeddings():
    decoder, pixels = tiny([QueryGroup("all", 8)]), pixel_features()
    order = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    before = decoder(pixels)[-1]
    with torch.no_grad():
        for embedding in (decoder.query_feat, decoder.query_embed):
            embedding.weight.copy_(embedding.weight[order])
    torch.testing.assert_close(decoder(pixels)[-1].masks, before.masks[:, order], atol=1e-4, rtol=1e-4)


def test_layers_read_coarse_middle_fine_in_turn():
    decoder, pixels = tiny(), pixel_features()
    before = decoder(pixels)
    for level in range(3):
        memory = list(pixels.memory)
        memory[level] = memory[level].flip(1)
        after = decoder(pixels._replace(memory=tuple(memory)))
        same = [torch.equal(x.queries, y.queries) for x, y in zip(before, after, strict=True)]
        # prediction k has seen layers 0 to k - 1, thus levels 0 to k - 1
        assert same == [k <= level for k in range(5)]


def test_a_layer_sees_only_the_pixels_of_the_mask_before():
    decoder, pixels = tiny(num_layers=1), pixel_features(batch=1)
    first = decoder(pixels)[0]
    seen = visible_pixels(first.masks, SIZES[1])[0]
    unseen_by = {int(pixel): ~seen[:, pixel] for pixel in range(seen.shape[1]) if (~seen[:, pixel]).any()}
    assert unseen_by
    # cut the exchange between queries, so that each shows what it read itself
    with torch.no_grad():
        decoder.transformer_self_attention_layers[0].self_attn.out_proj.weight.zero_()
    before = decoder(pixels)[1].queries[0]
    for pixel, blind in unseen_by.items():
        changed = pixels.memory[0].clone()
        changed.view(1, 16, -1)[:, :, pixel] += 3.0
        after = decoder(pixels._replace(memory=(changed, *pixels.memory[1:])))[1].queries[0]
        moved = (before - after).abs().amax(dim=-1) > 1e-6
        assert torch.equal(moved, ~blind)


def test_visible_pixels_are_those_of_the_mask():
    masks = torch.tensor([[[[1.0, -1.0], [-2.0, 0.0]]]])
    assert visible_pixels(masks, (2, 2)).tolist() == [[[True, False, False, True]]]


def test_visible_pixels_follow_the_bilinear_resize():
    masks = torch.full((1, 1, 4, 4), -1.0)
    masks[..., :2, :2] = 4.0
    masks[..., 1, 3] = 4.0
    # half size takes the centre of each 2 x 2 block: (-1 - 1 - 1 + 4) / 4 = 0.25 at the upper right
    assert visible_pixels(masks, (2, 2)).tolist() == [[[True, True, False, False]]]


def test_empty_masks_see_everything():
    masks = torch.randn(2, 3, 8, 8)
    masks[0, 1] = -5.0
    masks[1, 2] = -0.1
    rows = visible_pixels(masks, (4, 4))
    assert rows[0, 1].all()
    assert rows[1, 2].all()
    assert not rows[0, 0].all()
    assert rows.any(dim=-1).all()


def test_unusable_mask_logits_block_nothing():
    masks = torch.full((1, 2, 8, 8), float("nan"))
    masks[:, 1] = -float("inf")
    assert visible_pixels(masks, (4, 4)).all()


def test_a_decoder_whose_masks_are_all_empty_is_finite():
    decoder, pixels = tiny(), pixel_features()
    with torch.no_grad():
        # mask embeddings (1, 0, ...) on features (-1, 0, ...): every logit is -1
        decoder.mask_embed.layers[2].weight.zero_()
        decoder.mask_embed.layers[2].bias.zero_()[0] = 1.0
        pixels.mask_features.zero_()[:, 0] = -1.0
    predictions = decoder(pixels)
    assert all((x.masks == -1).all() for x in predictions)
    loss = sum(part.square().mean() for x in predictions for part in x)
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in decoder.parameters())


def test_no_gradient_passes_through_the_attention_masks():
    decoder, pixels = tiny(), pixel_features()
    pixels.mask_features.requires_grad_()
    (gradient,) = torch.autograd.grad(
        decoder(pixels)[-1].queries.square().sum(), pixels.mask_features, materialize_grads=True
    )
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_every_parameter_of_both_decoders_gets_a_gradient(num_layers):
    torch.manual_seed(0)
    channels = (6, 8, 10, 12)
    pixel_decoder = PixelDecoder(channels, hidden_dim=16, mask_dim=12, num_layers=2, num_heads=4, ffn_dim=24)
    decoder = tiny(num_layers=num_layers)
    features = FeaturePyramid(*(torch.randn(1, c, 16 >> i, 24 >> i) for i, c in enumerate(channels)))
    predictions = decoder(pixel_decoder(features))
    weights = torch.Generator().manual_seed(1)
    loss = sum((part * torch.randn(part.shape, generator=weights)).mean() for x in predictions for part in x)
    loss.backward()
    for module in (pixel_decoder, decoder):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            # the deformable queries start behind zero weights, which the level embedding meets nowhere else
            assert parameter.grad.abs().max() > 0 or name == "transformer.level_embed", name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_finite_and_close(dtype):
    decoder, pixels = tiny(), pixel_features()
    expected = decoder(pixels)
    with torch.autocast("cpu", dtype):
        mixed = decoder(pixels)
    assert all(part.isfinite().all() for x in mixed for part in x)
    # only the first prediction: a mask logit near 0 may fall on the other side and change what a layer sees
    torch.testing.assert_close(mixed[0].masks.float(), expected[0].masks, atol=0.15, rtol=0.05)
    sum(part.float().square().mean() for x in mixed for part in x).backward()
    assert all(parameter.grad.isfinite().all() for parameter in decoder.parameters())


def test_needs_no_answer_from_the_device():
    # a tensor on the meta device has no values, so any .item(), nonzero() or branch on data would raise
    decoder = tiny().to("meta")
    predictions = decoder(PixelFeatures(*_to_meta(pixel_features())))
    assert predictions[-1].masks.shape == (2, 8, 16, 24)


def _to_meta(pixels):
    return pixels.mask_features.to("meta"), tuple(x.to("meta") for x in pixels.memory)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ((), "groups must hold at least one query group, got none"),
        ([("ins", 2), ("ins", 3)], "groups must have different names, got ('ins', 'ins')"),
        ([("ins", 2), ("sem", 0)], "each of groups must count at least 1 query, got QueryGroup(name='sem', count=0)"),
    ],
)
def test_refuses_impossible_groups(groups, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        tiny(groups)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_heads": 3}, "num_heads must divide hidden_dim, got num_heads 3 and hidden_dim 16"),
        ({"hidden_dim": 10, "num_heads": 2}, "hidden_dim must be a positive multiple of 4, got 10"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"mask_dim": 0}, "mask_dim must be at least 1, got 0"),
        ({"ffn_dim": 0}, "ffn_dim must be at least 1, got 0"),
    ],
)
def test_refuses_impossible_sizes(overrides, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        tiny(**overrides)


def test_refuses_other_pixel_features():
    decoder, pixels = tiny(), pixel_features()
    with pytest.raises(ValueError, match=r"pixels\.memory must hold three maps .*, got 2$"):
        decoder(pixels._replace(memory=pixels.memory[:2]))
    with pytest.raises(ValueError, match=r"pixels\.memory must have hidden_dim 16 channels, got \(20, 20, 20\)"):
        decoder(pixel_features(hidden_dim=20))
    with pytest.raises(ValueError, match=r"pixels\.mask_features must have mask_dim 12 channels, got 7"):
        decoder(pixel_features(mask_dim=7))
