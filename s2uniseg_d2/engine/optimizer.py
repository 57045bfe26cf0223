"""AdamW with the parameter groups and the clipping of the recipe."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

# plain parameters that are positions, tokens or scales: they are not decayed, like norms, biases and embeddings
_UNDECAYED_NAMES = ("pos_embed", "cls_token", "reg_token", "level_embed", "gamma", "query_type")
LAST_LAYER = "student_head.last_layer."
_BLOCK = re.compile(r"(?:^|\.)vit\.blocks\.(\d+)\.")


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters, one group per (rate, decay, last layer) and with full-model clipping.

    Source: Mask2Former's recipe (no decay on norms and embeddings, one gradient norm for the whole model).
    The paper is silent beyond AdamW and the rate: the ViT learns at ``SOLVER.VIT_LR_FACTOR`` of it, adapter, decoder
    and heads at the full rate. Each block of the ViT learns at ``SOLVER.VIT_LAYER_DECAY`` of the rate of the block
    after it, the embeddings at that of a block before the first. The model may be any that holds the backbone.
    """
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    blocks = [int(found[1]) for name, _ in model.named_parameters() if (found := _BLOCK.search(name))]
    depth = max(blocks, default=-1) + 1
    for name, parameter, module in _trainable(model):
        lr = cfg.SOLVER.BASE_LR * _vit_factor(name, depth, cfg.SOLVER.VIT_LR_FACTOR, cfg.SOLVER.VIT_LAYER_DECAY)
        kind = (lr, is_decayed(name, parameter, module), name.startswith(LAST_LAYER))
        groups.setdefault(kind, []).append(parameter)
    parameters = [
        {
            "params": members,
            "lr": lr,
            "weight_decay": cfg.SOLVER.WEIGHT_DECAY if decayed else 0.0,
            "is_decayed": decayed,
            "is_last_layer": is_last_layer,
        }
        for (lr, decayed, is_last_layer), members in groups.items()
    ]
    optimizer_class = with_full_model_clipping(torch.optim.AdamW, cfg.SOLVER.FULL_MODEL_CLIP_NORM)
    return optimizer_class(parameters, lr=cfg.SOLVER.BASE_LR)


def _vit_factor(name: str, depth: int, factor: float, decay: float) -> float:
    """A parameter's share of the full rate; 1 outside of the ViT."""
    _, vit, inside = f".{name}".rpartition(".vit.")
    if not vit:
        return 1.0
    found = _BLOCK.search(name)
    behind = depth - 1 - int(found[1]) if found else 0 if inside.startswith("norm.") else depth
    return factor * decay**behind


def is_decayed(name: str, parameter: nn.Parameter, module: nn.Module) -> bool:
    """Whether a parameter takes weight decay: matrices and kernels do; norms, biases, embeddings and tokens do not."""
    leaf = name.rsplit(".", 1)[-1]
    return parameter.ndim > 1 and not isinstance(module, nn.Embedding) and leaf not in _UNDECAYED_NAMES


def _trainable(model: nn.Module) -> list[tuple[str, nn.Parameter, nn.Module]]:
    seen: set[int] = set()
    found = []
    for module_name, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                found.append((f"{module_name}.{leaf}" if module_name else leaf, parameter, module))
    return found


def with_full_model_clipping(optimizer_class: type[torch.optim.AdamW], max_norm: float) -> type[torch.optim.AdamW]:
    """The optimizer class with the joint gradient norm of all parameters clipped before every step.

    Detectron2's own clipper knows only norms per parameter. Clipping in ``step`` comes after a gradient scaler has
    unscaled. ``max_norm`` 0 clips nothing. A norm that is not finite raises a FloatingPointError before anything is
    changed, gradients included, so that they can be looked at: a finite loss can have such a gradient, and one step
    with it would spoil weights, teacher and checkpoint.
    Reading the norm is a host round trip, beside the one that reads the losses. It stays in ``gradient_norm``, as it
    was before clipping.
    """

    def step(self: torch.optim.AdamW, closure: Callable[[], float] | None = None) -> Any:
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self.gradient_norm = _clip(parameters, max_norm or float("inf"))  # type: ignore[attr-defined]
        return optimizer_class.step(self, closure)

    return type(
        f"{optimizer_class.__name__}WithFullModelClipping", (optimizer_class,), {"step": step, "gradient_norm": None}
    )


def _clip(parameters: list[torch.Tensor], max_norm: float) -> torch.Tensor:
    try:
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm, error_if_nonfinite=True)
    except RuntimeError as error:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        if norm.isfinite():
            raise
        raise FloatingPointError(f"gradient norm = {float(norm)}") from error
