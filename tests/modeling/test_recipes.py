from __future__ import annotations

from functools import reduce
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

import s2uniseg_d2.modeling  # noqa: F401  (registers)
from s2uniseg_d2.config import known_keys, load_config, read_yaml

FOLDER = Path(__file__).resolve().parents[2] / "configs"
CONFIGS = [path for path in sorted(FOLDER.rglob("*.yaml")) if path.parent.name != "transfer"]
ABLATIONS = sorted((FOLDER / "ablations").glob("*.yaml"))
# Table 3 of the paper by its columns
TABLE_3 = {
    "MODEL.UNIAP.OMEGA_S": {0.6, 0.5, 0.4, 0.0},
    "MODEL.UNIAP.OMEGA_F": {0.4, 0.5, 0.6, 1.0},
    "MODEL.UNIAP.TAUS": {
        (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1),
        (0.5, 0.4, 0.3, 0.2, 0.1),
        (0.8, 0.7, 0.6, 0.5, 0.4),
    },
    "INPUT.VIEWS.NUM": {2, 4, 6},
    "MODEL.QUERY_SD.NUM_PROTOTYPES": {128, 512, 1024},
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_recipe_builds(path):
    # the named weights need a network; everything else is the recipe's own. Without storage it takes no time.
    cfg = load_config(path, ["MODEL.VIT.WEIGHTS", "", "MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        model = build_model(cfg)
    slices = model.sem_seg_head.slices
    assert slices["ins"].stop - slices["ins"].start == cfg.MODEL.QUERY_HEAD.INS_QUERIES
    assert slices["sem"].stop - slices["sem"].start == cfg.MODEL.QUERY_HEAD.SEM_QUERIES
    assert model.center.center.shape[1] == cfg.MODEL.QUERY_SD.NUM_PROTOTYPES
    assert model.labeler.config.taus == tuple(cfg.MODEL.UNIAP.TAUS)
    assert len(CONFIGS) >= 25


def test_each_row_of_table_3_has_a_recipe_that_changes_nothing_else():
    base_file = FOLDER / "s2uniseg_in1k.yaml"
    base = load_config(base_file)
    inherited = set(known_keys(CfgNode(read_yaml(base_file))))
    seen = {key: set() for key in TABLE_3}
    for path in ABLATIONS:
        cfg = load_config(path)
        assert f"output/ablations/{path.stem}" == cfg.OUTPUT_DIR
        cfg.OUTPUT_DIR = base.OUTPUT_DIR
        own = set(known_keys(CfgNode(read_yaml(path)))) - inherited
        assert own in ({"MODEL.UNIAP.OMEGA_S", "MODEL.UNIAP.OMEGA_F"}, *({key} for key in list(TABLE_3)[2:]))
        for key in own:
            *nodes, leaf = key.split(".")
            node, base_node = (reduce(getattr, nodes, config) for config in (cfg, base))
            seen[key].add(node[leaf])
            node[leaf] = base_node[leaf]
        assert cfg == base
    assert seen == TABLE_3
    assert len(ABLATIONS) == 4 + 3 + 3 + 3


def test_the_recipe_for_one_small_gpu_has_the_same_batch_in_parts():
    small, base = (load_config(FOLDER / name) for name in ("s2uniseg_in1k_24gb.yaml", "s2uniseg_in1k.yaml"))
    parts = small.SOLVER.IMS_PER_BATCH // small.SOLVER.ACCUMULATION_STEPS
    assert parts == small.MODEL.TEACHER.PICTURES_AT_ONCE == 4
    assert small.MODEL.RECOMPUTE
    small.SOLVER.ACCUMULATION_STEPS, small.MODEL.RECOMPUTE, small.MODEL.TEACHER.PICTURES_AT_ONCE = 1, False, 0
    small.OUTPUT_DIR = base.OUTPUT_DIR
    assert small == base
