"""Checkpoints with the published names and shapes, made here, start the adapter and the decoder."""

from __future__ import annotations

import logging
import pickle

import pytest
import torch
from detectron2.modeling import build_backbone, build_model, build_sem_seg_head

from s2uniseg_d2.core.trunks.vit import TimmViT
from s2uniseg_d2.core.trunks.vit_adapter import ViTAdapter
from s2uniseg_d2.modeling.official_weights import load_adapter_weights, load_decoder_weights
from tests.core.trunks.test_vit_adapter_names import published_adapter_names
from tests.tiny import tiny_config

PICTURES = torch.linspace(-2, 2, 3 * 64 * 96).sin().view(1, 3, 64, 96)
SIZES = {"patch_size": 16, "embed_dim": 48, "depth": 4, "num_heads": 4, "img_size": 64}


def scatter(module):
    with torch.no_grad():
        for value in module.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return module


def make_adapter(name="vit_tiny_patch16_224", norm=torch.nn.BatchNorm2d, **changes):
    sizes = {**SIZES, **changes}
    return ViTAdapter(TimmViT(name, **sizes), conv_inplane=8, deform_heads=4, norm_layer=norm, apply_vit_norm=False)


def published_adapter(adapter):
    """A released file: ``state_dict`` below ``backbone.``, layer scales gamma1 and gamma2, no CLS token, no norm."""
    state = {}
    for name, value in adapter.state_dict().items():
        name = name.removeprefix("vit.").replace("ls1.gamma", "gamma1").replace("ls2.gamma", "gamma2")
        if name not in ("cls_token", "norm.weight", "norm.bias"):
            state[f"backbone.{name}"] = value
    return {"meta": {"epoch": 3}, "state_dict": {**state, "decode_head.conv_seg.weight": torch.zeros(2)}}


@pytest.fixture
def source():
    """With layer scales, as the published ViT has them; four groups and two extra extractors."""
    torch.manual_seed(0)
    return scatter(make_adapter("vit_small_patch14_dinov2")).eval()


def with_prefix_of(adapter, source):
    """The CLS token is not in a released file; equal maps need an equal one."""
    with torch.no_grad():
        adapter.vit.cls_token.copy_(source.vit.cls_token)
    return adapter.eval()


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_dinov2"])
def test_a_published_adapter_gives_equal_maps_with_and_without_layer_scale(source, tmp_path, name):
    content = published_adapter(source)
    names = {key.removeprefix("backbone.") for key in content["state_dict"]}
    assert published_adapter_names() <= names
    assert {"pos_embed", "blocks.3.gamma2", "blocks.0.attn.qkv.weight", "patch_embed.proj.bias"} <= names
    torch.save(content, tmp_path / "adapter.pth")
    torch.manual_seed(1)
    target = make_adapter(name)
    report = load_adapter_weights(target, tmp_path / "adapter.pth")
    assert report.weights.missing == ("vit.cls_token", "vit.norm.weight", "vit.norm.bias")
    assert (report.weights.unexpected, report.weights.mismatched) == ((), ())
    folded = "8 layer scales multiplied into the layers before them"
    assert (folded in report.notes) == (name == "vit_tiny_patch16_224")
    assert any("runs without a CLS token" in note for note in report.notes)
    with torch.no_grad():
        for got, expected in zip(with_prefix_of(target, source)(PICTURES), source(PICTURES), strict=True):
            torch.testing.assert_close(got, expected, atol=2e-4, rtol=1e-4)


def test_a_final_norm_that_the_file_lacks_is_named(source, tmp_path):
    torch.save(published_adapter(source), tmp_path / "adapter.pth")
    target = make_adapter()
    target.apply_vit_norm = True
    notes = load_adapter_weights(target, tmp_path / "adapter.pth").notes
    assert any("MODEL.VIT_ADAPTER.APPLY_VIT_NORM False" in note for note in notes)


def test_what_is_not_equivalent_is_left_alone_and_named(source, tmp_path):
    torch.save(published_adapter(source), tmp_path / "adapter.pth")
    target = make_adapter(norm=lambda width: torch.nn.GroupNorm(4, width), patch_size=8)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    report = load_adapter_weights(target, tmp_path / "adapter.pth")
    # a patch of 16 pixels is none of 8; the scale of a batch norm is none of a group norm
    assert report.weights.mismatched == ("vit.patch_embed.proj.weight",)
    assert report.weights.resampled == ("vit.pos_embed",)
    assert "norm1.weight (of another norm)" in report.weights.unexpected
    assert any("10 norms are of another kind" in note for note in report.notes)
    for name in ("vit.patch_embed.proj.weight", "norm1.weight", "spm.stem.1.bias"):
        assert torch.equal(target.state_dict()[name], before[name]), name
    assert not torch.equal(target.state_dict()["up.weight"], before["up.weight"])


def test_the_config_key_takes_an_encoder_of_ours(tmp_path, caplog):
    torch.manual_seed(0)
    model = scatter(build_model(tiny_config()))
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    words = {"MODEL__VIT_ADAPTER__WEIGHTS": tmp_path / "model.pth"}
    with caplog.at_level(logging.INFO, logger="s2uniseg_d2"):
        teacher, student = (
            build_backbone(tiny_config(MODEL__VIT__WEIGHTS_BRANCH=b, **words)) for b in ("teacher", "student")
        )
    for got, expected in ((teacher, model.teacher_backbone), (student, model.backbone)):
        for name, value in expected.state_dict().items():
            assert torch.equal(got.state_dict()[name], value), name
    count = len(teacher.state_dict())
    assert f"loaded {count} of the ViT-Adapter's {count} tensors; missing in the file: none" in caplog.text


def published_decoder_names(layers, encoder_layers):
    """Mask2Former's parameters, without their prefix."""
    kinds = ("weight", "bias")
    pixel = {f"input_proj.{i}.{j}.{kind}" for i in range(3) for j in (0, 1) for kind in kinds}
    pixel |= {"transformer.level_embed", "mask_features.weight", "mask_features.bias"}
    pixel |= {f"{part}.{leaf}" for part in ("adapter_1", "layer_1") for leaf in ("weight", "norm.weight", "norm.bias")}
    attention = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    parts = [f"self_attn.{layer}" for layer in attention] + ["norm1", "linear1", "linear2", "norm2"]
    encoder = "transformer.encoder.layers"
    pixel |= {f"{encoder}.{i}.{part}.{kind}" for i in range(encoder_layers) for part in parts for kind in kinds}
    names = {f"pixel_decoder.{name}" for name in pixel}
    for i in range(layers):
        for part, inner in (("self", "self_attn"), ("cross", "multihead_attn")):
            stem = f"predictor.transformer_{part}_attention_layers.{i}"
            names |= {f"{stem}.{inner}.in_proj_{kind}" for kind in kinds}
            names |= {f"{stem}.{layer}.{kind}" for layer in (f"{inner}.out_proj", "norm") for kind in kinds}
        ffn = f"predictor.transformer_ffn_layers.{i}"
        names |= {f"{ffn}.{part}.{kind}" for part in ("linear1", "linear2", "norm") for kind in kinds}
    names |= {f"predictor.{part}.weight" for part in ("query_feat", "query_embed", "level_embed")}
    names |= {f"predictor.{part}.{kind}" for part in ("decoder_norm", "class_embed") for kind in kinds}
    return names | {f"predictor.mask_embed.layers.{i}.{kind}" for i in range(3) for kind in kinds}


def make_head(**more):
    cfg = tiny_config(**more)
    return build_sem_seg_head(cfg, build_backbone(cfg).output_shape())


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    head = scatter(make_head()).eval()
    with torch.no_grad():
        head.predictor.query_type.weight.zero_()
    return head


def published_decoder(head, classes=80, old_names=False):
    """A released file: a backbone of its own, K classes and no object, no type tokens."""
    state = {name: value for name, value in head.state_dict().items() if name != "predictor.query_type.weight"}
    assert set(state) == published_decoder_names(layers=2, encoder_layers=1)
    state["predictor.class_embed.weight"] = torch.randn(classes + 1, 32)
    state["predictor.class_embed.bias"] = torch.randn(classes + 1)
    if old_names:
        state = {
            name.removeprefix("pixel_decoder.").replace("query_feat", "static_query"): v for name, v in state.items()
        }
    state = {f"sem_seg_head.{name}": value for name, value in state.items()}
    return {**state, "criterion.empty_weight": torch.ones(81), "backbone.res2.0.conv1.weight": torch.zeros(4, 4, 1, 1)}


@pytest.mark.parametrize("layout", ["pkl", "pth", "old names"])
def test_a_published_decoder_gives_equal_masks(decoder, tmp_path, layout, caplog):
    state = published_decoder(decoder, old_names=layout == "old names")
    path = tmp_path / ("model.pkl" if layout == "pkl" else "model.pth")
    if layout == "pkl":
        arrays = {name: value.detach().numpy() for name, value in state.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "third_party", "matching_heuristics": True}))
    else:
        torch.save({"model": state}, path)
    torch.manual_seed(1)
    with caplog.at_level(logging.INFO, logger="s2uniseg_d2"):
        head = make_head(MODEL__QUERY_HEAD__WEIGHTS=path).eval()
    assert "of another shape: predictor.class_embed.weight, predictor.class_embed.bias" in caplog.text
    assert "missing in the file: predictor.query_type.weight" in caplog.text
    assert "ours are zero now" in caplog.text
    features = {f"res{i}": torch.randn(1, 48, 64 >> i, 96 >> i) for i in (2, 3, 4, 5)}
    with torch.no_grad():
        for got, expected in zip(head(features), decoder(features), strict=True):
            assert torch.equal(got.masks, expected.masks)
            assert not torch.equal(got.objectness, expected.objectness)


def test_other_numbers_of_queries_and_widths_are_left_alone(decoder, tmp_path):
    torch.save(published_decoder(decoder), tmp_path / "model.pth")
    head = make_head(MODEL__QUERY_HEAD__INS_QUERIES=9)
    types = head.predictor.query_type.weight.clone()
    report = load_decoder_weights(head, tmp_path / "model.pth")
    assert {"predictor.query_feat.weight", "predictor.query_embed.weight"} <= set(report.weights.mismatched)
    assert torch.equal(head.predictor.query_type.weight, types)
    with pytest.raises(ValueError, match=r"model\.pth' does not fit 'the decoder': .* numbers would be loaded"):
        load_decoder_weights(make_head(MODEL__QUERY_HEAD__HIDDEN_DIM=64), tmp_path / "model.pth")


def test_files_without_the_part_are_refused(tmp_path, decoder):
    torch.save({"model": {"conv.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"must hold one ViT-Adapter \(spm\.stem\.0\.weight\), got 0"):
        load_adapter_weights(make_adapter(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"must hold a decoder \(sem_seg_head\.\*\), got conv\.weight"):
        load_decoder_weights(decoder, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="path must name a checkpoint file"):
        load_decoder_weights(decoder, tmp_path / "absent.pth")
    (tmp_path / "bad.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match=r"os\.system: refused"):
        load_decoder_weights(decoder, tmp_path / "bad.pkl")
