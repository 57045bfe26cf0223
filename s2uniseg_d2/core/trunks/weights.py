"""Weights of a ViT from a local file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from s2uniseg_d2.core.tensor_files import TensorFileError, read_tensor_file, refuse_broken
from s2uniseg_d2.core.trunks.vit import TimmViT

BRANCHES = ("teacher", "student")
CONTAINERS = ("state_dict", "model")
# Where these two stand under one prefix, there stands a plain ViT.
PATCHES, FIRST_BLOCK = "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"
SHOWN_NAMES = 5


class WeightReport(NamedTuple):
    """What became of every tensor of the ViT and of the file, by name; the four groups are disjoint.

    Attributes:
        loaded: tensors of the ViT that now hold the file's values.
        missing: tensors of the ViT that the file does not have; they keep their values.
        unexpected: tensors of the file that the ViT does not have.
        mismatched: tensors of the same name whose shapes differ; the ViT's keep their values.
        resampled: those of ``loaded`` that were resized to another grid first.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]
    resampled: tuple[str, ...] = ()

    def summary(self, owner: str = "the ViT") -> str:
        """All of it in one sentence; of long lists the first names."""
        wanted = len(self.loaded) + len(self.missing) + len(self.mismatched)
        parts = [
            f"loaded {len(self.loaded)} of {owner}'s {wanted} tensors",
            f"missing in the file: {_listed(self.missing)}",
            f"unexpected in the file: {_listed(self.unexpected)}",
            f"of another shape: {_listed(self.mismatched)}",
        ]
        if self.resampled:
            parts.append(f"resampled to the ViT's grid: {_listed(self.resampled)}")
        return "; ".join(parts)


def read_trunk_checkpoint(path: str | PathLike[str], branch: str = "teacher") -> dict[str, Tensor]:
    """The tensors of the ViT in a checkpoint, under timm's names, on the CPU.

    Read are DINO's backbone-only files and its full ones (``teacher`` and ``student``), timm's and Detectron2's
    (``model``), those of ViT-Adapter (``state_dict``, names below ``backbone.``; the adapter's tensors come along), in
    every format of :mod:`~s2uniseg_d2.core.tensor_files`. Any prefix before the ViT's names goes (``module.``,
    ``backbone.``), and what stands outside of it (heads). Nothing in the file is executed.

    Args:
        path: the file.
        branch: which of a full checkpoint's two encoders; files with only one of them ignore it.

    Raises:
        ValueError: if the branch is unknown or not in the file, or if the file is missing, broken or holds no plain
            ViT; the message names the file and what was found in it.
    """
    if branch not in BRANCHES:
        raise ValueError(f"branch must be one of {', '.join(BRANCHES)}, got {branch!r}")
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"path must name a checkpoint file, got {str(path)!r}, where there is no file")
    stored = _select_container(path, read_weight_file(path), branch)
    tensors = {str(name): value for name, value in stored.items() if isinstance(value, Tensor)}
    prefix = _vit_prefix(path, tensors, stored, branch)
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def load_trunk_weights(vit: TimmViT, path: str | PathLike[str], branch: str = "teacher") -> WeightReport:
    """Copy a checkpoint's tensors into the ViT and report what fitted.

    Position embeddings of another square grid are resampled as timm does it (bicubic, antialiased).

    Args:
        vit: changed in place, and not at all if the file is refused.
        path: see ``read_trunk_checkpoint``.
        branch: likewise.

    Raises:
        ValueError: as ``read_trunk_checkpoint``; and if less than half of the ViT's parameters (counted as numbers, not
            as tensors) would be loaded, which says that the file is another model's.
    """
    stored = read_trunk_checkpoint(path, branch)
    own = vit.state_dict()
    resampled: tuple[str, ...] = ()
    if "pos_embed" in stored and "pos_embed" in own and stored["pos_embed"].shape != own["pos_embed"].shape:
        fitted = fit_positions(stored["pos_embed"], vit)
        if fitted is not None:
            stored["pos_embed"], resampled = fitted, ("pos_embed",)
    return copy_tensors(vit, stored, f"checkpoint {str(path)!r}", vit.name, resampled)


def copy_tensors(
    module: nn.Module, stored: Mapping[str, Tensor], source: str, target: str, resampled: tuple[str, ...] = ()
) -> WeightReport:
    """Copy the tensors whose names and shapes fit into a module and report on all.

    Args:
        module: changed in place, and not at all if the tensors are refused.
        stored: by the module's names.
        source: what to call their file in a message.
        target: what to call the module.
        resampled: names of those that were made to fit.

    Raises:
        ValueError: if less than half of the module's numbers would be loaded: the file is another model's; or if any
            of them is NaN or infinite.
    """
    own = module.state_dict()
    loaded = {name: value for name, value in stored.items() if name in own and value.shape == own[name].shape}
    report = WeightReport(
        loaded=tuple(loaded),
        missing=tuple(name for name in own if name not in stored),
        unexpected=tuple(name for name in stored if name not in own),
        mismatched=tuple(name for name in stored if name in own and name not in loaded),
        resampled=tuple(name for name in resampled if name in loaded),
    )
    count, total = sum(value.numel() for value in loaded.values()), sum(value.numel() for value in own.values())
    if 2 * count < total:
        shapes = [
            f"{name} {tuple(stored[name].shape)} for {tuple(own[name].shape)}"
            for name in report.mismatched[:SHOWN_NAMES]
        ]
        detail = f"; shapes: {', '.join(shapes)}" if shapes else ""
        raise ValueError(
            f"{source} does not fit {target!r}: {count:,} of {total:,} numbers would be loaded "
            f"({report.summary()}{detail})"
        )
    refuse_broken(loaded, source)
    module.load_state_dict(loaded, strict=False)
    return report


def read_weight_file(path: Path) -> Any:
    """What a file holds in any format of :mod:`~s2uniseg_d2.core.tensor_files`; nothing in it is executed.

    Raises:
        ValueError: if it cannot be read; the message names file and reason.
    """
    try:
        return read_tensor_file(path)
    except TensorFileError as error:
        raise ValueError(
            f"checkpoint {str(path)!r} ({path.stat().st_size:,} bytes) cannot be read as a file of tensors: {error}"
        ) from error


def _select_container(path: Path, payload: Any, branch: str) -> Mapping[Any, Any]:
    if not isinstance(payload, Mapping):
        _refuse(path, f"an object of type {type(payload).__name__}")
    found = [name for name in BRANCHES if isinstance(payload.get(name), Mapping)]
    if found and branch not in found:
        raise ValueError(f"branch must be one that {str(path)!r} holds ({', '.join(found)}), got {branch!r}")
    for name in (branch, *CONTAINERS):
        inner = payload.get(name)
        if isinstance(inner, Mapping):
            return inner
    return payload


def _vit_prefix(path: Path, tensors: Mapping[str, Tensor], stored: Mapping[Any, Any], branch: str) -> str:
    """What stands before the names of the ViT in the file; of several ViTs that of the branch."""
    candidates = [name[: -len(PATCHES)] for name in tensors if name.endswith(PATCHES)]
    prefixes = [prefix for prefix in candidates if prefix + FIRST_BLOCK in tensors and prefix[-1:] in ("", ".")]
    if not prefixes:
        kind = f"{len(tensors)} tensors" if tensors else "no tensors"
        _refuse(path, f"{kind} under the names {_listed(tuple(str(name) for name in stored))}")
    if len(prefixes) > 1:
        teachers = [prefix for prefix in prefixes if "teacher" in prefix]
        prefixes = teachers if branch == "teacher" else [prefix for prefix in prefixes if prefix not in teachers]
    if len(prefixes) != 1:
        _refuse(path, f"not one ViT for the branch {branch!r} but {len(prefixes)}, below {_listed(tuple(candidates))}")
    return prefixes[0]


def fit_positions(positions: Tensor, vit: TimmViT) -> Tensor | None:
    """Position embeddings resampled to the ViT's grid, or None if they are not those of a square one."""
    prefix = vit.num_prefix_positions
    if positions.dim() != 3 or positions.shape[0] != 1 or positions.shape[2] != vit.embed_dim:
        return None
    cells = positions.shape[1] - prefix
    side = math.isqrt(max(cells, 0))
    if side == 0 or side * side != cells:
        return None
    resampled: Tensor = resample_abs_pos_embed(
        positions, new_size=list(vit.grid_size), old_size=[side, side], num_prefix_tokens=prefix
    )
    return resampled


def _refuse(path: Path, found: str) -> NoReturn:
    raise ValueError(
        f"checkpoint {str(path)!r} must hold a plain ViT (tensors named {PATCHES}, {FIRST_BLOCK}, ...), found {found}"
    )


def _listed(names: tuple[str, ...]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more
