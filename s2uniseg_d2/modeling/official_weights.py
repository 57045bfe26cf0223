"""Published checkpoints of ViT-Adapter and of Mask2Former, and our own, as a start of adapter and decoder.

Names are the published ones wherever the parts are the same, so little is renamed; what is not the same is left alone
and reported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from s2uniseg_d2.core.trunks.vit import TimmViT
from s2uniseg_d2.core.trunks.vit_adapter import ViTAdapter
from s2uniseg_d2.core.trunks.weights import CONTAINERS, WeightReport, copy_tensors, fit_positions, read_weight_file

# where this tensor is, there is an adapter, and a decoder
ADAPTER_MARK, DECODER_MARK = "spm.stem.0.weight", "sem_seg_head."
_ADAPTER_PARTS = ("level_embed", "spm.", "interactions.", "up.", "norm1.", "norm2.", "norm3.", "norm4.")
_SCALED = {"gamma1": ("ls1.gamma", "attn.proj"), "gamma2": ("ls2.gamma", "mlp.fc2")}
_STATISTIC = "running_mean"


class OfficialReport(NamedTuple):
    """What was loaded and what the file's model does otherwise.

    Attributes:
        weights: every tensor's fate, by our names.
        notes: sentences on what was folded, set to zero, or is not the same.
    """

    weights: WeightReport
    notes: tuple[str, ...]

    def summary(self, owner: str) -> str:
        """All of it in one line."""
        return "; ".join([self.weights.summary(owner), *self.notes])


def load_adapter_weights(adapter: ViTAdapter, path: str | PathLike[str], branch: str = "teacher") -> OfficialReport:
    """Copy a ViT-Adapter, its ViT included, from a published checkpoint or one of ours.

    Published are names without ``vit.`` and layer scales ``gamma1`` and ``gamma2``, which go into the layers before
    them where the ViT has none (the same function). Positions of another square grid are resampled. Norms are taken
    only if both are batch norms or neither is. Not the same here: the published ViT runs without its CLS token and
    without a final norm, which keep their own values; the notes say what to set.

    Args:
        adapter: changed in place, and not at all if the file is refused.
        path: PyTorch's, ``.safetensors`` or ``.pkl``.
        branch: of a checkpoint of ours, teacher or student.

    Raises:
        ValueError: if the file cannot be read, holds no adapter, or less than half of the numbers would be loaded.
    """
    stored = _read_tensors(path)
    prefixes = [name[: -len(ADAPTER_MARK)] for name in stored if name.endswith(ADAPTER_MARK)]
    if len(prefixes) > 1:
        prefixes = [prefix for prefix in prefixes if ("teacher" in prefix) == (branch == "teacher")]
    if len(prefixes) != 1:
        raise ValueError(f"checkpoint {str(path)!r} must hold one ViT-Adapter ({ADAPTER_MARK}), got {len(prefixes)}")
    inside = {name[len(prefixes[0]) :]: value for name, value in stored.items() if name.startswith(prefixes[0])}
    renamed = {
        name if name.startswith(("vit.", *_ADAPTER_PARTS)) else f"vit.{name}": value for name, value in inside.items()
    }
    own = adapter.state_dict()
    notes = _place_layer_scales(renamed, own)
    resampled = _fit_grid(renamed, own, adapter.vit)
    notes += _set_aside_other_norms(renamed, own)
    if "vit.norm.weight" not in renamed and adapter.apply_vit_norm:
        notes.append(
            "the file's ViT has no final norm: MODEL.VIT_ADAPTER.APPLY_VIT_NORM False is what it was trained as"
        )
    if "vit.cls_token" not in renamed and adapter.vit.cls_token is not None:
        notes.append("the file's ViT runs without a CLS token, here it runs with its own")
    return OfficialReport(
        copy_tensors(adapter, renamed, f"checkpoint {str(path)!r}", "the ViT-Adapter", resampled), tuple(notes)
    )


def load_decoder_weights(head: nn.Module, path: str | PathLike[str]) -> OfficialReport:
    """Copy Mask2Former's decoder, from a published checkpoint or one of ours.

    The legacy names (no ``pixel_decoder.``, ``static_query``) are known. Not the same, and left alone where shapes
    differ: the inputs of another backbone's widths, another number of queries, the class head of K classes. The
    published decoder has no type tokens: they become zero if its queries are taken.

    Args:
        head: with ``pixel_decoder`` and ``predictor``; changed in place, and not at all if the file is refused.
        path: PyTorch's, ``.safetensors`` or ``.pkl``.

    Raises:
        ValueError: if the file cannot be read, holds no decoder, or less than half of the numbers would be loaded.
    """
    stored = _read_tensors(path)
    inside = {name.split(DECODER_MARK, 1)[1]: value for name, value in stored.items() if DECODER_MARK in name}
    if not inside:
        raise ValueError(
            f"checkpoint {str(path)!r} must hold a decoder ({DECODER_MARK}*), got {', '.join(list(stored)[:3])}"
        )
    renamed = {}
    for name, value in inside.items():
        name = name if name.startswith(("pixel_decoder.", "predictor.")) else f"pixel_decoder.{name}"
        renamed[name.replace("predictor.static_query.", "predictor.query_feat.")] = value
    report, notes = copy_tensors(head, renamed, f"checkpoint {str(path)!r}", "the decoder"), []
    types = "predictor.query_type.weight"
    if types in report.missing and "predictor.query_feat.weight" in report.loaded:
        with torch.no_grad():
            head.get_parameter(types).zero_()
        notes.append("the file's queries have no type tokens: ours are zero now")
    return OfficialReport(report, tuple(notes))


def _read_tensors(path: str | PathLike[str]) -> dict[str, Tensor]:
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"path must name a checkpoint file, got {str(path)!r}, where there is no file")
    content: Any = read_weight_file(path)
    for name in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        raise ValueError(f"checkpoint {str(path)!r} must hold tensors by name, got {type(content).__name__}")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _place_layer_scales(renamed: dict[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Rename the published layer scales to timm's, or multiply them into the layer that they scale."""
    folded = 0
    for name in list(renamed):
        match = re.fullmatch(r"(vit\.blocks\.\d+\.)(gamma[12])", name)
        if match is None:
            continue
        timm_name, layer = _SCALED[match[2]]
        gamma = renamed.pop(name)
        if match[1] + timm_name in own:
            renamed[match[1] + timm_name] = gamma
            continue
        for kind in ("weight", "bias"):
            target = f"{match[1]}{layer}.{kind}"
            if target in renamed:
                value = renamed[target]
                renamed[target] = value * gamma.view(-1, *[1] * (value.dim() - 1))
        folded += 1
    return [f"{folded} layer scales multiplied into the layers before them"] if folded else []


def _fit_grid(renamed: dict[str, Tensor], own: Mapping[str, Tensor], vit: TimmViT) -> tuple[str, ...]:
    name = "vit.pos_embed"
    if name not in renamed or name not in own or renamed[name].shape == own[name].shape:
        return ()
    fitted = fit_positions(renamed[name], vit)
    if fitted is None:
        return ()
    renamed[name] = fitted
    return (name,)


def _set_aside_other_norms(renamed: dict[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """A group norm's scale has a batch norm's shape but not its meaning: such pairs count as unexpected."""
    modules = {name.rpartition(".")[0] for name in (*renamed, *own) if name.endswith(_STATISTIC)}
    other = [module for module in modules if (f"{module}.{_STATISTIC}" in renamed) != (f"{module}.{_STATISTIC}" in own)]
    taken = 0
    for module in other:
        for kind in ("weight", "bias"):
            if f"{module}.{kind}" in renamed and f"{module}.{kind}" in own:
                renamed[f"{module}.{kind} (of another norm)"] = renamed.pop(f"{module}.{kind}")
                taken += 1
    return (
        [f"{len(other)} norms are of another kind than MODEL.VIT_ADAPTER.NORM and keep their values"] if taken else []
    )
