"""What the losses of one optimizer step are divided by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from s2uniseg_d2.core.losses.normalizer import mean_over_ranks
from s2uniseg_d2.core.losses.objectness import summed_weight
from s2uniseg_d2.core.structures import TargetMasks


class Normalizers(NamedTuple):
    """Divisors with which the ranks' mean losses are means over the pairs, or queries, of all pictures of a step.

    Attributes:
        pairs: by query group, matched pairs of mask losses, at least 1.
        weights: by query group, summed weight of the queries in the objectness loss.
        all_pairs: of all groups, at least 1.
    """

    pairs: dict[str, Tensor]
    weights: dict[str, Tensor]
    all_pairs: Tensor


def count_normalizers(
    targets: Mapping[str, TargetMasks],
    num_queries: Mapping[str, int],
    no_object_weight: float,
    device: torch.device,
) -> Normalizers:
    """The divisors of a batch, known before anything is predicted; one message between the ranks.

    Each view gives as many pairs as there are targets, or queries if those are fewer.

    Args:
        targets: by query group, of all views.
        num_queries: by query group, in each view.
        no_object_weight: of unmatched queries.
        device: where the process group communicates.
    """
    pairs = [sum(min(num_queries[group], count) for count in masks.counts) for group, masks in targets.items()]
    queries = [num_queries[group] * len(masks.counts) for group, masks in targets.items()]
    means = mean_over_ranks([*pairs, *queries], device)
    found, asked = means[: len(pairs)], means[len(pairs) :]
    weights = summed_weight(found, asked, no_object_weight)
    return Normalizers(
        pairs=dict(zip(targets, found.clamp(min=1.0), strict=True)),
        weights=dict(zip(targets, weights, strict=True)),
        all_pairs=found.sum().clamp(min=1.0),
    )
