"""What the values of the configuration must be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode


def _positive(value: Any) -> bool:
    return value > 0


def _not_negative(value: Any) -> bool:
    return value >= 0


def _fraction(value: Any) -> bool:
    return 0 <= value <= 1


def _multiple_of_32(value: Any) -> bool:
    return value > 0 and value % 32 == 0


def _one_of(*names: Any) -> Callable[[Any], bool]:
    return lambda value: value in names


_MAPS = ["res2", "res3", "res4", "res5"]
_KINDS = [{"instance"}, {"semantic"}, {"instance", "semantic"}]

# (keys, rule in words, test). What a class of the core checks itself (UniAP's thresholds, say) is not repeated here.
_RULES: list[tuple[tuple[str, ...], str, Callable[[Any], bool]]] = [
    (("SOLVER.IMS_PER_BATCH", "SOLVER.MAX_ITER", "SOLVER.CHECKPOINT_PERIOD"), "must be at least 1", _positive),
    (("SOLVER.ACCUMULATION_STEPS",), "must be at least 1", _positive),
    (("SOLVER.BASE_LR", "SOLVER.VIT_LR_FACTOR"), "must be positive", _positive),
    (("SOLVER.VIT_LAYER_DECAY",), "must lie in (0, 1]", lambda value: 0 < value <= 1),
    (("SOLVER.FULL_MODEL_CLIP_NORM", "SOLVER.WEIGHT_DECAY", "VIS_PERIOD"), "must not be negative", _not_negative),
    (("SOLVER.KEEP_CHECKPOINTS", "DATALOADER.TIMEOUT_S"), "must not be negative", _not_negative),
    (("PROCESSES.TIMEOUT_S",), "must be positive", _positive),
    (("MODEL.TEACHER.MOMENTUM", "MODEL.TEACHER.MOMENTUM_END"), "must lie in [0, 1]", _fraction),
    (("MODEL.QUERY_SD.CENTER_MOMENTUM", "MODEL.LOSS.IMPORTANCE_RATIO"), "must lie in [0, 1]", _fraction),
    (("MODEL.LOSS.NO_OBJECT_WEIGHT",), "must lie in (0, 1]", lambda value: 0 < value <= 1),
    (("MODEL.LOSS.OVERSAMPLE_RATIO",), "must be at least 1", lambda value: value >= 1),
    (("MODEL.TEACHER.PICTURES_AT_ONCE",), "must not be negative", _not_negative),
    (("MODEL.LOSS.NUM_POINTS", "TEST.PICTURES", "SOLVER.BASE_LR_END"), "must not be negative", _not_negative),
    (("TEST.DETECTIONS_PER_IMAGE",), "must be at least 1", _positive),
    (("MODEL.META_ARCHITECTURE",), "must be S2UniSeg", _one_of("S2UniSeg")),
    (("MODEL.BACKBONE.NAME",), "must be ViTAdapterBackbone", _one_of("ViTAdapterBackbone")),
    (("MODEL.SEM_SEG_HEAD.NAME",), "must be QueryGroupHead", _one_of("QueryGroupHead")),
    (("MODEL.VIT_ADAPTER.NORM",), "must be BN, SyncBN or GN", _one_of("BN", "SyncBN", "GN")),
    (("MODEL.SEM_SEG_HEAD.IN_FEATURES",), "must be the four maps res2 to res5", lambda value: list(value) == _MAPS),
    (("TEST.PRECISE_BN.ENABLED",), "is not supported", _one_of(False)),
    (("SOLVER.CLIP_GRADIENTS.ENABLED",), "is not supported; SOLVER.FULL_MODEL_CLIP_NORM is", _one_of(False)),
    (("MODEL.INFERENCE.OBJECT_THRESHOLD", "MODEL.INFERENCE.OVERLAP_THRESHOLD"), "must lie in [0, 1]", _fraction),
    (("MODEL.INFERENCE.DUPLICATE_IOU",), "must lie in [0, 1]", _fraction),
    (("INPUT.VIEWS.FLIP_PROB", "MODEL.VIT.DROP_PATH", "TEST.MATCH_SCORE"), "must lie in [0, 1]", _fraction),
    (("TEST.MATCH_IOU", "TEST.THING_IOU", "TEST.STUFF_IOU"), "must lie in [0, 1)", lambda value: 0 <= value < 1),
    (("TEST.CASES", "TEST.SHORT_SIDE_PX", "EVALUATION.PART_PICTURES"), "must not be negative", _not_negative),
    (("TEST.BACKEND",), "must be pycocotools or faster_coco_eval", _one_of("pycocotools", "faster_coco_eval")),
    (("TEST.MATCH_BY",), "must be segm or bbox", _one_of("segm", "bbox")),
    (("TEST.SEMANTIC_VOTE", "TEST.PANOPTIC_VOTE"), "must be pixels or masks", _one_of("pixels", "masks")),
    (("MODEL.LOSS.QUERY_SD_WEIGHT", "MODEL.LOSS.MASK_WEIGHT"), "must not be negative", _not_negative),
    (("MODEL.LOSS.DICE_WEIGHT", "MODEL.LOSS.OBJECTNESS_WEIGHT"), "must not be negative", _not_negative),
    (("MODEL.QUERY_SD.STUDENT_TEMP", "MODEL.QUERY_SD.TEACHER_TEMP"), "must be positive", _positive),
    (("MODEL.QUERY_SD.TEACHER_TEMP_START",), "must be positive", _positive),
    (("MODEL.QUERY_SD.TEACHER_TEMP_WARMUP_ITERS", "SOLVER.WARMUP_ITERS"), "must not be negative", _not_negative),
    (("MODEL.QUERY_SD.FREEZE_LAST_LAYER_ITERS",), "must not be negative", _not_negative),
    (("MODEL.QUERY_SD.NUM_PROTOTYPES", "INPUT.VIEWS.NUM"), "must be at least 1", _positive),
    (("INPUT.GLOBAL_LONGEST_PX", "INPUT.TEST_LONGEST_PX"), "must be a positive multiple of 32", _multiple_of_32),
    (("INPUT.VIEWS.SIZE_PX",), "must be a positive multiple of 32", _multiple_of_32),
    (("MODEL.LOSS.MIN_CELLS",), "must be at least 1", _positive),
    (("MODEL.LOSS.KINDS",), "must be instance, semantic or both", lambda value: {*value} in _KINDS),
    (("SOLVER.AMP.DTYPE",), "must be float16 or bfloat16", _one_of("float16", "bfloat16")),
    (("INPUT.FORMAT",), "must be RGB", _one_of("RGB")),
    (("MODEL.UNIAP.FEATURE_STRIDE",), "must be 4 or 16", _one_of(4, 16)),
    (("MODEL.VIT.WEIGHTS_BRANCH",), "must be teacher or student", _one_of("teacher", "student")),
    (("MODEL.INFERENCE.PREDICTOR",), "must be decoder or uniap", _one_of("decoder", "uniap")),
]


def _holds(rule: Callable[[Any], bool], value: Any) -> bool:
    try:
        return bool(rule(value))
    except (TypeError, ValueError):  # None, say, which the config takes for any type
        return False


def _is_pair_of_numbers(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(part, (int, float)) for part in value)
    )


def validate_config(cfg: CfgNode) -> None:
    """Check the ranges of our keys before any work is done.

    Raises:
        ValueError: naming the key, the rule and the value.
    """
    for keys, rule, holds in _RULES:
        for key in keys:
            value: Any = cfg
            for part in key.split("."):
                value = value[part]
            if not _holds(holds, value):
                raise ValueError(f"{key} {rule}, got {value!r}")
    if cfg.SOLVER.BASE_LR_END > cfg.SOLVER.BASE_LR:
        raise ValueError(f"SOLVER.BASE_LR_END must not be above SOLVER.BASE_LR, got {cfg.SOLVER.BASE_LR_END}")
    low, high = cfg.INPUT.VIEWS.SCALE if _is_pair_of_numbers(cfg.INPUT.VIEWS.SCALE) else (0, 0)
    if not 0 < low <= high <= 1:
        raise ValueError(
            f"INPUT.VIEWS.SCALE must be (low, high) with 0 < low <= high <= 1, got {cfg.INPUT.VIEWS.SCALE}"
        )
    tasks = ("agnostic", "instance", "semantic", "panoptic")
    if unknown := [task for task in cfg.TEST.TASKS if task not in tasks]:
        raise ValueError(f"TEST.TASKS must be among {tasks}, got {unknown}")
    if not 0 <= cfg.TEST.CENTER_CROP_PX <= cfg.TEST.SHORT_SIDE_PX:
        raise ValueError(
            f"TEST.CENTER_CROP_PX must lie in [0, TEST.SHORT_SIDE_PX = {cfg.TEST.SHORT_SIDE_PX}], "
            f"got {cfg.TEST.CENTER_CROP_PX}"
        )
    if (cfg.TEST.FLIP or cfg.TEST.CRF) and cfg.MODEL.INFERENCE.PREDICTOR != "decoder":
        raise ValueError("TEST.FLIP and TEST.CRF need MODEL.INFERENCE.PREDICTOR decoder: UniAP's labels have no scores")
