"""The supernodes of one picture at one layer, and the Merge step (Eq. 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from s2uniseg_d2.core.labelers.rounding import UNIT
from s2uniseg_d2.core.labelers.rows import ROW_CHUNK, sum_rows, take_rows
from s2uniseg_d2.core.labelers.voters import Voters

# A float32 vote that is certified no better than this is repeated in float64.
WORST_ERROR = 1e-2


class Supernodes(NamedTuple):
    """s regions of a picture at one layer.

    Attributes:
        sizes: ``(s,)`` int64 tokens per region.
        members: ``(t,)`` int64 region of every token (or block of equal ones), -1 for none.
        sums: ``(s, d)`` float64 R = M F, rounded as :func:`sum_rows` does; None before the first layer.
        means: ``(s, d)`` float32 U = R / size, rounded.
        features: ``(s, d)`` float32 V.
        errors: ``(s,)`` float64 bound on the Euclidean error of each row of ``features``.
        affinities: ``(s, k)`` float64 R Fᵀ, summed over :attr:`.voters.Voters.affinities`; None before the first layer
            and where the voters have none.
    """

    sizes: Tensor
    members: Tensor
    sums: Tensor | None
    means: Tensor
    features: Tensor
    errors: Tensor
    affinities: Tensor | None = None


class Region(NamedTuple):
    """How Eq. 5 reads a region: the softmax temperature σ, and whether the affinities of its tokens are averaged."""

    sigma: float
    affinity: str


def place_tokens(voters: Voters) -> Supernodes:
    """Return the nodes before the first layer: V = U = F, one node per token."""
    tokens = voters.tokens
    errors = torch.full_like(tokens.weights, 4 * UNIT)
    members = torch.arange(len(tokens), device=tokens.rows.device)
    return Supernodes(tokens.sizes, members, None, tokens.rows, tokens.rows, errors)


def merge(nodes: Supernodes, labels: Tensor, count: int, voters: Voters, region: Region | None) -> Supernodes:
    """Return the supernodes of a partition of the nodes.

    Source: Eq. 4 (right) and Eq. 5. A supernode's V depends on its mask alone, so one that stays as it is keeps its V;
    tokens become supernodes in the first layer and all get theirs then.

    Args:
        nodes: s nodes.
        labels: ``(s,)`` int64 group of each node in [0, count), no group empty.
        count: number of groups.
        voters: of the picture.
        region: how Eq. 5 is read; None leaves the V of new supernodes to :func:`complete`: their error is infinite.
    """
    d = voters.width
    affinities = voters.affinities if nodes.sums is None else nodes.affinities
    if nodes.sums is None:
        whole = bool((nodes.sizes == 1).all())
        rows = voters.tokens.rows
        sums = sum_rows(rows if whole else rows * nodes.sizes[:, None], labels, count)
        if affinities is not None:
            affinities = sum_rows(affinities if whole else affinities * nodes.sizes[:, None], labels, count)
    else:
        sums = _add_rows(nodes.sums, labels, count)
        if affinities is not None:
            affinities = _add_rows(affinities, labels, count)
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
    members = torch.cat([labels, labels.new_tensor([-1])])[nodes.members]
    merged = Supernodes(sizes, members, sums, means, features, errors, affinities)
    if region is None:
        errors[index] = torch.inf
    else:
        _elect([(merged, index)], voters, region)
    return merged


def complete(waiting: Sequence[tuple[Supernodes, Tensor]], voters: Voters, region: Region) -> None:
    """Compute in one go, in place, each V that :func:`merge` left open among the chosen nodes of some layers."""
    _elect([(nodes, index[nodes.errors[index].isinf()]) for nodes, index in waiting], voters, region)


def select(nodes: Supernodes, index: Tensor) -> Supernodes:
    """Return the chosen nodes of a layer after the first merge."""
    assert nodes.sums is not None
    return Supernodes(
        nodes.sizes[index],
        _renumber(nodes, index),
        take_rows(nodes.sums, index),
        take_rows(nodes.means, index),
        take_rows(nodes.features, index),
        nodes.errors[index],
        None if nodes.affinities is None else take_rows(nodes.affinities, index),
    )


def mean_affinities(nodes: Supernodes, index: Tensor) -> Tensor | None:
    """Return U·F of the chosen nodes, ``(n, k)`` float32, where it is known without a product; else None."""
    if nodes.affinities is None:
        return None
    return take_rows(nodes.affinities, index).div_(nodes.sizes[index, None]).float()


def _add_rows(rows: Tensor, labels: Tensor, count: int) -> Tensor:
    """The sums of float64 rows by label."""
    return rows.new_zeros(count, rows.shape[1]).index_add_(0, labels, rows)


def refine(nodes: Supernodes, index: Tensor, voters: Voters, region: Region) -> None:
    """Compute V of the chosen nodes anew, in place, where that makes its error smaller; not before the first layer."""
    queries = _exact_queries(nodes, index, voters, region, exact=False)
    features, errors = voters.elect(queries, _reach(nodes.sizes[index], region), exact=False)
    errors += 2 * UNIT
    # A long query, of a sum, may have an exact vote already.
    better = errors < nodes.errors[index]
    nodes.features[index[better]], nodes.errors[index[better]] = features[better].float(), errors[better]


def exact_means(nodes: Supernodes, index: Tensor, voters: Voters, exact: bool = True) -> Tensor:
    """Return U of the chosen nodes in float64: of exact tokens, or of rounded ones at a fraction of the cost."""
    if nodes.sums is None:
        return voters.tokens.exact(index)
    return _exact_sums(nodes, index, voters, exact) / nodes.sizes[index, None]


def exact_features(nodes: Supernodes, index: Tensor, voters: Voters, region: Region) -> Tensor:
    """Return V of the chosen nodes in float64."""
    if nodes.sums is None:
        return voters.tokens.exact(index)
    return voters.elect(_exact_queries(nodes, index, voters, region))[0]


def _exact_sums(nodes: Supernodes, index: Tensor, voters: Voters, exact: bool = True) -> Tensor:
    number_of_token = _renumber(nodes, index)
    sums = torch.zeros(index.numel(), voters.width, dtype=torch.float64, device=index.device)
    for part in torch.split((number_of_token >= 0).nonzero()[:, 0], ROW_CHUNK):
        rows = voters.tokens.exact(part) if exact else voters.tokens.rows[part].double()
        sums.index_add_(0, number_of_token[part], rows * voters.tokens.sizes[part, None])
    return sums


def _exact_queries(nodes: Supernodes, index: Tensor, voters: Voters, region: Region, exact: bool = True) -> Tensor:
    return _queries(_exact_sums(nodes, index, voters, exact), nodes.sizes[index], region)


def _renumber(nodes: Supernodes, index: Tensor) -> Tensor:
    """The members by place in ``index``, -1 for those of other nodes."""
    number = torch.full((nodes.sizes.numel() + 1,), -1, device=index.device)  # the last is for tokens of no node
    number[index] = torch.arange(index.numel(), device=index.device)
    return number[nodes.members]


def _queries(sums: Tensor, sizes: Tensor, region: Region) -> Tensor:
    return (sums / sizes[:, None] if region.affinity == "mean" else sums) / region.sigma


def _reach(sizes: Tensor, region: Region) -> Tensor:
    """The norms that queries would have if all tokens of each region agreed, float64."""
    return (torch.ones_like(sizes) if region.affinity == "mean" else sizes).double() / region.sigma


def _elect(chosen: Sequence[tuple[Supernodes, Tensor]], voters: Voters, region: Region) -> None:
    """Eq. 5 of the chosen nodes, in place: in float32, and in float64 where float32 certifies too little."""
    queries, reaches, logits = [], [], []
    for nodes, index in chosen:
        assert nodes.sums is not None
        sizes = nodes.sizes[index]
        queries.append(_queries(take_rows(nodes.sums, index), sizes, region).float())
        reaches.append(_reach(sizes, region))
        if nodes.affinities is not None:
            logits.append(_queries(take_rows(nodes.affinities, index), sizes, region).float())
    counts = [len(index) for _, index in chosen]
    elected = voters.elect(torch.cat(queries), torch.cat(reaches), logits=torch.cat(logits) if logits else None)
    parts = (torch.split(values, counts) for values in elected)
    for (nodes, index), features, errors in zip(chosen, *parts, strict=True):
        poor = (errors > WORST_ERROR).nonzero()[:, 0]
        if poor.numel():
            features[poor] = exact_features(nodes, index[poor], voters, region).float()
            errors[poor] = 2 * UNIT
        nodes.features[index], nodes.errors[index] = features, errors
