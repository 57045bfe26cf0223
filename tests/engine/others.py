"""Other people's projects: Detectron2 models with our encoder, small, and what their processes do."""

from __future__ import annotations

from pathlib import Path

from detectron2.config import get_cfg

from s2uniseg_d2.config import read_yaml
from s2uniseg_d2.engine.transfer import add_transfer_config
from tests.tiny import OVERRIDES

TRANSFER_CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "transfer"
NAMES = ("mask_rcnn", "cascade_mask_rcnn", "panoptic_fpn", "semantic_fpn")
_SMALL = {key: value for key, value in OVERRIDES.items() if ".VIT" in key} | {
    "MODEL.DEVICE": "cpu",
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 16,
    "MODEL.SEM_SEG_HEAD.NORM": "BN",
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "SOLVER.AMP.ENABLED": False,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 2,
    "SOLVER.STEPS": (),
    "DATALOADER.NUM_WORKERS": 0,
    "DATASETS.TEST": (),
    "SEED": 1,
}


def transfer_words(**more):
    settings = {**_SMALL, **{name.replace("__", "."): value for name, value in more.items()}}
    return [str(word) for pair in settings.items() for word in pair]


def transfer_config(name="mask_rcnn", **more):
    cfg = get_cfg()
    add_transfer_config(cfg)
    cfg.merge_from_other_cfg(type(cfg)(read_yaml(TRANSFER_CONFIGS / f"{name}_vit_adapter.yaml")))
    cfg.merge_from_list(transfer_words(**more))
    return cfg


def write_defaults(path: str) -> None:
    cfg = get_cfg()
    Path(path).write_text(f"{cfg.MODEL.VIT.NAME} {cfg.MODEL.META_ARCHITECTURE} {cfg.INPUT.FORMAT}")
