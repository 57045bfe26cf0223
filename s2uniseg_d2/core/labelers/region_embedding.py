"""The teacher query of any mask: Eq. 5 for masks that UniAP did not make."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from s2uniseg_d2.core.labelers.rounding import full_float32

AFFINITIES = ("mean", "sum")
# float32 does for queries no longer than this many times their vote: its rounding is then below 4e-6
MOST_ROUNDED = 4e-6 * 2**24
# a vote shorter than this has no direction
SHORTEST = 1e-9
# logits held at a time
_CHUNK_VALUES = 2**23


def embed_regions(features: Tensor, masks: Tensor, sigma: float, affinity: str = "mean") -> Tensor:
    """L2N{softmax(M A / σ) F} of every mask M, with A = F Fᵀ and F the normalised features.

    Source: Eq. 5. What UniAP gives a mask of its own, to 1e-5, if all tokens vote. As M A = (M F) Fᵀ, this is one
    attention of the masks' summed features over all tokens, a few masks at a time: nothing grows with tokens times
    tokens. Votes that float32 does not give closely, as from long queries (the literal sum, a small σ) or where they
    nearly cancel, are computed in float64; autocast and TF32 do not matter. A vote that cancels is a row of zeros. No
    gradient.

    Args:
        features: ``(d, h, w)`` float, the valid tokens of one picture and no padding; normalised here.
        masks: ``(n, h, w)`` bool, or float shares of each token that belong to the mask; n may be 0.
        sigma: temperature σ, above 0.
        affinity: "mean" over the mask's tokens, or the literal "sum".

    Returns:
        ``(n, d)`` float32 rows of unit length.

    Raises:
        ValueError: shapes do not fit, σ is not positive, the affinity is unknown, or a mask holds no token.
    """
    if features.dim() != 3 or not features.is_floating_point():
        raise ValueError(f"features must be float of shape (d, h, w), got {features.dtype} {tuple(features.shape)}")
    if masks.dim() != 3 or masks.shape[1:] != features.shape[1:]:
        raise ValueError(f"masks must be (n, h, w) on the grid {tuple(features.shape[1:])}, got {tuple(masks.shape)}")
    if not 0 < sigma < float("inf"):
        raise ValueError(f"sigma must be positive and finite, got {sigma}")
    if affinity not in AFFINITIES:
        raise ValueError(f"affinity must be one of {AFFINITIES}, got {affinity!r}")
    # the query of a mask is its mean or summed feature over sigma; a mean cannot be longer than 1 / sigma
    shares = masks.flatten(1)
    with full_float32(features.device):
        sizes = shares.sum(dim=1, dtype=torch.float64)
        if bool((sizes <= 0).any()):
            raise ValueError(f"masks must each hold a token, got none in mask {int((sizes <= 0).nonzero()[0])}")
        scales = (1 / sizes if affinity == "mean" else torch.ones_like(sizes)) / sigma
        votes, norms = _vote(features, shares, scales, torch.float32)
        lengths = torch.linalg.vector_norm(votes, dim=1)
        poor = (~(norms < MOST_ROUNDED * lengths)).nonzero()[:, 0]
        if poor.numel():
            votes[poor] = _vote(features, shares[poor], scales[poor], torch.float64)[0]
            lengths[poor] = torch.linalg.vector_norm(votes[poor], dim=1)
        return torch.where(lengths[:, None] > SHORTEST, votes / lengths[:, None], 0.0).float()


def token_shares(masks: Tensor, factor: int) -> Tensor:
    """How much of each token a mask of finer cells holds, ``(n, ceil(h / factor), ceil(w / factor))`` float32.

    Args:
        masks: ``(n, h, w)`` bool, ``factor`` x ``factor`` cells to a token; tokens at the lower and right rim may have
            fewer, and the share is of those that are there.
        factor: 1 leaves the cells as they are.
    """
    return functional.avg_pool2d(masks[:, None].float(), factor, ceil_mode=True)[:, 0]


def _vote(features: Tensor, shares: Tensor, scales: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """softmax(q Fᵀ) F for every query q, ``(n, d)`` float64, and the queries' lengths, ``(n,)`` float64."""
    rows = functional.normalize(features.detach().flatten(1).T.to(dtype), dim=1)
    votes, norms = [], []
    for part, scale in zip(
        *(torch.split(x, max(1, _CHUNK_VALUES // max(1, len(rows)))) for x in (shares, scales)), strict=True
    ):
        queries = part.to(dtype) @ rows * scale[:, None].to(dtype)
        votes.append(((queries @ rows.T).softmax(dim=1) @ rows).double())
        norms.append(torch.linalg.vector_norm(queries, dim=1).double())
    return torch.cat(votes), torch.cat(norms)
