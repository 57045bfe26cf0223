"""Detectron2 models: importing this package registers the backbone, the head and the meta-architecture."""

from s2uniseg_d2._detectron2 import require_detectron2

require_detectron2()

from .backbone import ViTAdapterBackbone, build_vit_adapter_fpn_backbone  # noqa: E402
from .head import QueryGroupHead  # noqa: E402
from .s2uniseg import S2UniSeg  # noqa: E402

__all__ = ["QueryGroupHead", "S2UniSeg", "ViTAdapterBackbone", "build_vit_adapter_fpn_backbone"]
