"""Bipartite matching of student queries and teacher masks.

Axes: b views, q queries, n masks of all views together, m matched pairs, h and w rows and columns of the stride-4 grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from s2uniseg_d2.core.ops.mixing import mix64
from s2uniseg_d2.core.ops.transfer import to_device
from s2uniseg_d2.core.structures import Match, TargetMasks


class MatchingProblem(NamedTuple):
    """Queries and targets that are to be paired, view by view.

    Attributes:
        logits: ``(b, q, h, w)`` mask logits.
        targets: of the same b views, on the same grid.
    """

    logits: Tensor
    targets: TargetMasks


def dice_cost(logits: Tensor, truth: Tensor, targets: TargetMasks) -> Tensor:
    """One minus the Dice similarity of every target and every query of its view, ``(q, n)`` float32 in [0, 1].

    Source: the matching criterion of Mask2Former, its Dice part, on all pixels; one is added to numerator and
    denominator, so that two empty masks cost nothing. Computed in float32 also under mixed precision.

    Args:
        logits: ``(b, q, h, w)``.
        truth: ``(n, h * w)`` float32, the masks of ``targets`` as :func:`flat_truth` gives them, which problems share.
        targets: column j of the result belongs to row j of them.
    """
    # sums over thousands of pixels overflow or lose their ends in half precision
    with torch.autocast(logits.device.type, enabled=False):
        probabilities = logits.float().sigmoid().flatten(2)
        # one product per view: padded to the most masks of a view, a batched product costs more than it saves
        products = [truth.new_empty(logits.shape[1], 0)]
        for view, masks in zip(probabilities, truth.split_with_sizes(targets.counts), strict=True):
            products.append(view @ masks.T)
        overlap = torch.cat(products, dim=1)
        total = probabilities.sum(dim=2).T[:, targets.views] + truth.sum(dim=1)
    return 1.0 - (2.0 * overlap + 1.0) / (total + 1.0)


def flat_truth(targets: TargetMasks) -> Tensor:
    """The masks as ``(n, h * w)`` float32."""
    return targets.masks.flatten(1).float()


@torch.no_grad()
def match_masks(problems: Mapping[str, MatchingProblem]) -> dict[str, Match]:
    """The one-to-one pairs of queries and targets with the least summed Dice cost, view by view, of every problem.

    Source: "Cropped Bipartite Matching" of the paper: mask Dice similarity alone is the criterion. ``min(q, n_i)``
    pairs come out of view i; surplus targets and queries stay unmatched. The paper is silent on views without masks:
    they have no pairs. It is silent on equal sums, which are common, because masks of two levels can look the same in a
    view: of equal masks the first take part, the first query with the first of them, so that the last bit of a cost
    decides nothing. Among other equal sums it is the one that scipy finds first.

    The assignment runs on the CPU. Costs of all problems travel there in one copy, because each waits for the device,
    and the pairs travel back in one.

    Args:
        problems: by name, such as one per decoder layer and query group; all on one device.

    Returns:
        Under each name pairs sorted by (view, target), on the device of the logits.

    Raises:
        ValueError: if there is not one set of targets per view, or the grids differ.
        FloatingPointError: if a cost is not finite, which is a sign of weights or features that are not; the message
            begins with the name of the first such problem.
    """
    for problem in problems.values():
        _check(problem)
    if not problems:
        return {}
    different = {id(targets): targets for _, targets in problems.values()}
    truths = {key: flat_truth(targets) for key, targets in different.items()}
    costs = [dice_cost(logits, truths[id(targets)], targets) for logits, targets in problems.values()]
    signatures = [_sign(truth) for truth in truths.values()]
    flat = torch.cat([part.flatten() for part in (*signatures, *costs)]).cpu().numpy()
    twins: dict[int, NDArray[np.int64]] = {}
    solved: dict[str, NDArray[np.int64]] = {}
    start = 0
    for key, signature in zip(truths, signatures, strict=True):
        found = flat[start : start + signature.numel()].reshape(signature.shape)
        start += signature.numel()
        twins[key] = np.unique(found, axis=1, return_inverse=True)[1].reshape(-1)
    for (name, problem), cost in zip(problems.items(), costs, strict=True):
        part = flat[start : start + cost.numel()].reshape(cost.shape)
        start += cost.numel()
        if not np.isfinite(part).all():
            others = int((~np.isfinite(part)).sum())
            raise FloatingPointError(f"{name}: mask logits must give finite matching costs, got {others} others")
        solved[name] = _assign(part, problem.targets.counts, twins[id(problem.targets)])
    pairs = to_device(torch.from_numpy(np.concatenate(list(solved.values()), axis=1)), costs[0].device)
    parts = pairs.split_with_sizes([part.shape[1] for part in solved.values()], dim=1)
    return {name: Match(*part) for name, part in zip(solved, parts, strict=True)}


def _sign(truth: Tensor) -> Tensor:
    """Numbers ``(3, n)`` that are alike for equal masks, and but for rare accidents for no others."""
    cells = truth.shape[1]
    # so that the sums stay below 2^24, where float32 adds whole numbers exactly in any order
    bound = max(2**24 // max(cells, 1), 1)
    weights = mix64(torch.arange(1, 3 * cells + 1, device=truth.device)).remainder(bound).float()
    return torch.stack([(truth * part).sum(dim=1) for part in weights.view(3, cells)])


def _assign(cost: NDArray[np.float32], counts: Sequence[int], twins: NDArray[np.int64]) -> NDArray[np.int64]:
    """Image, query and target of all pairs, ``(3, m)``, from the costs ``(q, n)`` of all views side by side.

    Columns whose masks are equal have equal ``twins``.
    """
    pairs: list[NDArray[np.int64]] = [np.empty((3, 0), dtype=np.int64)]
    start = 0
    for view, count in enumerate(counts):
        query, target = linear_sum_assignment(cost[:, start : start + count])
        target = _order_twins(query, target, twins[start : start + count])
        order = np.argsort(target)
        pairs.append(np.stack([np.full_like(query, view), query[order], target[order]]))
        start += count
    return np.concatenate(pairs, axis=1)


def _order_twins(query: NDArray[np.int64], target: NDArray[np.int64], twins: NDArray[np.int64]) -> NDArray[np.int64]:
    """The targets of the queries, those of equal masks in the order of the queries and the first of them."""
    values, counts = np.unique(twins, return_counts=True)
    target = target.copy()
    for value in values[counts > 1]:
        alike = np.flatnonzero(twins[target] == value)
        alike = alike[np.argsort(query[alike])]
        target[alike] = np.flatnonzero(twins == value)[: len(alike)]
    return target


def _check(problem: MatchingProblem) -> None:
    logits, targets = problem
    if logits.dim() != 4 or len(targets.counts) != len(logits):
        raise ValueError(
            f"targets must count the masks of each view of logits (b, q, h, w), "
            f"got {len(targets.counts)} counts for logits of shape {tuple(logits.shape)}"
        )
    if targets.masks.shape[1:] != logits.shape[2:]:
        raise ValueError(
            f"logits (b, q, h, w) and targets (n, h, w) must share their grid, "
            f"got {tuple(logits.shape)} and {tuple(targets.masks.shape)}"
        )
