from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.modeling import build_model

import s2uniseg_d2.modeling  # noqa: F401  (registers)
from s2uniseg_d2.config import load_config

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_recipe_builds(path):
    # the named weights need a network; everything else is the recipe's own
    cfg = load_config(path, ["MODEL.VIT.WEIGHTS", "", "MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    slices = model.sem_seg_head.slices
    assert slices["ins"].stop - slices["ins"].start == cfg.MODEL.QUERY_HEAD.INS_QUERIES
    assert slices["sem"].stop - slices["sem"].start == cfg.MODEL.QUERY_HEAD.SEM_QUERIES
    assert model.center.center.shape[1] == cfg.MODEL.QUERY_SD.NUM_PROTOTYPES
    assert model.labeler.config.taus == tuple(cfg.MODEL.UNIAP.TAUS)
    assert len(CONFIGS) >= 5
