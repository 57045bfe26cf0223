"""The student's pass as one compiled function."""

from __future__ import annotations

from typing import Any

import torch

from .s2uniseg import S2UniSeg


def compile_student(model: S2UniSeg, backend: str = "inductor") -> None:
    """Let ``torch.compile`` run the student's trunk and decoder in training, from views to predictions, as one graph.

    The first step takes minutes. Names of parameters stay as they are. Random draws (stochastic depth) are those of the
    uncompiled model. The teacher's pass and inference are left alone: their pictures come in dozens of sizes, each of
    which would be compiled anew.

    Args:
        model: changed in place.
        backend: of ``torch.compile``; "inductor" writes kernels and needs a C++ compiler.
    """
    options: dict[str, Any] | None = {"fallback_random": True} if backend == "inductor" else None
    compiled = torch.compile(model.student_pass, backend=backend, dynamic=False, options=options)
    model.student_pass = compiled  # type: ignore[method-assign]
