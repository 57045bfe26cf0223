"""Losses between matched masks: binary cross-entropy and Dice, on sampled points or on all pixels.

Axes: b views, q queries, n masks of all views together, m matched pairs, p points, h and w rows and columns of the
stride-4 grid.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from s2uniseg_d2.core.losses.point_draws import PointSource
from s2uniseg_d2.core.structures import Match, TargetMasks

# candidates that are looked at in one go: hundreds of pairs with 37,632 each would take gigabytes
CANDIDATES_AT_ONCE = 2**24


def mask_losses(
    logits: Tensor,
    targets: TargetMasks,
    match: Match,
    *,
    normalizer: Tensor | float,
    num_points: int = 12544,
    oversample_ratio: float = 3.0,
    importance_ratio: float = 0.75,
    points: PointSource | None = None,
) -> dict[str, Tensor]:
    """Binary cross-entropy ``mask`` and Dice loss ``dice`` of the matched pairs, both scalars in float32.

    Source: Mask2Former (arXiv 2112.01527), section 3.3. The paper prints no mask loss, yet without one no mask
    parameter has a gradient, because attention masks are detached. Each is averaged over a pair's points, summed
    over pairs and divided by ``normalizer``. Without pairs both are zero, with a gradient of zero to ``logits``.

    Args:
        logits: ``(b, q, h, w)`` mask logits.
        targets: of the same views, on a grid of their own ``(h', w')``.
        match: the pairs.
        normalizer: pairs of the step, see ``mean_over_ranks``.
        num_points: points per pair; 0 takes all pixels, which draws nothing and needs targets on the logits' grid.
        oversample_ratio: how many times ``num_points`` candidates are drawn, at least 1.
        importance_ratio: share of the points that are the most uncertain candidates; the rest is drawn afresh.
        points: where they come from.

    Raises:
        ValueError: if a ratio or count is out of range, or points are wanted and have no source, or ``targets``
            do not fit.
    """
    _check_sampling(num_points, oversample_ratio, importance_ratio, points)
    if len(targets.counts) != len(logits):
        raise ValueError(
            f"targets must count the masks of each view, got {len(targets.counts)} for {len(logits)} views"
        )
    if match.query.numel() == 0:
        # an empty sum keeps the graph as logits.sum() * 0 would, but cannot overflow to inf * 0
        zero = logits.flatten()[:0].float().sum()
        return {"mask": zero, "dice": zero.clone()}
    # nothing below is cast down by autocast, so float32 here is float32 to the end
    predicted = logits[match.image, match.query].float()
    truth = targets.masks[targets.rows(match)].to(predicted.dtype)
    if num_points == 0:
        if truth.shape != predicted.shape:
            raise ValueError(
                f"targets must lie on the logits' grid when num_points is 0, "
                f"got {tuple(truth.shape[1:])} and {tuple(predicted.shape[1:])}"
            )
        predicted, truth = predicted.flatten(1), truth.flatten(1)
    else:
        assert points is not None
        chosen = draw_uncertain_points(predicted, match.image, num_points, oversample_ratio, importance_ratio, points)
        predicted, truth = sample_points(predicted, chosen), sample_points(truth, chosen)
    cross_entropy = functional.binary_cross_entropy_with_logits(predicted, truth, reduction="none").mean(dim=1)
    return {
        "mask": cross_entropy.sum() / normalizer,
        "dice": _dice_loss(predicted, truth).sum() / normalizer,
    }


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples ``(m, p)`` of ``(m, h, w)`` maps, with zeros beyond their rim.

    Args:
        maps: one map per pair, float.
        points: ``(m, p, 2)`` as (x, y) in [0, 1] from rim to rim.
    """
    sampled = functional.grid_sample(
        maps[:, None], 2.0 * points[:, None] - 1.0, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    return sampled[:, 0, 0]


@torch.no_grad()
def draw_uncertain_points(
    logits: Tensor,
    views: Tensor,
    num_points: int,
    oversample_ratio: float,
    importance_ratio: float,
    points: PointSource,
) -> Tensor:
    """Points where the masks are undecided, and some anywhere: ``(m, num_points, 2)`` as (x, y) in [0, 1].

    Source: PointRend (arXiv 1912.08193), section 3.1, with the uncertainty -abs(logit). Among equally uncertain
    candidates the choice is ``torch.topk``'s.

    Args:
        logits: ``(m, h, w)``.
        views: ``(m,)`` int64, the view of each mask.
        num_points: points per mask.
        oversample_ratio: candidates per point.
        importance_ratio: share of the points taken from the candidates.
        points: gives the candidates, then the points that are placed anywhere.
    """
    important = int(importance_ratio * num_points)
    num_candidates = int(num_points * oversample_ratio)
    chosen_points = []
    at_once = max(1, CANDIDATES_AT_ONCE // num_candidates)
    for part, part_views in zip(torch.split(logits, at_once), torch.split(views, at_once), strict=True):
        candidates = points(part_views, 0, num_candidates)
        # the logit nearest to zero is the most uncertain one; the losses do not ask for an order
        certainty = sample_points(part, candidates).abs_()
        chosen = certainty.topk(important, dim=1, largest=False, sorted=False).indices
        chosen_points.append(candidates.gather(1, chosen[:, :, None].expand(-1, -1, 2)))
    anywhere = points(views, num_candidates, num_points - important)
    return torch.cat([torch.cat(chosen_points), anywhere], dim=1)


def _dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """One minus Dice per row of ``(m, p)``, with one added to numerator and denominator."""
    probabilities = logits.sigmoid()
    overlap = (probabilities * targets).sum(dim=1)
    total = probabilities.sum(dim=1) + targets.sum(dim=1)
    return 1.0 - (2.0 * overlap + 1.0) / (total + 1.0)


def _check_sampling(
    num_points: int, oversample_ratio: float, importance_ratio: float, points: PointSource | None
) -> None:
    if num_points < 0:
        raise ValueError(f"num_points must be at least 0, got {num_points}")
    if oversample_ratio < 1:
        raise ValueError(f"oversample_ratio must be at least 1, got {oversample_ratio}")
    if not 0 <= importance_ratio <= 1:
        raise ValueError(f"importance_ratio must lie in [0, 1], got {importance_ratio}")
    if num_points > 0 and points is None:
        raise ValueError(f"points must have a source when num_points is not 0, got None and {num_points} points")
