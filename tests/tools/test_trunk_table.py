"""Each family of ViTs, small: tokens as timm gives them, four maps, and an adapter that changes nothing at first."""

from __future__ import annotations

import pytest
import timm
import torch

from s2uniseg_d2.core.trunks.vit import TimmViT
from s2uniseg_d2.core.trunks.vit_adapter import ViTAdapter
from s2uniseg_d2.core.trunks.weights import load_trunk_weights
from tools.trunk_table import (
    END,
    NAMES,
    PICTURE_PX,
    REFUSED,
    START,
    check_trunk,
    compare,
    main,
    put_into,
    refusal_of,
    scatter,
)

SMALL = {"embed_dim": 48, "depth": 4, "num_heads": 4}
FAMILIES = [
    "vit_base_patch8_224.dino",
    "vit_small_patch14_dinov2.lvd142m",
    "vit_small_patch14_reg4_dinov2.lvd142m",
    "vit_small_patch16_dinov3.lvd1689m",
    "vit_small_plus_patch16_dinov3.lvd1689m",
    "vit_base_patch16_224.mae",
    "vit_base_patch16_clip_224.openai",
    "vit_base_patch16_clip_quickgelu_224.openai",
    "vit_base_patch32_clip_224.openai",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_works_as_the_trunk(name):
    assert name in NAMES
    skip_unless_known(name)
    trunk = check_trunk(name, spread=0.2, **SMALL)
    assert (trunk.width, trunk.depth) == (48, 4)
    assert trunk.prefix == (5 if "reg4" in name or "dinov3" in name else 1)
    assert ("rotary" in trunk.positions) == ("dinov3" in name)


def skip_unless_known(name):
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} does not know {name}")


def build(name):
    skip_unless_known(name)
    torch.manual_seed(0)
    vit = TimmViT(name, **SMALL).eval()
    scatter(vit, 0.2)
    plain = timm.create_model(name, num_classes=0, dynamic_img_size=True, **SMALL).eval()
    plain.load_state_dict(vit.state_dict())
    return ViTAdapter(vit, conv_inplane=8, deform_heads=4).eval(), plain


def test_the_check_sees_an_adapter_that_is_not_zero_and_tokens_that_differ():
    adapter, plain = build("vit_small_patch14_dinov2.lvd142m")
    compare(adapter, plain)
    with torch.no_grad():
        adapter.up.bias[3] = 0.01
    with pytest.raises(
        ValueError, match=r"stride-4 map of vit_small.* must be timm's within 0\.0001, got a difference"
    ):
        compare(adapter, plain)
    adapter, plain = build("vit_small_patch16_dinov3.lvd1689m")
    adapter.vit.rope.periods.mul_(1.1)
    with pytest.raises(ValueError, match=r"tokens of vit_small_patch16_dinov3.lvd1689m must be timm's"):
        compare(adapter, plain)


def test_rotary_positions_need_the_grid_of_the_tokens():
    vit = build("vit_small_patch16_dinov3.lvd1689m")[0].vit
    tokens, grid = vit.embed(torch.randn(1, 3, 64, 96))
    assert grid == (4, 6)
    for wrong in (None, (6, 6)):
        with pytest.raises(ValueError, match="grid must hold the 24 patches of tokens, got"):
            vit.run(tokens, 0, 2, wrong)
    # the same number of cells in another form is another picture
    assert not torch.allclose(vit.run(tokens, 0, 4, (6, 4)), vit.run(tokens, 0, 4, grid), atol=1e-3)


def test_gradients_reach_a_vit_with_rotary_positions_registers_and_layer_scale():
    skip_unless_known("vit_small_patch16_dinov3")
    vit = TimmViT("vit_small_patch16_dinov3", **SMALL, recomputes=True)
    adapter = ViTAdapter(vit, conv_inplane=8, deform_heads=4)
    loss = sum(value.square().mean() for value in adapter(torch.randn(2, 3, 64, 96)))
    loss.backward()
    for name in ("reg_token", "cls_token", "blocks.0.gamma_1", "blocks.3.attn.qkv.weight"):
        assert vit.get_parameter(name).grad.abs().sum() > 0, name


def test_weights_of_a_file_reach_a_vit_without_learned_positions(tmp_path):
    source = build("vit_small_patch16_dinov3.lvd1689m")[0].vit
    torch.save({**source.state_dict(), "pos_embed": torch.zeros(1, 5, 48)}, tmp_path / "dinov3.pth")
    vit = TimmViT("vit_small_patch16_dinov3.lvd1689m", **SMALL)
    report = load_trunk_weights(vit, tmp_path / "dinov3.pth")
    assert (report.missing, report.unexpected, report.mismatched) == ((), ("pos_embed",), ())
    assert torch.equal(vit(torch.ones(1, 3, *PICTURE_PX)), source(torch.ones(1, 3, *PICTURE_PX)))


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_with_a_reason(name):
    skip_unless_known(name)
    reason = refusal_of(name)
    assert reason.startswith(f"name must be a plain ViT of timm, got '{name}'")
    with pytest.raises(ValueError, match=r"vit_base_patch8_224\.dino must not fit"):
        refusal_of("vit_base_patch8_224.dino")


def test_the_table_takes_the_place_of_the_old_one(tmp_path, capsys):
    path = tmp_path / "trunks.md"
    path.write_text(f"above\n{START}\nold\n{END}\nbelow\n")
    put_into(path, ["| new |"])
    assert path.read_text() == f"above\n{START}\n\n| new |\n\n{END}\nbelow\n"
    path.write_text("no marks")
    with pytest.raises(ValueError, match="must hold the lines"):
        put_into(path, [])
    assert main(["swin_tiny_patch4_window7_224"]) == 1
    assert "which has no blocks" in capsys.readouterr().err


def test_the_document_lists_every_name_that_the_tool_checks(repository):
    text = (repository / "docs" / "trunks.md").read_text()
    missing = [name for name in (*NAMES, *REFUSED) if f"| `{name}` |" not in text]
    assert not missing
