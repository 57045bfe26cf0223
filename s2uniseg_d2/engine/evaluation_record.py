"""What must be known of an evaluation besides its figures: weights, constants, versions."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from s2uniseg_d2 import __version__
from s2uniseg_d2.config import known_keys
from s2uniseg_d2.core.tensor_files import file_digest
from s2uniseg_d2.downloads import local_file

from .checkpoint_files import tensor_digest

_PACKAGES = (
    "torch",
    "torchvision",
    "detectron2",
    "timm",
    "numpy",
    "scipy",
    "pycocotools",
    "faster-coco-eval",
    "Pillow",
    "opencv-python-headless",
)
_CONSTANTS = ("TEST.", "EVALUATION.", "DATASETS.TEST", "INPUT.TEST_LONGEST_PX", "MODEL.INFERENCE.")
# what changes neither a prediction nor a figure, and Detectron2's keys that nothing here reads
_IDLE = ("MODEL.WEIGHTS", "MODEL.DEVICE", "MODEL.VIT.WEIGHTS", "TEST.PICTURES", "TEST.CASES", "TEST.EVAL_PERIOD")
_UNREAD = ("TEST.AUG.", "TEST.EXPECTED_RESULTS", "TEST.KEYPOINT_OKS_SIGMAS", "TEST.PRECISE_BN.")


def weights_record(cfg: CfgNode, model: nn.Module) -> dict[str, str]:
    """Return where the weights come from and their SHA-256: of the file, or of all tensors where there is no file."""
    if cfg.MODEL.WEIGHTS:
        return {"file": str(cfg.MODEL.WEIGHTS), "sha256": file_digest(Path(local_file(cfg.MODEL.WEIGHTS)))}
    backbone = cfg.MODEL.VIT.WEIGHTS or "random"
    of = f"none; of all tensors (backbone: {backbone}, SEED {cfg.SEED})"
    return {"file": of, "sha256": tensor_digest(model.state_dict())}


def settings_of(cfg: CfgNode) -> dict[str, Any]:
    """Return every setting that predictions and figures depend on, by its dotted name, JSON-able."""
    chosen = ("MODEL.", "TEST.", "DATASETS.TEST", "INPUT.TEST_LONGEST_PX")
    return _leaves(cfg, [key for key in known_keys(cfg) if key.startswith(chosen)])


def constants_of(cfg: CfgNode) -> dict[str, Any]:
    """Return the constants of the protocol, by their dotted names, JSON-able."""
    return _leaves(cfg, [key for key in known_keys(cfg) if key.startswith(_CONSTANTS)])


def data_digest(records: Sequence[Mapping[str, Any]], truths: Sequence[str] = ()) -> str:
    """Return a SHA-256 of the pictures' names and ids, in order, and of the state of their truth.

    Args:
        records: the pictures; the label maps that they name count with size and time of change.
        truths: files of truth for all of them, which count in the same way.
    """
    digest = hashlib.sha256()
    for record in records:
        digest.update(f"{record['file_name']}\0{record.get('image_id')}\0".encode())
    maps = [record[key] for record in records for key in ("sem_seg_file_name", "pan_seg_file_name") if key in record]
    for path in [*truths, *maps]:
        if os.path.isfile(path):
            state = os.stat(path)
            digest.update(f"{path}\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of this package, of Python and of what figures come from; "absent" where there is none."""
    found = {"s2uniseg_d2": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def device_name(cfg: CfgNode) -> str:
    """Return the name of what the model ran on."""
    if torch.device(cfg.MODEL.DEVICE).type == "cuda":
        return str(torch.cuda.get_device_name())
    return f"{cfg.MODEL.DEVICE}, {torch.get_num_threads()} threads"


def without_nan(value: Any) -> Any:
    """Return nested results with None for nan and infinities, which JSON cannot spell."""
    if isinstance(value, Mapping):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _leaves(cfg: CfgNode, keys: Sequence[str]) -> dict[str, Any]:
    values = {}
    for key in keys:
        if key in _IDLE or key.startswith(_UNREAD):
            continue
        value: Any = cfg
        for part in key.split("."):
            value = value[part]
        values[key] = list(value) if isinstance(value, tuple) else value
    return values
