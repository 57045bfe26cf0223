"""Our backbone in the scripts of others: what ``install`` adds to Detectron2 before such a script runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import detectron2.config.defaults as d2_defaults
import detectron2.engine as d2_engine
import detectron2.engine.defaults as d2_trainer
import detectron2.solver as d2_solver
import detectron2.solver.build as d2_solver_build
import torch
import yaml
from detectron2.config import CfgNode
from torch import nn

import s2uniseg_d2.modeling  # noqa: F401  (registers)
from s2uniseg_d2.config import add_backbone_config

from .optimizer import build_optimizer as build_adamw

OPTIMIZERS = ("SGD", "AdamW")


def add_transfer_config(cfg: CfgNode) -> None:
    """Add the keys of the backbone and of its optimizer to a Detectron2 config, in place; change none that is there."""
    add_backbone_config(cfg)
    cfg.SOLVER.OPTIMIZER = "SGD"  # Detectron2's own; AdamW is that of engine/optimizer.py and reads the next three keys
    cfg.SOLVER.VIT_LR_FACTOR = 1.0  # of the ViT's parameters; all others take BASE_LR
    cfg.SOLVER.VIT_LAYER_DECAY = 1.0  # of that rate from each block to the one before it
    cfg.SOLVER.FULL_MODEL_CLIP_NORM = 0.0  # gradient norm of all parameters together; 0 is off


def install() -> None:
    """Make Detectron2 know the backbone, its keys and AdamW, in this process and in those that ``launch`` starts.

    Call it before the script's imports from Detectron2, or let ``python -m s2uniseg_d2.transfer SCRIPT`` do so. All
    defaults of Detectron2 stay as they are, with one exception: config files that would run code are refused, unless
    the script itself passes ``allow_unsafe=True``. A second call changes nothing.
    """
    if "VIT" in d2_defaults._C.MODEL:
        return
    add_transfer_config(d2_defaults._C)
    CfgNode.merge_from_file = _refuse_unsafe(CfgNode.merge_from_file)
    chooser = _choose_optimizer(d2_solver_build.build_optimizer)
    for module in (d2_solver_build, d2_solver, d2_trainer):
        module.build_optimizer = chooser
    d2_engine.launch = _launch_installed(d2_engine.launch)


def _refuse_unsafe(merge: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(merge)
    def merge_from_file(self: CfgNode, cfg_filename: str, allow_unsafe: bool = False) -> None:
        try:
            merge(self, cfg_filename, allow_unsafe=allow_unsafe)
        except yaml.constructor.ConstructorError as error:
            raise ValueError(
                f"config file {cfg_filename} or a _BASE_ of it holds more than plain values, which could run code: "
                f"{' '.join(str(error).split())}"
            ) from error

    return merge_from_file


def _choose_optimizer(build: Callable[..., torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    @functools.wraps(build)
    def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        if cfg.SOLVER.OPTIMIZER not in OPTIMIZERS:
            raise ValueError(f"SOLVER.OPTIMIZER must be one of {', '.join(OPTIMIZERS)}, got {cfg.SOLVER.OPTIMIZER!r}")
        if cfg.SOLVER.OPTIMIZER == "SGD":
            return build(cfg, model)
        if cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
            raise ValueError(
                "SOLVER.CLIP_GRADIENTS.ENABLED must be False with SOLVER.OPTIMIZER AdamW, which clips by "
                "SOLVER.FULL_MODEL_CLIP_NORM, got True"
            )
        return build_adamw(cfg, model)

    return build_optimizer


class InstalledMain(NamedTuple):
    """A script's main function that can be sent to a fresh process and calls :func:`install` there first."""

    main: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        """Install, then call it."""
        install()
        return self.main(*args)


def _launch_installed(launch: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(launch)
    def launch_installed(main_func: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        launch(InstalledMain(main_func), *args, **kwargs)

    return launch_installed
