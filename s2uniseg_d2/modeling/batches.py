"""What keeps a picture's labels and draws independent of the batch that it comes in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from s2uniseg_d2.core.draws import seed_at
from s2uniseg_d2.core.ops.transfer import to_device

# what the draws of a view are for, see core.draws
_POINTS = 1


def places_by_padding(batch: Sequence[Mapping[str, Any]], divisibility: int, at_once: int = 0) -> list[list[int]]:
    """The places of a batch, those together whose ``image`` needs no more padding than it would alone.

    A ViT's tokens look at padding too: a picture that was padded to the size of its neighbours would have labels that
    depend on them, and so on how a batch is shared out to processes.

    Args:
        batch: items with ``image`` ``(3, H, W)``.
        divisibility: of the sides of what the encoder takes, in pixels.
        at_once: most places to go together; 0 sets no limit.
    """
    places: dict[tuple[int, ...], list[int]] = {}
    for place, item in enumerate(batch):
        padded = tuple(-(-side // divisibility) for side in item["image"].shape[-2:])
        places.setdefault(padded, []).append(place)
    return [
        alike[start : start + (at_once or len(alike))]
        for alike in places.values()
        for start in range(0, len(alike), at_once or len(alike))
    ]


def view_keys(batch: Sequence[Mapping[str, Any]], seed: int, device: torch.device) -> Tensor:
    """An unrelated number for every view, int64, by the seed, the picture's ``draw`` and the view's number in it.

    Without ``draw``, its place in the training stream, a picture's place in the batch is taken.
    """
    keys = [
        seed_at(seed, int(item.get("draw", place)), view, _POINTS)
        for place, item in enumerate(batch)
        for view in range(len(item["views"]))
    ]
    return to_device(torch.tensor(keys, dtype=torch.int64), device)
