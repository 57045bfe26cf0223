"""The supernodes of one picture at one layer, and the Merge step (Eq. 5)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from s2uniseg_d2.core.labelers.rounding import UNIT
from s2uniseg_d2.core.labelers.voters import Voters

# A float32 vote that is certified no better than this is repeated in float64.
WORST_ERROR = 1e-2
# Tokens summed at a time, in float64.
SUM_CHUNK = 1024


class Supernodes(NamedTuple):
    """s regions of a picture at one layer.

    Attributes:
        sizes: ``(s,)`` int64 tokens per region.
        sums: ``(s, d)`` float64 R = M F; None before the first layer, where R and U follow from the voters.
        means: ``(s, d)`` float32 U = R / size, rounded.
        features: ``(s, d)`` float32 V.
        errors: ``(s,)`` float64 bound on the Euclidean error of each row of ``features``.
    """

    sizes: Tensor
    sums: Tensor | None
    means: Tensor
    features: Tensor
    errors: Tensor


class Region(NamedTuple):
    """How Eq. 5 reads a region: the softmax temperature σ, and whether the affinities of its tokens are averaged."""

    sigma: float
    affinity: str


def place_tokens(voters: Voters, sizes: Tensor) -> Supernodes:
    """Return the nodes before the first layer: V = U = F, one node per voter."""
    errors = torch.full_like(sizes, 2 * UNIT, dtype=torch.float64)
    return Supernodes(sizes, None, voters.rows, voters.rows, errors)


def merge(nodes: Supernodes, labels: Tensor, count: int, voters: Voters, region: Region) -> Supernodes:
    """Return the supernodes of a partition of the nodes.

    Source: Eq. 4 (right) and Eq. 5. A supernode's V depends on its mask alone, so one that stays as it is keeps its V;
    tokens become supernodes in the first layer and all get theirs then.

    Args:
        nodes: s nodes.
        labels: ``(s,)`` int64 group of each node in [0, count), no group empty.
        count: number of groups.
        voters: the picture's tokens.
        region: how Eq. 5 is read.
    """
    d = voters.width
    sums = torch.zeros(count, d, dtype=torch.float64, device=labels.device)
    if nodes.sums is None:
        for start in range(0, labels.numel(), SUM_CHUNK):
            part = slice(start, start + SUM_CHUNK)
            sums.index_add_(0, labels[part], voters.exact(part) * nodes.sizes[part, None])
    else:
        sums.index_add_(0, labels, nodes.sums)
    sizes = torch.zeros(count, dtype=torch.int64, device=labels.device).index_add_(0, labels, nodes.sizes)
    means = (sums / sizes[:, None]).float()
    features = torch.empty(count, d, dtype=torch.float32, device=labels.device)
    errors = torch.empty(count, dtype=torch.float64, device=labels.device)
    changed = torch.ones(count, dtype=torch.bool, device=labels.device)
    if nodes.sums is not None:
        changed = torch.bincount(labels, minlength=count) > 1
        kept = ~changed[labels]
        features[labels[kept]], errors[labels[kept]] = nodes.features[kept], nodes.errors[kept]
    index = changed.nonzero()[:, 0]
    features[index], errors[index] = _elect(sums[index], sizes[index], voters, region)
    return Supernodes(sizes, sums, means, features, errors)


def select(nodes: Supernodes, index: Tensor) -> Supernodes:
    """Return the chosen nodes of a layer after the first merge."""
    return Supernodes(*(None if values is None else values[index] for values in nodes))  # type: ignore[arg-type]


def exact_means(nodes: Supernodes, index: Tensor, voters: Voters) -> Tensor:
    """Return U of the chosen nodes in float64."""
    return voters.exact(index) if nodes.sums is None else nodes.sums[index] / nodes.sizes[index, None]


def exact_features(nodes: Supernodes, index: Tensor, voters: Voters, region: Region) -> Tensor:
    """Return V of the chosen nodes in float64."""
    if nodes.sums is None:
        return voters.exact(index)
    return voters.elect(_queries(nodes.sums[index], nodes.sizes[index], region))[0]


def _queries(sums: Tensor, sizes: Tensor, region: Region) -> Tensor:
    return (sums / sizes[:, None] if region.affinity == "mean" else sums) / region.sigma


def _elect(sums: Tensor, sizes: Tensor, voters: Voters, region: Region) -> tuple[Tensor, Tensor]:
    """Eq. 5 in float32, and in float64 where float32 certifies too little."""
    queries = _queries(sums, sizes, region)
    features, errors = voters.elect(queries.float())
    poor = (errors > WORST_ERROR).nonzero()[:, 0]
    if poor.numel():
        features[poor] = voters.elect(queries[poor])[0].float()
        errors[poor] = 2 * UNIT
    return features, errors
