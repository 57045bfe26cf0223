from __future__ import annotations

import argparse
import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from s2uniseg_d2.core.ops.deformable import MSDeformAttn
from s2uniseg_d2.core.structures import FeaturePyramid
from s2uniseg_d2.core.trunks.vit import TimmViT
from s2uniseg_d2.core.trunks.vit_adapter import ViTAdapter
from s2uniseg_d2.core.trunks.weights import load_trunk_weights

SIZES = [(128, 128), (96, 160), (32, 64), (256, 32)]


def enlarge(tokens: torch.Tensor) -> torch.Tensor:
    """Nearest enlargement by 4, written without interpolation."""
    return tokens.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)


# ---- the zero-initialised adapter is the plain ViT ------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("zero_init", ["stride4", "all"])
@pytest.mark.parametrize("train", [False, True])
def test_pooling_map_is_the_enlarged_plain_vit(
    make_vit, make_adapter, scatter_weights, timm_token_map, size, zero_init, train
):
    vit = make_vit()
    scatter_weights(vit)
    adapter = make_adapter(vit, zero_init=zero_init).train(train)
    images = torch.randn(2, 3, *size)
    expected = timm_token_map(vit, functional.avg_pool2d(images, 2))
    # adding exact zeros to the same operations on the same shapes: no tolerance
    assert torch.equal(adapter.pooling_features(images), enlarge(expected))
    assert torch.equal(adapter.pooling_features(images, stride=16), expected)


def test_what_the_adapter_has_learnt_is_added_to_the_pooling_map(make_adapter):
    adapter = make_adapter(zero_init="none").eval()
    torch.nn.init.ones_(adapter.up.bias)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        learnt = adapter._stride4_map(adapter._encode(images))
        assert learnt.abs().mean() > 0.5
        expected = enlarge(adapter.pooling_features(images, stride=16)) + learnt
        torch.testing.assert_close(adapter.pooling_features(images), expected)


def test_pooling_map_is_the_plain_vit_of_a_loaded_dino_checkpoint(
    make_vit, make_adapter, scatter_weights, timm_token_map, tmp_path
):
    dino = make_vit()
    scatter_weights(dino)
    teacher = {f"backbone.{name}": value for name, value in dino.state_dict().items()}
    teacher["head.mlp.0.weight"] = torch.randn(3, 32)
    torch.save({"teacher": teacher, "epoch": 1, "args": argparse.Namespace(arch="vit")}, tmp_path / "dino.pth")
    adapter = make_adapter().eval()
    load_trunk_weights(adapter.vit, tmp_path / "dino.pth")
    images = torch.randn(1, 3, 96, 160)
    assert torch.equal(
        adapter.pooling_features(images), enlarge(timm_token_map(dino, functional.avg_pool2d(images, 2)))
    )


@pytest.mark.parametrize("broken", ["none", "gamma", "up", "fc1"])
def test_the_identity_holds_for_no_other_start(make_vit, make_adapter, timm_token_map, broken):
    adapter = make_adapter(zero_init="none" if broken == "none" else "stride4").eval()
    with torch.no_grad():
        if broken == "gamma":
            adapter.interactions[0].injector.gamma.fill_(0.1)
        elif broken == "up":
            adapter.up.weight.fill_(0.1)
        elif broken == "fc1":
            adapter.spm.fc1.weight.fill_(0.1)
    images = torch.randn(1, 3, 64, 64)
    expected = enlarge(timm_token_map(adapter.vit, functional.avg_pool2d(images, 2)))
    assert (adapter.pooling_features(images) - expected).abs().max() > 1e-4


def test_zero_init_all_gives_the_resized_tokens_at_every_stride(make_adapter, timm_token_map):
    adapter = make_adapter(zero_init="all", norm_layer=lambda _: nn.Identity()).eval()
    images = torch.randn(1, 3, 96, 160)
    tokens = timm_token_map(adapter.vit, functional.avg_pool2d(images, 2))
    for part, scale in zip(adapter(images), (4, 2, 1, 0.5), strict=True):
        expected = functional.interpolate(tokens, scale_factor=scale, mode="bilinear", align_corners=False)
        # interpolating to a size and by a factor may round the same weights differently
        torch.testing.assert_close(part, expected, atol=1e-5, rtol=0)


def test_final_tokens_are_added_at_all_four_levels(make_adapter, timm_token_map):
    with_tokens = make_adapter(norm_layer=lambda _: nn.Identity()).eval()
    without = copy.deepcopy(with_tokens)
    without.add_vit_feature = False
    images = torch.randn(1, 3, 96, 64)
    tokens = timm_token_map(with_tokens.vit, functional.avg_pool2d(images, 2))
    for full, bare in zip(with_tokens(images), without(images), strict=True):
        expected = functional.interpolate(tokens, size=full.shape[2:], mode="bilinear", align_corners=False)
        torch.testing.assert_close(full - bare, expected, atol=1e-5, rtol=0)


def test_vit_norm_can_be_left_out(make_vit, make_adapter, scatter_weights, plain_timm):
    vit = make_vit()
    scatter_weights(vit)
    images = torch.randn(1, 3, 64, 64)
    adapter = make_adapter(vit, apply_vit_norm=False).eval()
    plain = plain_timm(vit)
    plain.norm = nn.Identity()
    tokens = plain.forward_features(functional.avg_pool2d(images, 2))[:, 1:]
    assert torch.equal(adapter.pooling_features(images, stride=16), tokens.transpose(1, 2).unflatten(2, (4, 4)))
    assert not any(parameter.requires_grad for parameter in vit.norm.parameters())


def test_the_cls_token_takes_part(make_adapter):
    adapter = make_adapter().eval()
    images = torch.randn(1, 3, 64, 64)
    before = adapter.pooling_features(images, stride=16)
    with torch.no_grad():
        adapter.vit.cls_token.add_(torch.randn(1, 1, 32))
    assert not torch.allclose(adapter.pooling_features(images, stride=16), before)


# ---- the scale of the ViT's branch ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("patch", "vit_size"), [(16, (96, 160)), (14, (84, 140)), (8, (48, 80)), (32, (192, 320))])
def test_the_vit_sees_the_picture_at_patch_size_over_16(make_vit, make_adapter, patch, vit_size):
    adapter = make_adapter(make_vit(patch_size=patch, img_size=4 * patch)).eval()
    seen = []
    adapter.vit.patch_embed.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    images = torch.randn(1, 3, 96, 160)
    assert adapter.pooling_features(images, stride=16).shape == (1, 32, 6, 10)
    assert seen[0].shape[2:] == vit_size
    expected = functional.interpolate(images, size=vit_size, mode="bilinear", align_corners=False)
    # for half scale bilinear is the mean of 2 x 2 pixels, up to the rounding of the order of addition
    torch.testing.assert_close(seen[0], expected, atol=1e-6, rtol=0)
    if patch == 16:
        assert seen[0] is images


def test_register_tokens_pass_with_the_cls_token():
    vit = TimmViT("vit_small_patch14_reg4_dinov2", embed_dim=32, depth=4, num_heads=2, img_size=56)
    adapter = ViTAdapter(vit, conv_inplane=4, deform_heads=4).eval()
    images = torch.randn(1, 3, 64, 96)
    tokens = vit(functional.interpolate(images, size=(56, 84), mode="bilinear", align_corners=False))[:, 5:]
    expected = tokens.transpose(1, 2).unflatten(2, (4, 6))
    assert torch.equal(adapter.pooling_features(images, stride=16), expected)


# ---- shapes, sizes, determinism -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(96, 160), (512, 512), (32, 32)])
def test_output_shapes(make_adapter, size):
    adapter = make_adapter().eval()
    with torch.no_grad():
        pyramid = adapter(torch.randn(1, 3, *size))
    assert isinstance(pyramid, FeaturePyramid)
    assert [tuple(part.shape) for part in pyramid] == [(1, 32, size[0] // s, size[1] // s) for s in (4, 8, 16, 32)]


@pytest.mark.parametrize("shape", [(1, 3, 100, 96), (1, 3, 96, 48), (1, 3, 96, 0), (3, 96, 96)])
def test_sizes_that_are_not_multiples_of_32_are_refused_by_name(make_adapter, shape):
    adapter = make_adapter()
    for encode in (adapter.forward, adapter.pooling_features):
        with pytest.raises(ValueError, match=rf"multiples of 32, got \({shape[0]}, {shape[1]}, {shape[2]}"):
            encode(torch.zeros(shape))


def test_other_pooling_strides_are_refused(make_adapter):
    with pytest.raises(ValueError, match="stride must be 4 or 16, got 8"):
        make_adapter().pooling_features(torch.zeros(1, 3, 32, 32), stride=8)


def test_eval_is_deterministic_and_pictures_do_not_see_each_other(make_vit, make_adapter):
    adapter = make_adapter(make_vit(drop_path_rate=0.3), drop_path_rate=0.3).eval()
    images = torch.randn(2, 3, 64, 96)
    first, second = adapter(images), adapter(images)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for both, alone in zip(first, adapter(images[1:]), strict=True):
        # matrix products of other sizes may add in another order
        torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=1e-5)


def test_pooling_leaves_the_upper_strides_alone(make_adapter):
    adapter = make_adapter().eval()
    called = []
    for norm in (adapter.norm1, adapter.norm2, adapter.norm3, adapter.norm4):
        norm.register_forward_hook(lambda *_: called.append("norm"))
    adapter.pooling_features(torch.randn(1, 3, 64, 64))
    assert not called


def test_a_deep_copy_is_an_equal_and_independent_encoder(make_adapter):
    adapter = make_adapter(zero_init="none").eval()
    teacher = copy.deepcopy(adapter)
    images = torch.randn(1, 3, 64, 64)
    before = teacher(images).res2
    assert torch.equal(adapter(images).res2, before)
    nn.init.ones_(adapter.up.weight)
    assert torch.equal(teacher(images).res2, before)


def test_mixed_precision_stays_close(make_adapter):
    adapter = make_adapter(zero_init="none").eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        exact = adapter(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = adapter(images)
    for a, b in zip(exact, rough, strict=True):
        assert (a - b.float()).norm() < 0.05 * a.norm()


# ---- gradients ------------------------------------------------------------------------------------------------------


def gradients(adapter: ViTAdapter) -> dict[str, torch.Tensor | None]:
    # random weights, since the plain sum of a batch-normalised map is constant
    loss = sum((part * torch.randn(part.shape)).sum() for part in adapter(torch.randn(2, 3, 64, 96)))
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    return {name: parameter.grad for name, parameter in adapter.named_parameters()}


def is_alive(grad: torch.Tensor | None) -> bool:
    return grad is not None and bool(grad.abs().max() > 0)


def is_inside_injector(name: str) -> bool:
    return ".injector." in name and not name.endswith(".gamma")


def is_query_norm(name: str) -> bool:
    # at the published start no sampling offset and no attention weight depends on the query
    return ".query_norm." in name


def test_at_the_start_all_is_alive_but_what_lies_behind_a_published_zero(make_adapter):
    grads = gradients(make_adapter())
    assert all(grad is not None and bool(grad.isfinite().all()) for grad in grads.values())
    dead = {name for name, grad in grads.items() if not is_alive(grad)}
    assert dead == {name for name in grads if is_inside_injector(name) or is_query_norm(name)}
    for name in ("up.weight", "spm.fc1.weight", "spm.stem.0.weight", "interactions.3.extractor.attn.value_proj.weight"):
        assert is_alive(grads[name]), name


def test_all_wakes_once_gamma_and_the_attentions_have_moved(make_adapter):
    adapter = make_adapter()
    with torch.no_grad():
        for interaction in adapter.interactions:
            interaction.injector.gamma.fill_(0.01)
        for module in adapter.modules():
            if isinstance(module, MSDeformAttn):
                nn.init.normal_(module.sampling_offsets.weight, std=0.01)
                nn.init.normal_(module.attention_weights.weight, std=0.01)
    grads = gradients(adapter)
    assert [name for name, grad in grads.items() if not is_alive(grad)] == []


def test_zero_init_all_is_alive_at_the_zeroed_layers_and_whole_after_one_step(make_adapter):
    adapter = make_adapter(zero_init="all")
    grads = gradients(adapter)
    assert all(grad is not None for grad in grads.values())
    # the input of `up` is zero as well: its bias moves first
    for name in ("up.bias", "spm.fc1.weight", "spm.fc4.weight", "level_embed"):
        assert is_alive(grads[name]), name
    assert is_alive(grads["interactions.0.extractor.attn.output_proj.weight"])
    with torch.no_grad():
        for parameter in adapter.parameters():
            if parameter.grad is not None:
                parameter.sub_(1e-2 * parameter.grad)
    adapter.zero_grad(set_to_none=True)
    again = gradients(adapter)
    assert all(is_alive(again[name]) for name in ("up.weight", "spm.stem.0.weight", "interactions.0.injector.gamma"))


@pytest.mark.parametrize("changes", [{"apply_vit_norm": False}, {"add_vit_feature": False}])
def test_no_trainable_parameter_is_left_without_gradient(make_adapter, changes):
    adapter = make_adapter(**changes)
    grads = gradients(adapter)
    frozen = {name for name, parameter in adapter.named_parameters() if not parameter.requires_grad}
    assert frozen == {"vit.norm.weight", "vit.norm.bias"}
    assert {name for name, grad in grads.items() if grad is None} == frozen


# ---- initial values -------------------------------------------------------------------------------------------------


def test_published_sizes_are_the_defaults(make_vit):
    adapter = ViTAdapter(make_vit(embed_dim=192, num_heads=6))
    assert adapter.spm.conv3[0].weight.shape == (4 * 64, 2 * 64, 3, 3)
    assert not adapter.interactions[0].recomputes
    extractor = adapter.interactions[0].extractor
    assert extractor.ffn.fc1.out_features == 192 // 4
    assert extractor.attn.value_proj.out_features == 192 // 2
    assert len(adapter.interactions[-1].extra_extractors) == 2


@torch.no_grad()
def test_published_initialisation(make_vit):
    adapter = ViTAdapter(make_vit(embed_dim=192, num_heads=6), zero_init="none")
    assert adapter.spm.conv3[0].weight.std() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.05)
    assert adapter.up.weight.std() == pytest.approx((2 / (4 * 192)) ** 0.5, rel=0.05)
    extractor = adapter.interactions[0].extractor
    assert extractor.ffn.fc1.weight.std() == pytest.approx(0.02, rel=0.05)
    assert extractor.ffn.dwconv.dwconv.weight.std() == pytest.approx((2 / 9) ** 0.5, rel=0.15)
    assert adapter.level_embed.std() == pytest.approx(1.0, rel=0.15)
    for bias in (adapter.up.bias, adapter.spm.fc2.bias, extractor.ffn.fc2.bias, extractor.attn.value_proj.bias):
        assert not bias.any()
    assert not extractor.attn.sampling_offsets.weight.any()
    assert not extractor.attn.attention_weights.weight.any()
    # head 0 looks right, one to four cells away
    offsets = extractor.attn.sampling_offsets.bias.view(12, 1, 4, 2)
    torch.testing.assert_close(offsets[0, 0], torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0]]))
    bound = (6 / (192 + 96)) ** 0.5
    assert bound * 0.95 < extractor.attn.value_proj.weight.abs().max() <= bound
    assert not adapter.interactions[0].injector.gamma.any()


def test_building_the_adapter_leaves_the_vit_alone(make_vit, make_adapter):
    vit = make_vit()
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    adapter = make_adapter(vit)
    assert adapter.vit is vit
    assert all(torch.equal(before[name], value) for name, value in vit.state_dict().items())


@pytest.mark.parametrize("zero_init", ["stride4", "all"])
def test_zero_init_zeroes_what_it_says(make_adapter, zero_init):
    adapter = make_adapter(zero_init=zero_init)
    zeroed = [adapter.up.weight, adapter.up.bias, adapter.spm.fc1.weight, adapter.spm.fc1.bias]
    others = [adapter.spm.fc2.weight, adapter.level_embed, adapter.interactions[0].extractor.ffn.fc2.weight]
    assert not any(bool(parameter.any()) for parameter in zeroed)
    assert all(bool(parameter.any()) == (zero_init == "stride4") for parameter in others)


# ---- arguments ------------------------------------------------------------------------------------------------------


def test_groups_may_be_unequal_and_of_any_number(make_vit, make_adapter, timm_token_map):
    vit = make_vit(depth=4)
    adapter = make_adapter(vit, interaction_indexes=[(0, 0), (1, 3)]).eval()
    assert adapter.groups == ((0, 1), (1, 4))
    assert len(adapter.interactions) == 2
    assert len(adapter.interactions[1].extra_extractors) == 1
    images = torch.randn(1, 3, 64, 64)
    expected = timm_token_map(vit, functional.avg_pool2d(images, 2))
    assert torch.equal(adapter.pooling_features(images, stride=16), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interaction_indexes": [(0, 1), (3, 3)]}, "cover 0 to 3 in order"),
        ({"interaction_indexes": [(0, 2)]}, "cover 0 to 3 in order"),
        ({"interaction_indexes": [(0, 3), (4, 3)]}, "cover 0 to 3 in order"),
        ({"interaction_indexes": []}, "cover 0 to 3 in order"),
        ({"zero_init": "some"}, "zero_init must be one of stride4, all, none, got 'some'"),
        ({"deform_heads": 5}, "num_heads must divide"),
        ({"ffn_ratio": 0.01}, "ffn_ratio must leave at least one hidden channel"),
        ({"extra_extractors": -1}, "extra_extractors must not be negative"),
        ({"drop_path_rate": 1.5}, "drop_path_rate must lie in"),
        ({"conv_inplane": 0}, "conv_inplane must be positive, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(make_adapter, changes, message):
    with pytest.raises(ValueError, match=message):
        make_adapter(**changes)


def test_a_depth_without_four_equal_groups_needs_them_named(make_vit, make_adapter):
    with pytest.raises(
        ValueError, match="interaction_indexes must be given unless 4 divides the depth, got None and 3"
    ):
        make_adapter(make_vit(depth=3))
