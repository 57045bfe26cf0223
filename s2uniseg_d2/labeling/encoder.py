"""The encoder whose features become masks, from whatever holds its weights."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from s2uniseg_d2.core.tensor_files import TensorFileError, read_tensor_file, refuse_broken
from s2uniseg_d2.downloads import local_file
from s2uniseg_d2.modeling.backbone import ViTAdapterBackbone

logger = logging.getLogger(__name__)

TEACHER = "teacher_backbone."


def build_encoder(cfg: Any, weights: str | None = None) -> ViTAdapterBackbone:
    """The ViT-Adapter of a config in evaluation mode, without gradients, on the CPU.

    Args:
        cfg: a Detectron2 config with the keys of :mod:`s2uniseg_d2.config`; changed in place to what was loaded.
        weights: "" draws all weights at random with ``cfg.SEED``; the name of a timm model fetches that ViT; the path
            of a checkpoint of this project's trainer gives the teacher's whole encoder; any other file gives the ViT
            (see :func:`~s2uniseg_d2.core.trunks.weights.load_trunk_weights`) inside a fresh adapter, whose stride-4
            map is zero at first. An address with a hash stands for its file (:mod:`~s2uniseg_d2.downloads`).
            None takes what the config names: ``MODEL.WEIGHTS``, else ``MODEL.VIT.WEIGHTS``.

    Raises:
        ValueError: if the weights are neither of these, cannot be read, do not fit the config, or hold NaN or infinity.
    """
    chosen = local_file((cfg.MODEL.WEIGHTS or cfg.MODEL.VIT.WEIGHTS) if weights is None else weights)
    teacher = read_teacher(Path(chosen)) if Path(chosen).is_file() else None
    if teacher:
        cfg.MODEL.VIT.WEIGHTS = ""
    else:
        name_vit(cfg, chosen)
    if not chosen:
        logger.warning("no weights are named: the encoder's are random, drawn with SEED %d", max(cfg.SEED, 0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(max(cfg.SEED, 0))
        encoder: ViTAdapterBackbone = ViTAdapterBackbone(cfg)
    if teacher:
        _load_teacher(encoder, teacher, chosen)
    return encoder.requires_grad_(False).eval()


def name_vit(cfg: Any, weights: str) -> None:
    """Let a config, in place, take the ViT of a timm name or of a file.

    Raises:
        ValueError: if it is neither "", "timm", the name of a timm model nor a file that exists.
    """
    cfg.MODEL.VIT.WEIGHTS = weights
    if weights not in ("", "timm") and not Path(weights).exists():
        if "/" in weights or not timm.is_model(weights):
            raise ValueError(f"weights must be '', the name of a timm model or a file that exists, got {weights!r}")
        cfg.MODEL.VIT.NAME, cfg.MODEL.VIT.WEIGHTS = weights, "timm"


def digest(module: nn.Module) -> str:
    """SHA-256 over names and values of all weights: equal weights, equal text, on any machine."""
    total = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        total.update(value.detach().cpu().contiguous().numpy().data)
    return total.hexdigest()


def read_teacher(path: Path) -> dict[str, Tensor] | None:
    """The teacher's encoder in a checkpoint of our trainer; None for any other file, which other code judges."""
    try:
        content = read_tensor_file(path, mmap=True)
    except TensorFileError:
        return None
    state = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping):
        return None
    return {
        name[len(TEACHER) :]: value
        for name, value in state.items()
        if isinstance(name, str) and name.startswith(TEACHER) and isinstance(value, Tensor)
    } or None


def _load_teacher(encoder: ViTAdapterBackbone, stored: Mapping[str, Tensor], path: str) -> None:
    own = encoder.state_dict()
    unfit = sorted(
        name for name in own.keys() | stored.keys() if name not in own or own[name].shape != _shape(stored, name)
    )
    if unfit:
        raise ValueError(
            f"weights {path!r} do not fit the config: {len(unfit)} of {len(own)} tensors of the encoder differ in name "
            f"or shape ({', '.join(unfit[:3])}); name the config file that the checkpoint was trained with"
        )
    refuse_broken(stored, f"weights {path!r}")
    encoder.load_state_dict(stored)


def _shape(stored: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return stored[name].shape if name in stored else None
