"""Checkpoints that load without running code and refuse what is no S2-UniSeg."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer

from s2uniseg_d2.core.trunks.weights import READ_ERRORS

logger = logging.getLogger(__name__)


class SafeCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, reading ``.pth`` files with ``weights_only=True`` and nothing else.

    A file of another model is refused when less than half of this model's tensors are in it, instead of training or
    evaluating random weights in silence.
    """

    def _load_file(self, filename: str) -> dict[str, Any]:
        if not Path(filename).is_file():
            raise ValueError(f"weights file does not exist: {filename}")
        try:
            content = torch.load(filename, map_location="cpu", weights_only=True)
        except READ_ERRORS as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"weights file {filename} is no readable PyTorch checkpoint: {reason}") from error
        if not isinstance(content, dict):
            raise ValueError(f"weights file {filename} must hold a dictionary, got {type(content).__name__}")
        state = content.get("model", content)
        if not isinstance(state, dict):
            raise ValueError(f"weights file {filename} must hold tensors by name, got {type(state).__name__}")
        self._refuse_foreign(filename, state)
        return content if "model" in content else {"model": state}

    def _refuse_foreign(self, filename: str, state: Any) -> None:
        ours = self.model.state_dict()
        tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
        known = [name for name, value in tensors.items() if name in ours and ours[name].shape == value.shape]
        logger.info("%s: %d of this model's %d tensors are in it", filename, len(known), len(ours))
        if 2 * len(known) < len(ours):
            examples = ", ".join(list(tensors)[:3]) or "no tensors"
            raise ValueError(
                f"weights file {filename} does not fit this model: {len(known)} of {len(ours)} tensors have its names "
                f"and shapes (it holds {examples}); a DINO checkpoint of the ViT alone goes to MODEL.VIT.WEIGHTS"
            )
