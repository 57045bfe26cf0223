"""Every configuration key of S2-UniSeg on top of Detectron2's own, with its unit, its range and the paper's symbol.

Where the paper is silent, the value is ours and the comment says so.
"""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg

from .config_rules import validate_config

logger = logging.getLogger(__name__)


def add_s2uniseg_config(cfg: CfgNode) -> None:
    """Add the keys of S2-UniSeg to a Detectron2 config, in place, and set the paper's values."""
    _add_trunk(cfg)
    _add_labels(cfg)
    _add_head_and_losses(cfg)
    _add_input(cfg)
    _add_schedule(cfg)
    _add_evaluation(cfg)


def _add_trunk(cfg: CfgNode) -> None:
    cfg.MODEL.META_ARCHITECTURE = "S2UniSeg"
    cfg.MODEL.BACKBONE.NAME = "ViTAdapterBackbone"
    # "" or a file; here and wherever weights are a file also an address with a hash: https://HOST/FILE#sha256=HEX
    cfg.MODEL.WEIGHTS = ""
    # torch.compile of the student's trunk and decoder in training; the first step takes minutes; needs a C++ compiler
    cfg.MODEL.COMPILE = False
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]  # RGB, 0 to 255
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    add_backbone_config(cfg)


def add_backbone_config(cfg: CfgNode) -> None:
    """Add the keys that ``ViTAdapterBackbone`` reads to any Detectron2 config, in place; change none that is there."""
    # activation checkpointing: the layers of ViT, adapter and decoders keep their inputs alone and run again in the
    # backward pass; same losses and gradients
    cfg.MODEL.RECOMPUTE = False

    vit = cfg.MODEL.VIT = CfgNode()
    vit.NAME = "vit_base_patch8_224.dino"  # any plain ViT that timm knows
    # 0 keeps what the name says; other values shrink or stretch it (tiny recipes, tests)
    vit.PATCH_SIZE = 0
    vit.EMBED_DIM = 0
    vit.DEPTH = 0
    vit.NUM_HEADS = 0
    vit.WEIGHTS = (
        ""  # "" random, "timm" the weights of that name, a file (DINO backbone, full checkpoint) or an address
    )
    vit.WEIGHTS_BRANCH = "teacher"  # of a full DINO checkpoint: teacher or student
    vit.DROP_PATH = 0.1  # student only; the paper is silent: DINO's value
    # first blocks that do not learn, with the embeddings before them: 0 none, -1 the whole ViT; the adapter learns
    vit.FROZEN_BLOCKS = 0

    adapter = cfg.MODEL.VIT_ADAPTER = CfgNode()
    adapter.WEIGHTS = ""  # "" random, or a file: a published ViT-Adapter with its ViT, or an encoder of ours
    adapter.CONV_INPLANE = 64  # width of the spatial prior's stem
    adapter.DEFORM_HEADS = 12
    adapter.DEFORM_RATIO = 0.5  # width of deformable values relative to the embedding
    adapter.DEFORM_POINTS = 4
    adapter.FFN_RATIO = 0.25
    adapter.EXTRA_EXTRACTORS = 2  # in the last interaction
    adapter.ADD_VIT_FEATURE = True
    adapter.APPLY_VIT_NORM = True  # the ViT's final LayerNorm on the tokens; the paper is silent: DINO's convention
    adapter.ZERO_INIT = "stride4"  # stride4, all or none
    adapter.NORM = "SyncBN"  # any name of detectron2.layers.get_norm; SyncBN in one process on the CPU is BN


def _add_labels(cfg: CfgNode) -> None:
    uniap = cfg.MODEL.UNIAP = CfgNode()
    uniap.TAUS = (0.8, 0.7, 0.6, 0.5, 0.4)  # tau_t of every layer, decreasing, in [-1, 1]
    uniap.SIGMA = 0.07  # temperature of Eq. 5
    uniap.OMEGA_F = 0.6  # weight of the feature similarity, Eq. 3
    uniap.OMEGA_S = 0.4  # weight of the spatial similarity; the two sum to 1
    uniap.MIN_TOKENS = 5  # phi = 5 in the paper, which never defines it: smallest mask, in tokens
    uniap.REGION_AFFINITY = "mean"  # Eq. 5 over the region's mean affinity; "sum" is the literal form
    uniap.VOTER_POOL = 1  # 2, 4, 8 or 16: means of squares of tokens vote, an approximation; the paper: 1
    uniap.UNTIL_STABLE = False  # repeat each threshold until nothing merges
    uniap.MAX_MASKS = 1000  # per picture and kind, the largest are kept
    uniap.FEATURE_STRIDE = 4  # 4, or 16 for the native token grid

    cfg.MODEL.TEACHER = CfgNode()
    # per iteration, cosine from MOMENTUM to MOMENTUM_END; the paper is silent: DINO's advice for small batches
    cfg.MODEL.TEACHER.MOMENTUM = 0.9995
    cfg.MODEL.TEACHER.MOMENTUM_END = 1.0
    cfg.MODEL.TEACHER.PICTURES_AT_ONCE = 0  # that the teacher labels in one go, which bounds memory; 0 takes all


def _add_head_and_losses(cfg: CfgNode) -> None:
    head = cfg.MODEL.SEM_SEG_HEAD
    head.NAME = "QueryGroupHead"
    head.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    query = cfg.MODEL.QUERY_HEAD = CfgNode()
    query.WEIGHTS = ""  # "" random, or a file: Mask2Former's decoder (learnt from labels), or ours
    query.INS_QUERIES = 150
    query.SEM_QUERIES = 50
    query.HIDDEN_DIM = 256
    query.MASK_DIM = 256
    query.NUM_HEADS = 8
    query.ENCODER_LAYERS = 6
    query.ENCODER_FFN_DIM = 1024
    query.DECODER_LAYERS = 9  # plus one prediction from the raw queries
    query.DECODER_FFN_DIM = 2048

    distillation = cfg.MODEL.QUERY_SD = CfgNode()
    distillation.NUM_PROTOTYPES = 512  # K
    distillation.HIDDEN_DIM = 2048
    distillation.BOTTLENECK_DIM = 256
    distillation.STUDENT_TEMP = 0.1
    distillation.TEACHER_TEMP = 0.04  # the paper is silent on temperatures and centring: DINO's
    distillation.TEACHER_TEMP_START = 0.04  # at iteration 0, from where it goes straight to TEACHER_TEMP
    distillation.TEACHER_TEMP_WARMUP_ITERS = 0  # in so many iterations; 0 is TEACHER_TEMP throughout
    distillation.CENTER_MOMENTUM = 0.9
    distillation.FREEZE_LAST_LAYER_ITERS = 1600  # the paper is silent: 1 % of the run

    loss = cfg.MODEL.LOSS = CfgNode()
    loss.QUERY_SD_WEIGHT = 1.0
    # the paper prints no mask loss, but QuerySD alone trains no mask: Mask2Former's weights
    loss.MASK_WEIGHT = 5.0
    loss.DICE_WEIGHT = 5.0
    loss.OBJECTNESS_WEIGHT = 2.0  # 0 switches objectness off (literal paper); scores are then mask quality alone
    loss.NO_OBJECT_WEIGHT = 0.1
    loss.DEEP_SUPERVISION = True
    loss.KINDS = ("instance", "semantic")  # of masks that the student learns; the queries of another learn "no object"
    loss.MIN_CELLS = 1  # smallest mask in a view, in cells of 4 x 4 pixels; the paper drops what leaves nothing
    loss.NUM_POINTS = 12544  # per matched mask; 0 takes every pixel
    loss.OVERSAMPLE_RATIO = 3.0
    loss.IMPORTANCE_RATIO = 0.75

    inference = cfg.MODEL.INFERENCE = CfgNode()
    inference.PREDICTOR = "decoder"  # decoder: teacher encoder and student decoder; uniap: the labels themselves
    inference.OBJECT_THRESHOLD = 0.8  # panoptic: smallest objectness of a query
    inference.OVERLAP_THRESHOLD = 0.8  # panoptic: smallest visible share of a mask
    inference.SPLIT_INSTANCES = False  # each connected part of an instance query's mask by itself; not in the paper
    inference.DUPLICATE_IOU = 1.0  # instances that overlap a better one by more are left out; 1, the paper, keeps all


def _add_input(cfg: CfgNode) -> None:
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.GLOBAL_LONGEST_PX = 512  # longest side of the teacher's view; the paper is silent
    cfg.INPUT.TEST_LONGEST_PX = 1024
    cfg.INPUT.OFFLINE_LABELS = False  # masks of DATASETS.TRAIN's annotations in place of the teacher's own
    cfg.INPUT.MAX_UNREADABLE = 100  # pictures a loader process may skip before the run stops
    cfg.DATALOADER.TIMEOUT_S = 600  # without a batch from the data workers before the run stops; 0 is no limit
    cfg.PROCESSES = CfgNode()
    cfg.PROCESSES.TIMEOUT_S = 1800  # that a process waits for the others before the run stops; PyTorch's for gloo
    views = cfg.INPUT.VIEWS = CfgNode()
    views.NUM = 2  # delta
    views.SIZE_PX = 224  # multiple of 32; the paper is silent
    views.SCALE = (0.05, 0.4)  # share of the picture's area
    views.RATIO = (0.75, 1.3333333333333333)
    views.FLIP_PROB = 0.5
    views.PHOTOMETRIC = True  # DINO's recipe for local views


def _add_schedule(cfg: CfgNode) -> None:
    cfg.SOLVER.IMS_PER_BATCH = 16  # of all processes together
    # parts of a process's share that go through the model one after the other before the optimizer steps
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    cfg.SOLVER.MAX_ITER = 160000
    cfg.SOLVER.BASE_LR = 6.25e-4
    cfg.SOLVER.BASE_LR_END = 1e-6
    # straight to BASE_LR in WARMUP_ITERS, then a cosine to BASE_LR_END; the paper is silent after the warm-up. Others
    # are Detectron2's
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupThenCosineLR"
    cfg.SOLVER.WARMUP_ITERS = 10000
    cfg.SOLVER.WARMUP_FACTOR = 1e-4
    cfg.SOLVER.WEIGHT_DECAY = 0.05  # AdamW's, of matrices and kernels alone; the paper is silent
    cfg.SOLVER.WEIGHT_DECAY_END = -1.0  # at the end of the run, along a cosine; negative: WEIGHT_DECAY throughout
    cfg.SOLVER.VIT_LR_FACTOR = 0.1  # of the ViT's parameters; adapter, decoder and heads take BASE_LR
    cfg.SOLVER.VIT_LAYER_DECAY = 1.0  # of that rate from each block to the one before it; the paper is silent: 1, none
    cfg.SOLVER.FULL_MODEL_CLIP_NORM = 0.01  # gradient norm of all parameters together; 0 is off
    cfg.SOLVER.AMP.ENABLED = True  # switched off on the CPU
    cfg.SOLVER.AMP.DTYPE = "float16"  # or bfloat16: no loss scaling, GPUs from Ampere on; the paper is silent
    cfg.SOLVER.KEEP_CHECKPOINTS = 0  # periodic checkpoints that stay, the newest; 0 keeps all
    cfg.SEED = 0  # of all draws; negative draws one anew, and no run can be repeated or gone on with exactly
    cfg.VIS_PERIOD = 5000  # iterations between pictures of views and pseudo-masks; 0 is off


def _add_evaluation(cfg: CfgNode) -> None:
    test = cfg.TEST
    test.DETECTIONS_PER_IMAGE = 100
    test.TASKS = ("agnostic", "instance", "semantic", "panoptic")  # those that a data set's truth allows
    test.PICTURES = 6  # pictures of each test set that are drawn beside their truth; 0 is off
    test.CASES = 2  # of each of the best, median and worst that --eval-only draws per task; 0 is off
    test.MAX_DETS = (1, 10, 100)  # limits on detections of a picture at which AP and AR are read; 1000 is UnSAM's
    test.GEOMETRY = ("segm",)  # AP and AR of masks (segm), boxes (bbox) or both
    test.BACKEND = "faster_coco_eval"  # or pycocotools
    test.STRATEGIES = ("hungarian", "majority")  # of mapping pseudo-classes to classes; each names its results
    test.MAPPING_SPLIT = ""  # data set that the mappings are fitted on; "" is the test set itself, as in the field
    test.MATCH_SCORE = 0.0  # smallest score of an instance that votes for its pseudo-class's class
    test.MATCH_IOU = 0.5  # with which objects: those of a greater IoU
    test.MATCH_BY = "segm"  # of masks (segm) or boxes (bbox)
    test.SEMANTIC_VOTE = "pixels"  # each pixel is a vote, or "masks": each pair of masks above STUFF_IOU is
    test.PANOPTIC_VOTE = "pixels"  # the same for segments
    test.THING_IOU = 0.5  # of pairs of things that vote in PANOPTIC_VOTE masks
    test.STUFF_IOU = 0.15  # of pairs of stuff or semantic masks that vote
    test.SHORT_SIDE_PX = 0  # data sets with semantic truth alone: shorter side to this, nearest; 0 is off
    test.CENTER_CROP_PX = 0  # ... then the middle square of this side
    test.FLIP = False  # semantic: mean of the class scores of the picture and of its mirror image, turned back
    test.CRF = False  # semantic: dense CRF of STEGO's constants after that (core/ops/dense_crf.py); slow on the CPU
    cfg.EVALUATION = CfgNode()
    cfg.EVALUATION.PROTOCOL = ""  # whose published figures stand beside the results; see evaluation/published.py
    cfg.EVALUATION.PART_PICTURES = 50  # per file of what --resume goes on from, the most a kill loses; 0 keeps none
    cfg.EVALUATION.KEEP_PARTS = False  # after the run


_MOST_NODES = 100_000  # values of a config file; Detectron2's largest have some hundreds


def load_config(
    config_file: str | Path, overrides: list[str] | None = None, *, model_from: str | Path | None = None
) -> CfgNode:
    """Defaults, then a YAML file with its ``_BASE_`` chain, then ``KEY VALUE`` overrides, checked.

    The YAML is read with the safe loader at every level, so that a config file can never run code (Detectron2's own
    ``merge_from_file`` reads it with the unsafe one).

    Args:
        config_file: a recipe or a protocol; "" takes the defaults.
        overrides: words ``KEY VALUE KEY VALUE ...``, which win over all files.
        model_from: the ``config.yaml`` of a training run, whose ``MODEL`` node replaces that of ``config_file``: what
            the weights were trained as. ``MODEL.WEIGHTS`` and ``MODEL.DEVICE`` of the run do not count, and its
            ``MODEL.INFERENCE`` only where ``config_file`` says nothing.

    Raises:
        ValueError: for a missing or malformed file, an unknown key, a wrong type or a value out of range.
    """
    cfg = get_cfg()
    add_s2uniseg_config(cfg)
    unset_by_default = _unset(cfg)
    above = read_yaml(Path(config_file)) if config_file else {}
    if model_from:
        model = read_yaml(Path(model_from)).get("MODEL", {})
        if not isinstance(model, dict):
            raise ValueError(f"config file {model_from} must hold a MODEL with keys, got {type(model).__name__}")
        trained = {key: value for key, value in model.items() if key not in ("WEIGHTS", "DEVICE")}
        cfg = _merge(cfg, {"MODEL": copy.deepcopy(trained)}, str(model_from))
        trained.pop("INFERENCE", None)
        _overlay(above, {"MODEL": trained})
    cfg = _merge(cfg, above, str(config_file))
    overrides = [word for word in overrides or [] if word != "--"]
    if len(overrides) % 2:
        raise ValueError(f"overrides must be pairs of KEY VALUE, got {' '.join(overrides)}")
    try:
        cfg.merge_from_list(overrides)
    except (AssertionError, KeyError, ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        # the last three are what Python makes of values such as {[1]} and of thousands of brackets
        raise ValueError(f"overrides: {_first_words(error)}{_near_key(cfg, overrides)}") from error
    if unset := sorted(_unset(cfg) - unset_by_default):
        raise ValueError(f"{unset[0]} must have a value, got None")
    validate_config(cfg)
    return cfg


def _unset(cfg: CfgNode, prefix: str = "") -> set[str]:
    """Dotted names of the leaves that are None, which yacs takes for any type."""
    names: set[str] = set()
    for key, value in cfg.items():
        names |= _unset(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else set()
        names |= {prefix + key} if value is None else set()
    return names


def read_yaml(path: Path, chain: tuple[Path, ...] = ()) -> dict[str, Any]:
    """One config file merged over its ``_BASE_``, read without running anything.

    Raises:
        ValueError: if the file is missing, malformed, holds a Python tag, or names itself as its base.
    """
    try:
        path = path.expanduser()
        resolved = path.resolve()
        if path.suffix == ".py":
            raise ValueError(f"config file {path} must be YAML, got Python, which would be run to be read (LazyConfig)")
        if resolved in chain:
            raise ValueError(f"config file {path} is its own _BASE_")
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        size = _written_out(tree)
    except FileNotFoundError as error:
        raise ValueError(f"config file does not exist: {path}") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError, RuntimeError, LookupError, TypeError) as error:
        # beside YAML's own errors: what lies too deep, and numbers, dates and paths that Python cannot make
        raise ValueError(f"config file {path} cannot be read: {' '.join(str(error).split())}") from error
    if size > _MOST_NODES:
        raise ValueError(f"config file {path} must hold at most {_MOST_NODES} values, written out, got {size}")
    if not isinstance(tree, dict):
        raise ValueError(f"config file {path} must hold KEY: VALUE lines, got {type(tree).__name__}")
    base = tree.pop("_BASE_", None)
    if base is None:
        return tree
    merged = read_yaml(path.parent / Path(str(base)).expanduser(), (*chain, path.resolve()))
    _overlay(merged, tree)
    return merged


def _written_out(tree: Any) -> int:
    """How many values a tree has without YAML's references, of which a few lines make billions.

    Raises:
        RecursionError: if it holds itself.
    """
    known: dict[int, int] = {}

    def count(node: Any) -> int:
        if not isinstance(node, (dict, list, tuple, set)):
            return 1
        if id(node) not in known:
            parts = [*node.keys(), *node.values()] if isinstance(node, dict) else list(node)
            known[id(node)] = 1 + sum(map(count, parts))
        return known[id(node)]

    return count(tree)


def _overlay(below: dict[str, Any], above: dict[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _overlay(below[key], value)
        else:
            below[key] = copy.deepcopy(value)


def _merge(cfg: CfgNode, tree: dict[str, Any], name: str) -> CfgNode:
    if tree.pop("VERSION", 2) != 2:
        raise ValueError(f"config file {name}: VERSION must be 2")
    try:
        cfg.merge_from_other_cfg(CfgNode(tree))
    except (AssertionError, KeyError, ValueError, TypeError) as error:
        # a TypeError comes of keys that are no text, as ON and NO, which YAML takes for truth values
        raise ValueError(f"config file {name}: {_first_words(error)}") from error
    return cfg


def _first_words(error: BaseException) -> str:
    return " ".join(str(error.args[0] if error.args else error).split())


def _near_key(cfg: CfgNode, overrides: list[str]) -> str:
    """A hint with the nearest known key, for the first override that the config does not know."""
    import difflib

    known = list(known_keys(cfg))
    for key in overrides[::2]:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
            return f" ({key} is unknown{'; near it: ' + ', '.join(near) if near else ''})"
    return ""


def known_keys(cfg: CfgNode, prefix: str = "") -> list[str]:
    """Dotted names of all leaves of a config."""
    names: list[str] = []
    for key, value in cfg.items():
        names += known_keys(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else [f"{prefix}{key}"]
    return names
