"""Random points without a generator's state.

Axes: b views, m matched pairs, p points.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from s2uniseg_d2.core.ops.mixing import mix64

_STEP = 0x9E3779B97F4A7C15 - 2**64  # SplitMix64's increment, as a signed 64-bit number
_BITS = 24  # of a float32 in [0, 1)


class PointSource(Protocol):
    """Gives uniform points of the unit square for masks of views."""

    def __call__(self, views: Tensor, start: int, count: int) -> Tensor:
        """Points ``start`` to ``start + count - 1`` of each mask, ``(m, count, 2)`` float32 in [0, 1).

        Args:
            views: ``(m,)`` int64, the view of each mask.
            start: points that were taken before, for masks of these or of other views.
            count: points per mask.
        """
        ...


class KeyedPoints:
    """Points that depend on their view's key and their number alone.

    A batch's points are therefore the same whatever the number of processes or parts that share it and wherever the run
    was stopped and resumed, and neither the host nor another rank has to be asked. All masks of a view get the same
    points.

    Source: SplitMix64, a counter whose numbers are mixed; see ``core.ops.mixing``.

    Args:
        keys: ``(b,)`` int64, unrelated numbers such as ``core.draws.seed_at`` makes; on the device of the masks.
    """

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys

    def at(self, place: int) -> KeyedPoints:
        """Unrelated points of the same views, such as those after another decoder layer."""
        return KeyedPoints(mix64(self.keys ^ (place + 1)))

    def __call__(self, views: Tensor, start: int, count: int) -> Tensor:
        """See ``PointSource``."""
        numbers = torch.arange(start + 1, start + count + 1, device=self.keys.device)
        # (b, p): one mixed number holds both coordinates
        mixed = mix64(self.keys[:, None] + numbers * _STEP)
        x, y = (mixed >> (64 - _BITS)) & (2**_BITS - 1), mixed & (2**_BITS - 1)
        points: Tensor = torch.stack([x, y], dim=-1).float() * 2.0**-_BITS
        return points[views]
