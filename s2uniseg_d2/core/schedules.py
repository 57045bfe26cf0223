"""Values that change over a run, as functions of where it stands and of nothing that came before."""

from __future__ import annotations

import math


def cosine(progress: float, start: float, end: float) -> float:
    """A value that goes from ``start`` to ``end`` along half a cosine, slowly at both ends and exact there.

    Source: DINO (arXiv 2104.14294), whose teacher momentum follows it; the paper is silent.

    Args:
        progress: share of the run that is over, in [0, 1].
        start: value at 0.
        end: value at 1.

    Raises:
        ValueError: if ``progress`` is outside [0, 1].
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress must lie in [0, 1], got {progress}")
    if start == end:
        return start  # the sum below can miss it by a last bit
    share = (1.0 + math.cos(math.pi * progress)) / 2.0
    return share * start + (1.0 - share) * end


def ramp(iteration: int, iters: int, start: float, end: float) -> float:
    """A value that goes straight from ``start`` to ``end`` over the first ``iters`` iterations and stays there.

    Source: DINO (arXiv 2104.14294), whose teacher's temperature is warmed up so; the paper is silent.

    Args:
        iteration: from 0.
        iters: the first iteration at ``end``; 0 is ``end`` throughout.
        start: value at 0.
        end: value from ``iters`` on.

    Raises:
        ValueError: if ``iteration`` or ``iters`` is negative.
    """
    if min(iteration, iters) < 0:
        raise ValueError(f"iteration and iters must not be negative, got {iteration} and {iters}")
    return end if iteration >= iters else start + (end - start) * iteration / iters


def warmup_then_cosine(iteration: float, *, warmup_iters: int, total_iters: int, start: float, end: float) -> float:
    """A multiplier that goes straight from ``start`` to 1, then along half a cosine to ``end``.

    Source: "linearly warmed up to 0.000625 for 10k iterations"; the paper is silent on what follows. Differs from
    Detectron2's ``WarmupCosineLR``, whose warm-up ends where a cosine over the whole run would be, below the rate.

    Args:
        iteration: from 0 to ``total_iters``.
        warmup_iters: the iteration at 1; a run that is shorter ends in its warm-up.
        total_iters: the iteration at ``end``.
        start: value at 0.
        end: value at ``total_iters``.

    Raises:
        ValueError: if ``iteration`` lies beyond ``total_iters``.
    """
    if iteration < warmup_iters:
        return start + (1.0 - start) * iteration / warmup_iters
    if iteration > total_iters:
        raise ValueError(f"iteration must not lie beyond total_iters {total_iters}, got {iteration}")
    return cosine((iteration - warmup_iters) / max(total_iters - warmup_iters, 1), 1.0, end)
