"""UniAP from a config, and its masks as predictions."""

from __future__ import annotations

from detectron2.config import CfgNode

from s2uniseg_d2.core.labelers.uniap import UniAP, UniAPConfig


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
            until_stable=node.UNTIL_STABLE,
            max_masks=node.MAX_MASKS,
        )
    )
