"""UniAP from a config, and the teacher's queries for masks from elsewhere."""

from __future__ import annotations

from typing import NamedTuple

from detectron2.config import CfgNode
from torch import Tensor

from s2uniseg_d2.core.labelers.region_embedding import embed_regions, token_shares
from s2uniseg_d2.core.labelers.uniap import UniAP, UniAPConfig
from s2uniseg_d2.core.ops.transfer import to_device
from s2uniseg_d2.core.structures import PseudoLabels


class RegionVote(NamedTuple):
    """How Eq. 5 makes a mask's embedding: see ``MODEL.UNIAP.SIGMA`` and ``MODEL.UNIAP.REGION_AFFINITY``."""

    sigma: float = 0.07
    affinity: str = "mean"


def build_uniap(cfg: CfgNode) -> UniAP:
    """UniAP with the settings of ``MODEL.UNIAP``."""
    node = cfg.MODEL.UNIAP
    return UniAP(
        UniAPConfig(
            taus=tuple(node.TAUS),
            sigma=node.SIGMA,
            omega_f=node.OMEGA_F,
            omega_s=node.OMEGA_S,
            min_tokens=node.MIN_TOKENS,
            region_affinity=node.REGION_AFFINITY,
            voter_pool=node.VOTER_POOL,
            until_stable=node.UNTIL_STABLE,
            max_masks=node.MAX_MASKS,
        )
    )


def embed_labels(labels: PseudoLabels, features: Tensor, cells_per_token: int, vote: RegionVote) -> PseudoLabels:
    """Masks from elsewhere with the teacher's embeddings, all on the features' device.

    Args:
        labels: masks ``(n, h, w)`` on the stride-4 grid; their embeddings do not matter.
        features: ``(d, rows, columns)`` valid tokens of the picture.
        cells_per_token: side of a token in cells of the masks.
        vote: as UniAP's, so that its own masks would get its own embeddings (but for pooled voters).
    """
    kinds = []
    for kind in labels:
        masks = to_device(kind.masks, features.device)
        embeddings = embed_regions(features, token_shares(masks, cells_per_token), vote.sigma, vote.affinity)
        kinds.append(kind._replace(masks=masks, embeddings=embeddings, level=to_device(kind.level, features.device)))
    return PseudoLabels(*kinds)


def enlarge(maps: Tensor, factor: int, height: int, width: int) -> Tensor:
    """Repeat every cell of ``(n, h, w)`` maps and cut them to ``(n, height, width)``."""
    if factor > 1:
        maps = maps.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)
    return maps[:, :height, :width]
