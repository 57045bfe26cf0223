"""Values that change over a run."""

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
    share = (1.0 + math.cos(math.pi * progress)) / 2.0
    return share * start + (1.0 - share) * end
