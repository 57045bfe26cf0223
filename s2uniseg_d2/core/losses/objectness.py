"""The loss that teaches queries to say whether they hold an object."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from s2uniseg_d2.core.structures import Match

OBJECT, NO_OBJECT = 0, 1


def summed_weight(num_pairs: Tensor, num_queries: Tensor, no_object_weight: float) -> Tensor:
    """The summed weight of queries of which ``num_pairs`` are matched: matched ones weigh 1, others less."""
    return num_pairs + no_object_weight * (num_queries - num_pairs)


def objectness_loss(
    logits: Tensor, match: Match, no_object_weight: float = 0.1, *, normalizer: Tensor | float
) -> Tensor:
    """Weighted cross-entropy of "matched" against "unmatched", summed over all queries, a float32 scalar.

    Source: Mask2Former's class loss with a single class; divided by the queries' summed weight it is the weighted mean,
    as that of torch's ``cross_entropy`` with class weights. Differs from Mask2Former: its mean is each process's own,
    so that the loss would depend on how pictures are shared out. Differs from the paper: it names no objectness loss,
    because it does not say how predictions are ranked; average precision needs a ranking. With no pairs every query
    learns "no object".

    Args:
        logits: ``(b, q, 2)``, index 0 object, index 1 no object.
        match: the pairs; their queries are objects.
        no_object_weight: weight of unmatched queries, greater than 0.
        normalizer: the step's ``summed_weight``, see ``mean_over_ranks``.

    Raises:
        ValueError: if ``logits`` do not end in two classes or the weight is not positive.
    """
    if logits.dim() != 3 or logits.shape[-1] != 2:
        raise ValueError(f"logits must have shape (b, q, 2), got {tuple(logits.shape)}")
    if not no_object_weight > 0:
        raise ValueError(f"no_object_weight must be greater than 0, got {no_object_weight}")
    if logits.numel() == 0:
        return logits.float().sum()
    labels = torch.full((logits.shape[0] * logits.shape[1],), NO_OBJECT, dtype=torch.int64, device=logits.device)
    # both made on the device by filling: a copy from the host would wait for it
    labels.index_fill_(0, match.image * logits.shape[1] + match.query, OBJECT)
    weight = torch.ones(2, device=logits.device)
    weight[NO_OBJECT].fill_(no_object_weight)
    total = functional.cross_entropy(logits.float().flatten(0, 1), labels, weight=weight, reduction="sum")
    return total / normalizer
