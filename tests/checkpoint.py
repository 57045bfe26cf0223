"""A checkpoint of the tiny model as a training run leaves it: weights and config in one folder."""

from __future__ import annotations

from pathlib import Path

import torch
from detectron2.modeling import build_model

import s2uniseg_d2.modeling  # noqa: F401  (registers the model)
from tests.tiny import tiny_config


def write_checkpoint(folder: Path, change=lambda state: None, **settings) -> Path:
    """Write ``model_final.pth`` and ``config.yaml``; ``change`` may alter the weights by name before."""
    folder.mkdir(parents=True, exist_ok=True)
    cfg = tiny_config(**settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = build_model(cfg).state_dict()
    change(state)
    torch.save({"model": state}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder / "model_final.pth"
