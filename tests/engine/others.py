"""What a process started by someone else's script does; importable, so that a fresh process finds it."""

from __future__ import annotations

from pathlib import Path


def write_defaults(path: str) -> None:
    from detectron2.config import get_cfg

    cfg = get_cfg()
    Path(path).write_text(f"{cfg.MODEL.VIT.NAME} {cfg.MODEL.META_ARCHITECTURE} {cfg.INPUT.FORMAT}")
