from __future__ import annotations

import pytest
import timm
import torch

from s2uniseg_d2.core.trunks.vit import TimmViT


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (8, 128), (128, 32)])
@pytest.mark.parametrize("stops", [(4,), (1, 2, 3, 4), (0, 3, 4)])
def test_groups_of_blocks_give_timms_own_features(make_vit, plain_timm, scatter_weights, size, stops):
    vit = make_vit().eval()
    scatter_weights(vit)
    images = torch.randn(2, 3, *size)
    tokens, grid = vit.embed(images)
    start = 0
    for stop in stops:
        tokens, start = vit.run(tokens, start, stop), stop
    assert grid == (size[0] // 8, size[1] // 8)
    assert tokens.shape == (2, 1 + grid[0] * grid[1], 32)
    # the same operations on the same shapes: no tolerance
    assert torch.equal(vit.norm(tokens), plain_timm(vit).forward_features(images))


def test_splitting_off_the_cls_token_between_blocks_changes_nothing(make_vit, plain_timm, scatter_weights):
    vit = make_vit().eval()
    scatter_weights(vit)
    images = torch.randn(1, 3, 64, 64)
    tokens, _ = vit.embed(images)
    for block in range(4):
        tokens = vit.run(torch.cat([tokens[:, :1], tokens[:, 1:]], dim=1), block, block + 1)
    assert torch.equal(vit.norm(tokens), plain_timm(vit).forward_features(images))


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("vit_small_patch14_reg4_dinov2", 5),
        ("vit_small_patch14_dinov2", 1),
        ("deit3_small_patch16_224", 1),
        ("vit_base_patch32_clip_224", 1),
        ("vit_base_patch16_siglip_224", 0),
        ("flexivit_small", 1),
    ],
)
def test_registers_and_other_plain_vits_equal_timm(name, prefix):
    sizes = {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 112}
    vit = TimmViT(name, **sizes).eval()
    plain = timm.create_model(name, num_classes=0, dynamic_img_size=True, **sizes).eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    unused = vit.load_state_dict(plain.state_dict(), strict=False)
    assert not unused.missing_keys
    assert all(key.startswith("attn_pool.") for key in unused.unexpected_keys)
    images = torch.randn(1, 3, 3 * vit.patch_size, 4 * vit.patch_size)
    assert vit.num_prefix_tokens == prefix
    assert torch.equal(vit(images), plain.forward_features(images))


def test_parameter_names_and_shapes_are_those_of_dino_base_8():
    with torch.device("meta"):
        vit = TimmViT("vit_base_patch8_224.dino")
    shapes = {name: tuple(value.shape) for name, value in vit.state_dict().items()}
    assert len(shapes) == 150
    assert shapes["cls_token"] == (1, 1, 768)
    assert shapes["pos_embed"] == (1, 785, 768)
    assert shapes["patch_embed.proj.weight"] == (768, 3, 8, 8)
    assert shapes["blocks.11.attn.qkv.weight"] == (2304, 768)
    assert shapes["blocks.0.mlp.fc1.bias"] == (3072,)
    assert shapes["norm.weight"] == (768,)
    assert sum(parameter.numel() for parameter in vit.parameters()) == 85_807_872
    assert (vit.embed_dim, vit.depth, vit.patch_size, vit.grid_size) == (768, 12, 8, (28, 28))


def test_drop_path_rises_to_the_last_block_and_sleeps_in_eval(make_vit):
    vit = make_vit(drop_path_rate=0.5)
    assert vit.blocks[3].drop_path1.drop_prob == pytest.approx(0.5)
    images = torch.randn(4, 3, 64, 64)
    assert not torch.equal(vit(images), vit(images))
    vit.eval()
    assert torch.equal(vit(images), vit(images))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_base_patch8_224.dinoo", "near names: .*vit_base_patch8_224.dino,"),
        ("vit_bas_patch8_224", "near names: .*vit_base_patch8_224"),
        ("no such thing at all", "name must be a model that timm knows, got 'no such thing at all'"),
        ("resnet18", "plain ViT"),
        ("resnet180", r"near names: (?!.*resnet1)"),
        ("swin_tiny_patch4_window7_224", "SwinTransformer.*no blocks"),
        ("vit_base_patch16_rope_mixed_224", "rotary positions of its own in every block"),
        ("deit_tiny_distilled_patch16_224", "a way of its own"),
        ("vit_small_r26_s32_224", "HybridEmbed"),
    ],
)
def test_models_that_are_no_plain_vit_are_refused(name, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        TimmViT(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": 33}, "must fit together"),
        ({"depth": 0}, "depth must be positive or None, got 0"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate must lie in \[0, 1\), got 1.0"),
        ({"img_size": 5}, "img_size must hold at least one patch"),
    ],
)
def test_impossible_sizes_are_refused(make_vit, changes, message):
    with pytest.raises(ValueError, match=message):
        make_vit(**changes)


def test_weights_that_cannot_be_fetched_are_refused_in_one_sentence(monkeypatch):
    def unreachable(*_args, **_kwargs):
        raise FileNotFoundError("no network")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(ValueError, match=r"pretrained weights of 'vit_tiny_patch16_224' could not be fetched.*local"):
        TimmViT("vit_tiny_patch16_224", pretrained=True)


@pytest.mark.parametrize("shape", [(1, 3, 60, 64), (1, 3, 64, 0), (3, 64, 64)])
def test_pictures_that_are_not_whole_patches_are_refused(make_vit, shape):
    with pytest.raises(ValueError, match="multiples of the patch size 8, got "):
        make_vit().embed(torch.zeros(shape))


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 5)])
def test_blocks_outside_the_depth_are_refused(make_vit, start, stop):
    with pytest.raises(ValueError, match="0 <= start <= stop <= 4"):
        make_vit().run(torch.zeros(1, 5, 32), start, stop)


@pytest.mark.parametrize(("blocks", "frozen"), [(0, 0), (1, 1), (-1, None), (2, None)])
def test_frozen_blocks_neither_learn_nor_drop_paths_and_the_rest_does(make_vit, blocks, frozen):
    vit = make_vit(depth=2, drop_path_rate=0.5)
    before = {name: module.drop_prob for name, module in vit.named_modules() if hasattr(module, "drop_prob")}
    vit.freeze(blocks)
    for name, parameter in vit.named_parameters():
        learns = name.startswith(("blocks.1.", "norm.")) if frozen == 1 else frozen == 0
        assert parameter.requires_grad == learns, name
    for name, module in vit.named_modules():
        if hasattr(module, "drop_prob"):
            stays = frozen == 0 or (frozen == 1 and name.startswith("blocks.1."))
            assert module.drop_prob == (before[name] if stays else 0.0), name
    assert any(before.values())
    with pytest.raises(ValueError, match=r"blocks must lie in \[-1, 2\]"):
        vit.freeze(3)


def test_a_fixed_grid_gives_the_same_tokens_and_holds_for_its_size_alone(make_vit, scatter_weights, monkeypatch):
    vit = make_vit()
    scatter_weights(vit)
    size = vit.patch_size
    wide, tall = torch.randn(1, 3, 3 * size, 5 * size), torch.randn(1, 3, 4 * size, 2 * size)
    free = vit.embed(wide)[0]
    vit.fix_grid(3, 5)
    assert vit.grid_size == (3, 5)
    assert torch.equal(vit.embed(wide)[0], free)
    with monkeypatch.context() as patch:
        patch.setattr("s2uniseg_d2.core.trunks.vit.resample_abs_pos_embed", None)
        assert torch.equal(vit.embed(wide)[0], free)  # without resampling
    assert vit.embed(tall)[0].shape[1] == 8 + vit.num_prefix_tokens


def test_a_block_may_be_the_only_one(make_vit):
    vit = make_vit(depth=1).eval()
    assert vit.depth == 1
    assert vit(torch.zeros(1, 3, vit.patch_size, vit.patch_size)).isfinite().all()


def test_rotary_positions_leave_prefix_and_patches_in_one_sequence():
    vit = TimmViT("vit_small_patch16_dinov3.lvd1689m", embed_dim=32, depth=1, num_heads=2).eval()
    tokens, grid = vit.embed(torch.zeros(2, 3, 2 * vit.patch_size, 3 * vit.patch_size))
    assert grid == (2, 3)
    assert tokens.shape == (2, vit.num_prefix_tokens + 6, 32)
