"""The ViT-Adapter as a Detectron2 backbone."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.utils import comm
from torch import Tensor, nn

from s2uniseg_d2.core.trunks.vit import TimmViT
from s2uniseg_d2.core.trunks.vit_adapter import ViTAdapter
from s2uniseg_d2.core.trunks.weights import load_trunk_weights
from s2uniseg_d2.downloads import OFFLINE, is_offline, local_file

from .official_weights import load_adapter_weights

logger = logging.getLogger(__name__)

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


@BACKBONE_REGISTRY.register()
class ViTAdapterBackbone(Backbone):
    """A plain ViT with the ViT-Adapter around it: ``res2`` to ``res5`` at strides 4, 8, 16 and 32.

    Any Detectron2 project can name it in ``MODEL.BACKBONE.NAME`` once ``s2uniseg_d2.modeling`` is imported and
    ``add_backbone_config`` has added its keys. Pictures must have sides that are multiples of 32
    (``size_divisibility``), which Detectron2's ``ImageList`` sees to.

    Args:
        trunk: the encoder.
    """

    @configurable
    def __init__(self, *, trunk: ViTAdapter) -> None:
        super().__init__()
        self.trunk = trunk

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None) -> dict[str, Any]:
        """Read ``MODEL.VIT``, ``MODEL.VIT_ADAPTER`` and ``MODEL.RECOMPUTE``, and load the weights if they are named."""
        vit_cfg, adapter_cfg = cfg.MODEL.VIT, cfg.MODEL.VIT_ADAPTER
        if vit_cfg.WEIGHTS == "timm" and is_offline():
            raise ValueError(
                f"weights of {vit_cfg.NAME!r} must be a file while {OFFLINE} is set in the environment: timm would "
                f"download them"
            )
        vit = TimmViT(
            vit_cfg.NAME,
            patch_size=vit_cfg.PATCH_SIZE or None,
            embed_dim=vit_cfg.EMBED_DIM or None,
            depth=vit_cfg.DEPTH or None,
            num_heads=vit_cfg.NUM_HEADS or None,
            drop_path_rate=vit_cfg.DROP_PATH,
            pretrained=vit_cfg.WEIGHTS == "timm",
            recomputes=cfg.MODEL.RECOMPUTE,
        )
        if vit_cfg.WEIGHTS not in ("", "timm"):
            report = load_trunk_weights(vit, local_file(vit_cfg.WEIGHTS), branch=vit_cfg.WEIGHTS_BRANCH)
            logger.info("%s", report.summary())
        vit.freeze(vit_cfg.FROZEN_BLOCKS)
        _warn_of_other_colours(cfg, vit)
        norm = adapter_cfg.NORM
        if norm == "SyncBN" and cfg.MODEL.DEVICE == "cpu":
            # torch's SyncBatchNorm refuses CPU tensors once a process group exists; Detectron2's own takes them
            norm = "naiveSyncBN" if comm.get_world_size() > 1 else "BN"
        trunk = ViTAdapter(
            vit,
            conv_inplane=adapter_cfg.CONV_INPLANE,
            deform_heads=adapter_cfg.DEFORM_HEADS,
            deform_ratio=adapter_cfg.DEFORM_RATIO,
            deform_points=adapter_cfg.DEFORM_POINTS,
            ffn_ratio=adapter_cfg.FFN_RATIO,
            extra_extractors=adapter_cfg.EXTRA_EXTRACTORS,
            add_vit_feature=adapter_cfg.ADD_VIT_FEATURE,
            apply_vit_norm=adapter_cfg.APPLY_VIT_NORM,
            zero_init=adapter_cfg.ZERO_INIT,
            drop_path_rate=vit_cfg.DROP_PATH,
            norm_layer=partial(_build_norm, norm),
            recomputes=cfg.MODEL.RECOMPUTE,
        )
        if adapter_cfg.WEIGHTS:
            official = load_adapter_weights(trunk, local_file(adapter_cfg.WEIGHTS), branch=vit_cfg.WEIGHTS_BRANCH)
            logger.info("%s", official.summary("the ViT-Adapter"))
        return {"trunk": trunk}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Encode normalised pictures ``(b, 3, H, W)``; H and W are multiples of 32."""
        return dict(self.trunk(images)._asdict())

    def pooling_features(self, images: Tensor, stride: int) -> Tensor:
        """UniAP's map ``(b, d, H / stride, W / stride)``, stride 4 or 16, before the final norms."""
        return self.trunk.pooling_features(images, stride=stride)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and strides of the four maps."""
        width = self.trunk.vit.embed_dim
        return {name: ShapeSpec(channels=width, stride=stride) for name, stride in STRIDES.items()}

    @property
    def size_divisibility(self) -> int:
        """Sides of the input must be multiples of this many pixels."""
        return 32


@BACKBONE_REGISTRY.register()
def build_vit_adapter_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """A feature pyramid network on the ViT-Adapter: ``p2`` to ``p6`` at strides 4 to 64, for Detectron2's heads.

    Reads ``MODEL.FPN`` as Detectron2's own builders do, and what :class:`ViTAdapterBackbone` reads, which is its
    ``bottom_up``.
    """
    return FPN(
        bottom_up=ViTAdapterBackbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def _warn_of_other_colours(cfg: CfgNode, vit: TimmViT) -> None:
    """Pretrained weights that get other colours than they were trained on work badly, and nothing else would say so."""
    if not (cfg.MODEL.VIT.WEIGHTS or cfg.MODEL.WEIGHTS):
        return
    if cfg.INPUT.FORMAT != "RGB":
        logger.warning("INPUT.FORMAT is %r, but the ViT's weights were trained on RGB", cfg.INPUT.FORMAT)
    for key, expected in (("PIXEL_MEAN", vit.pixel_mean), ("PIXEL_STD", vit.pixel_std)):
        given = cfg.MODEL[key]
        if cfg.MODEL.VIT.WEIGHTS and any(abs(a - b) > 1.0 for a, b in zip(given, expected, strict=True)):
            wanted = [round(value, 3) for value in expected]
            logger.warning("MODEL.%s is %s, but the weights of %s were trained with %s", key, given, vit.name, wanted)


def _build_norm(name: str, channels: int) -> nn.Module:
    norm: nn.Module | None = get_norm(name, channels)
    if norm is None:
        raise ValueError(f"MODEL.VIT_ADAPTER.NORM must name a normalisation such as BN, SyncBN or GN, got {name!r}")
    return norm
