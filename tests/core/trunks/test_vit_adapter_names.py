"""Names, shapes and counts of the adapter's published parameters."""

from __future__ import annotations

import pytest
import torch

from s2uniseg_d2.core.trunks.vit import TimmViT
from s2uniseg_d2.core.trunks.vit_adapter import ViTAdapter

KINDS = ("weight", "bias")
NORM_KINDS = (*KINDS, "running_mean", "running_var", "num_batches_tracked")


def attention_names(prefix: str) -> set[str]:
    layers = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    return {f"{prefix}.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


def extractor_names(prefix: str) -> set[str]:
    layers = ("query_norm", "feat_norm", "ffn_norm", "ffn.fc1", "ffn.dwconv.dwconv", "ffn.fc2")
    return attention_names(f"{prefix}.attn") | {f"{prefix}.{layer}.{kind}" for layer in layers for kind in KINDS}


def published_adapter_names() -> set[str]:
    names = {"level_embed", "up.weight", "up.bias"}
    names |= {f"spm.stem.{index}.weight" for index in (0, 3, 6)}
    names |= {f"spm.stem.{index}.{kind}" for index in (1, 4, 7) for kind in NORM_KINDS}
    names |= {f"spm.conv{index}.0.weight" for index in (2, 3, 4)}
    names |= {f"spm.conv{index}.1.{kind}" for index in (2, 3, 4) for kind in NORM_KINDS}
    names |= {f"spm.fc{index}.{kind}" for index in (1, 2, 3, 4) for kind in KINDS}
    names |= {f"norm{index}.{kind}" for index in (1, 2, 3, 4) for kind in NORM_KINDS}
    for index in range(4):
        names |= extractor_names(f"interactions.{index}.extractor")
        injector = f"interactions.{index}.injector"
        names |= {f"{injector}.gamma", *attention_names(f"{injector}.attn")}
        names |= {f"{injector}.{norm}.{kind}" for norm in ("query_norm", "feat_norm") for kind in KINDS}
    for index in range(2):
        names |= extractor_names(f"interactions.3.extra_extractors.{index}")
    return names


@pytest.fixture(scope="module")
def base8() -> ViTAdapter:
    with torch.device("meta"):
        return ViTAdapter(TimmViT("vit_base_patch8_224.dino"))


def test_names_are_the_published_ones_with_the_vit_below_its_own_prefix(base8):
    names = set(base8.state_dict())
    assert {name for name in names if not name.startswith("vit.")} == published_adapter_names()
    assert {name.removeprefix("vit.") for name in names if name.startswith("vit.")} == set(base8.vit.state_dict())


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("level_embed", (3, 768)),
        ("interactions.0.injector.gamma", (768,)),
        ("interactions.0.injector.attn.sampling_offsets.weight", (288, 768)),
        ("interactions.1.injector.attn.attention_weights.weight", (144, 768)),
        ("interactions.2.injector.attn.value_proj.weight", (384, 768)),
        ("interactions.3.injector.attn.output_proj.weight", (768, 384)),
        ("interactions.0.extractor.attn.sampling_offsets.weight", (96, 768)),
        ("interactions.3.extra_extractors.1.attn.attention_weights.weight", (48, 768)),
        ("interactions.0.extractor.ffn.fc1.weight", (192, 768)),
        ("interactions.0.extractor.ffn.dwconv.dwconv.weight", (192, 1, 3, 3)),
        ("spm.stem.0.weight", (64, 3, 3, 3)),
        ("spm.conv4.0.weight", (256, 256, 3, 3)),
        ("spm.fc2.weight", (768, 128, 1, 1)),
        ("up.weight", (768, 768, 2, 2)),
        ("norm4.running_var", (768,)),
        ("vit.pos_embed", (1, 785, 768)),
        ("vit.blocks.11.mlp.fc2.weight", (768, 3072)),
    ],
)
def test_shapes_are_the_published_ones(base8, name, shape):
    assert tuple(base8.state_dict()[name].shape) == shape


def test_parameter_counts_are_the_published_ones(base8):
    total = sum(parameter.numel() for parameter in base8.parameters())
    vit = sum(parameter.numel() for parameter in base8.vit.parameters())
    assert total - vit == 13_680_608
    layer_scale, cls_token, final_norm = 12 * 2 * 768, 768, 2 * 768
    positions, patches = (785 - 197) * 768, (8 * 8 - 16 * 16) * 3 * 768
    # the published model is a /16 one with layer scale, without CLS token and final norm
    assert total == 99_495_392 - layer_scale + cls_token + final_norm + positions + patches


def test_default_groups_are_four_equal_ones(base8):
    assert base8.groups == ((0, 3), (3, 6), (6, 9), (9, 12))
