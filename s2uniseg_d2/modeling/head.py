"""The pixel decoder and the query decoder as one Detectron2 head."""

from __future__ import annotations

import logging
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from s2uniseg_d2.core.decoder.pixel_decoder import PixelDecoder
from s2uniseg_d2.core.decoder.query_decoder import QueryDecoder, QueryGroup
from s2uniseg_d2.core.structures import FeaturePyramid, QueryPrediction
from s2uniseg_d2.downloads import local_file

from .official_weights import load_decoder_weights

logger = logging.getLogger(__name__)


@SEM_SEG_HEADS_REGISTRY.register()
class QueryGroupHead(nn.Module):
    """Mask2Former's decoder with [INS] and [SEM] query groups.

    Sub-module names are Mask2Former's (``pixel_decoder``, ``predictor``), so that its checkpoints fit by name.

    Args:
        pixel_decoder: from the encoder's maps to features of pixels.
        predictor: the queries.
        weights: a checkpoint of Mask2Former to start from, see ``load_decoder_weights``; "" for none.
    """

    @configurable
    def __init__(self, *, pixel_decoder: PixelDecoder, predictor: QueryDecoder, weights: str = "") -> None:
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        if weights:
            logger.info("%s", load_decoder_weights(self, local_file(weights)).summary("the decoder"))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read ``MODEL.QUERY_HEAD`` and ``MODEL.RECOMPUTE``; instance queries come first, then semantic ones."""
        query = cfg.MODEL.QUERY_HEAD
        channels = [input_shape[name].channels for name in cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES]
        return {
            "pixel_decoder": PixelDecoder(
                channels,
                hidden_dim=query.HIDDEN_DIM,
                mask_dim=query.MASK_DIM,
                num_layers=query.ENCODER_LAYERS,
                num_heads=query.NUM_HEADS,
                ffn_dim=query.ENCODER_FFN_DIM,
                recomputes=cfg.MODEL.RECOMPUTE,
            ),
            "predictor": QueryDecoder(
                (QueryGroup("ins", query.INS_QUERIES), QueryGroup("sem", query.SEM_QUERIES)),
                hidden_dim=query.HIDDEN_DIM,
                mask_dim=query.MASK_DIM,
                num_layers=query.DECODER_LAYERS,
                num_heads=query.NUM_HEADS,
                ffn_dim=query.DECODER_FFN_DIM,
                recomputes=cfg.MODEL.RECOMPUTE,
            ),
            "weights": query.WEIGHTS,
        }

    @property
    def slices(self) -> dict[str, slice]:
        """Which queries belong to which group."""
        return self.predictor.slices

    def forward(self, features: dict[str, Tensor]) -> tuple[QueryPrediction, ...]:
        """Predictions after the raw queries and after every decoder layer, the last one final."""
        predictions: tuple[QueryPrediction, ...] = self.predictor(self.pixel_decoder(FeaturePyramid(**features)))
        return predictions
