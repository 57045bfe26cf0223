from __future__ import annotations

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone

import s2uniseg_d2.modeling  # noqa: F401  (registers)
from s2uniseg_d2.config import add_s2uniseg_config
from tests.tiny import OVERRIDES, tiny_config


def test_another_detectron2_project_takes_the_backbone_by_name():
    cfg = get_cfg()
    add_s2uniseg_config(cfg)
    cfg.merge_from_list([word for key, value in OVERRIDES.items() if "VIT" in key for word in (key, value)])
    backbone = build_backbone(cfg).eval()
    maps = backbone(torch.randn(1, 3, 64, 96))
    shapes = backbone.output_shape()
    assert list(maps) == list(shapes) == ["res2", "res3", "res4", "res5"]
    for name, value in maps.items():
        stride = shapes[name].stride
        assert tuple(value.shape) == (1, shapes[name].channels, 64 // stride, 96 // stride)
    assert backbone.size_divisibility == 32


def test_the_vit_weights_of_a_file_are_loaded(tmp_path):
    torch.manual_seed(0)
    source = build_backbone(tiny_config())
    torch.save(source.trunk.vit.state_dict(), tmp_path / "dino.pth")
    torch.manual_seed(1)
    loaded = build_backbone(tiny_config(MODEL__VIT__WEIGHTS=tmp_path / "dino.pth"))
    for name, value in source.trunk.vit.state_dict().items():
        assert torch.equal(value, loaded.trunk.vit.state_dict()[name]), name
    assert not torch.equal(source.trunk.level_embed, loaded.trunk.level_embed)


def test_sync_batch_norm_becomes_batch_norm_on_the_cpu():
    backbone = build_backbone(tiny_config(MODEL__VIT_ADAPTER__NORM="SyncBN"))
    assert type(backbone.trunk.norm1).__name__ == "BatchNorm2d"
