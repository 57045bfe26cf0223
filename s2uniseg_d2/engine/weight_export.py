"""Parts of a trained model as weight files for other programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from torch import Tensor

from s2uniseg_d2 import __version__
from s2uniseg_d2.core.tensor_files import file_digest

from .checkpoint_files import read_checkpoint, tensor_digest, write_whole

TEACHER, STUDENT = "teacher_backbone.", "backbone."
WHATS = ("teacher-backbone", "student-backbone", "student", "model", "vit")
SUFFIXES = (".pth", ".safetensors")
_VIT = "trunk.vit."


class ExportedWeights(NamedTuple):
    """What was written.

    Attributes:
        path: the file.
        tensors: how many are in it.
        numbers: how many numbers they hold together.
        metadata: what the file says about itself.
    """

    path: Path
    tensors: int
    numbers: int
    metadata: dict[str, str]


def select_weights(
    state: Mapping[str, Tensor], what: str, *, branch: str = "teacher", prefix: str = ""
) -> dict[str, Tensor]:
    """The tensors of one part of an S2UniSeg under the names that its readers know.

    ``teacher-backbone`` and ``student-backbone``: an encoder, named ``trunk.*``, as in ``ViTAdapterBackbone``;
    ``student``: what learns (encoder, decoder, projection, head), and ``model``: all, both under the names of
    ``S2UniSeg``; ``vit``: the plain ViT of an encoder under the names of timm and DINO.

    Args:
        state: the model's state dict.
        what: see above.
        branch: whose ViT, teacher or student; the others ignore it.
        prefix: put before each name.

    Raises:
        ValueError: if ``what`` or ``branch`` is unknown, or the state is not that of an S2UniSeg.
    """
    if what not in WHATS:
        raise ValueError(f"what must be one of {', '.join(WHATS)}, got {what!r}")
    if branch not in ("teacher", "student"):
        raise ValueError(f"branch must be teacher or student, got {branch!r}")
    for needed in (f"{TEACHER}{_VIT}", f"{STUDENT}{_VIT}", "sem_seg_head."):
        if not any(name.startswith(needed) for name in state):
            found = ", ".join(list(state)[:3]) or "none"
            raise ValueError(f"state must be that of an S2UniSeg, with tensors named {needed}*, got {found}")
    if what == "model":
        chosen = dict(state)
    elif what == "student":
        chosen = {name: value for name, value in state.items() if not name.startswith(("teacher_", "center."))}
    else:
        encoder = STUDENT if what == "student-backbone" or (what, branch) == ("vit", "student") else TEACHER
        inside = encoder + (_VIT if what == "vit" else "")
        chosen = {name[len(inside) :]: value for name, value in state.items() if name.startswith(inside)}
    return {prefix + name: value for name, value in chosen.items()}


def export_weights(
    checkpoint: str | Path,
    output: str | Path,
    *,
    what: str = "teacher-backbone",
    branch: str = "teacher",
    prefix: str = "",
    cfg: CfgNode | None = None,
) -> ExportedWeights:
    """Write one part of a checkpoint of our trainer to a file of its own, whole or not at all.

    A ``.pth`` file holds ``{"model": tensors, "metadata": texts}``. An encoder without a ``prefix`` is marked for
    Detectron2's matching of names by their ends, so that it loads as ``MODEL.WEIGHTS`` whether the encoder is the whole
    backbone or inside of an FPN. A ``.safetensors`` file holds the same tensors and texts.

    Args:
        checkpoint: a ``.pth`` file of the trainer.
        output: its suffix chooses the format.
        what: see :func:`select_weights`.
        branch: likewise.
        prefix: likewise.
        cfg: the config that it was trained with, which the file then describes.

    Raises:
        ValueError: as :func:`select_weights`; for a checkpoint that cannot be read, or another suffix.
        OSError: if the file cannot be written; what was there is there still.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    if output.suffix not in SUFFIXES:
        raise ValueError(f"output must end in {' or '.join(SUFFIXES)}, got {str(output)!r}")
    content = read_checkpoint(checkpoint)
    state = content.get("model", content)
    if not isinstance(state, Mapping):
        raise ValueError(f"checkpoint {checkpoint} must hold tensors by name, got {type(state).__name__}")
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    chosen = select_weights(tensors, what, branch=branch, prefix=prefix)
    # copies: parts of a larger storage would take the whole of it along
    chosen = {name: value.detach().cpu().clone().contiguous() for name, value in chosen.items()}
    metadata = {
        "format": "pt",
        "what": f"{branch} vit" if what == "vit" else what,
        "project": f"s2uniseg_d2 {__version__}",
        "source": checkpoint.name,
        "source_sha256": file_digest(checkpoint),
        "tensors_sha256": tensor_digest(chosen),
        **({"iteration": str(content["iteration"])} if isinstance(content.get("iteration"), int) else {}),
        **(_describe(cfg) if cfg is not None else {}),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".safetensors":
        from safetensors.torch import save

        data = save(chosen, metadata)
        write_whole(output, lambda file: file.write(data))
    else:
        whole: dict[str, Any] = {"model": chosen, "metadata": metadata}
        if what.endswith("-backbone") and not prefix:
            whole["matching_heuristics"] = True
        write_whole(output, lambda file: torch.save(whole, file))
    return ExportedWeights(output, len(chosen), sum(value.numel() for value in chosen.values()), metadata)


def timm_arguments(cfg: CfgNode) -> dict[str, int]:
    """What ``timm.create_model(cfg.MODEL.VIT.NAME, num_classes=0, ...)`` takes to build the config's ViT."""
    vit = cfg.MODEL.VIT
    sizes = {"patch_size": vit.PATCH_SIZE, "embed_dim": vit.EMBED_DIM, "depth": vit.DEPTH, "num_heads": vit.NUM_HEADS}
    return {name: size for name, size in sizes.items() if size}


def _describe(cfg: CfgNode) -> dict[str, str]:
    return {
        "timm_model": cfg.MODEL.VIT.NAME,
        "timm_arguments": json.dumps(timm_arguments(cfg)),
        "pixel_mean": json.dumps(list(cfg.MODEL.PIXEL_MEAN)),
        "pixel_std": json.dumps(list(cfg.MODEL.PIXEL_STD)),
        "channels": str(cfg.INPUT.FORMAT),
    }
