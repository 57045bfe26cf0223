"""The masked-attention decoder of Mask2Former, with groups of queries as data."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from s2uniseg_d2.core.decoder.pixel_decoder import NUM_LEVELS, PixelFeatures, check_decoder_sizes
from s2uniseg_d2.core.decoder.position import sine_position
from s2uniseg_d2.core.decoder.query_layers import CrossAttentionLayer, FeedForwardLayer, SelfAttentionLayer
from s2uniseg_d2.core.recompute import call
from s2uniseg_d2.core.structures import QueryPrediction


class QueryGroup(NamedTuple):
    """Queries of one kind, such as ``("ins", 150)``.

    Attributes:
        name: key of the group's rows in ``QueryDecoder.slices``.
        count: queries in the group.
    """

    name: str
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs here


class QueryDecoder(nn.Module):
    """Masks, objectness and features of all queries, from the raw queries and after every layer.

    Source: Mask2Former (arXiv 2112.01527), Section 3.2, for the decoder and its parameter names; S2-UniSeg, Figure 2,
    for the groups and their [INS] and [SEM] tokens.

    The paper is silent: where the type token enters (here it is added to the query features of its group, never to
    their positions), whether groups see each other (here all queries share one self-attention), how the token starts
    (here normal(0, 1), like the query features), and what a class head without classes says (here two logits, object
    and no object).

    Args:
        groups: names and sizes; the queries stand in this order.
        hidden_dim: channels of queries and memory maps.
        mask_dim: channels of the mask features.
        num_layers: decoder layers; each is followed by a prediction.
        num_heads: attention heads.
        ffn_dim: hidden width of each layer's perceptron.
        recomputes: whether the layers are computed again in the backward pass, which saves their activations.

    Raises:
        ValueError: if there is no group, names repeat, a number is below 1, ``hidden_dim`` is not a multiple of 4
            (position code), or ``num_heads`` does not divide it.

    Attributes:
        slices: the rows of every group by name.
    """

    def __init__(
        self,
        groups: Sequence[QueryGroup],
        *,
        hidden_dim: int = 256,
        mask_dim: int = 256,
        num_layers: int = 9,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        recomputes: bool = False,
    ) -> None:
        super().__init__()
        self.recomputes = recomputes
        self.groups = _checked_groups(groups)
        check_decoder_sizes(hidden_dim, num_heads, {"mask_dim": mask_dim, "num_layers": num_layers, "ffn_dim": ffn_dim})
        self.hidden_dim, self.mask_dim, self.num_layers = hidden_dim, mask_dim, num_layers
        ends = list(accumulate(group.count for group in self.groups))
        self.slices = {group.name: slice(end - group.count, end) for group, end in zip(self.groups, ends, strict=True)}
        self.query_feat = nn.Embedding(ends[-1], hidden_dim)
        self.query_embed = nn.Embedding(ends[-1], hidden_dim)
        self.query_type = nn.Embedding(len(self.groups), hidden_dim)
        self.level_embed = nn.Embedding(NUM_LEVELS, hidden_dim)
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(hidden_dim, num_heads=num_heads) for _ in range(num_layers)
        )
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(hidden_dim, num_heads=num_heads) for _ in range(num_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FeedForwardLayer(hidden_dim, ffn_dim=ffn_dim) for _ in range(num_layers)
        )
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.class_embed = nn.Linear(hidden_dim, 2)
        self.mask_embed = _MaskEmbedding(hidden_dim, mask_dim)

    def forward(self, pixels: PixelFeatures) -> tuple[QueryPrediction, ...]:
        """Decode the masks of a batch.

        Args:
            pixels: output of a ``PixelDecoder`` with the same ``hidden_dim`` and ``mask_dim``.

        Returns:
            ``num_layers + 1`` predictions, the first from the raw queries. The queries of a layer see only the pixels
            inside the mask of the prediction before it (logit at least 0), or all pixels where that mask is empty; no
            gradient passes through this choice.

        Raises:
            ValueError: if there are not three memory maps, or channels differ from the announced ones.
        """
        self._check(pixels)
        mask_features, memory = pixels
        shapes = [(int(x.shape[-2]), int(x.shape[-1])) for x in memory]
        values = [x.flatten(2).transpose(1, 2) + self.level_embed.weight[i] for i, x in enumerate(memory)]
        keys = [
            value + sine_position(shape, self.hidden_dim, value) for value, shape in zip(values, shapes, strict=True)
        ]
        b = mask_features.shape[0]
        position = self.query_embed.weight.expand(b, -1, -1)
        queries = self.raw_queries().expand(b, -1, -1)
        predictions = [self._predict(queries, mask_features)]
        layers = zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        )
        for index, (cross_attend, self_attend, feed_forward) in enumerate(layers):
            level = index % NUM_LEVELS
            allowed = visible_pixels(predictions[-1].masks, shapes[level])
            read = (queries, position, keys[level], values[level], allowed)
            queries = call(cross_attend, *read, recomputes=self.recomputes)
            queries = call(self_attend, queries, position, recomputes=self.recomputes)
            queries = call(feed_forward, queries, recomputes=self.recomputes)
            predictions.append(self._predict(queries, mask_features))
        return tuple(predictions)

    def raw_queries(self) -> Tensor:
        """Learned features of all queries with the type token of their group added, ``(q, hidden_dim)``."""
        tokens = [
            token.expand(group.count, -1) for token, group in zip(self.query_type.weight, self.groups, strict=True)
        ]
        return self.query_feat.weight + torch.cat(tokens)

    def _predict(self, queries: Tensor, mask_features: Tensor) -> QueryPrediction:
        normed = self.decoder_norm(queries)
        # (b, q, mask_dim) x (b, mask_dim, h, w)
        masks = torch.einsum("bqc,bchw->bqhw", self.mask_embed(normed), mask_features)
        return QueryPrediction(masks=masks, objectness=self.class_embed(normed), queries=normed)

    def _check(self, pixels: PixelFeatures) -> None:
        if len(pixels.memory) != NUM_LEVELS:
            raise ValueError(f"pixels.memory must hold three maps (strides 32, 16, 8), got {len(pixels.memory)}")
        channels = tuple(x.shape[1] for x in pixels.memory)
        if channels != (self.hidden_dim,) * NUM_LEVELS:
            raise ValueError(f"pixels.memory must have hidden_dim {self.hidden_dim} channels, got {channels}")
        if pixels.mask_features.shape[1] != self.mask_dim:
            raise ValueError(
                f"pixels.mask_features must have mask_dim {self.mask_dim} channels, got {pixels.mask_features.shape[1]}"
            )


def visible_pixels(masks: Tensor, shape: tuple[int, int]) -> Tensor:
    """Which pixels of a memory map each query may attend to, ``(b, q, h * w)`` bool, at least one in every row.

    Source: Mask2Former (arXiv 2112.01527), Eq. 2: probability at least one half, that is logit at least 0, of the
    bilinearly resized mask. A query whose mask is empty there sees the whole map. Needs no answer from the device.

    Args:
        masks: ``(b, q, H, W)`` mask logits; no gradient is taken.
        shape: rows and columns of the memory map.
    """
    resized = functional.interpolate(masks.detach(), size=shape, mode="bilinear", align_corners=False)
    inside = resized.flatten(2) >= 0
    return inside | ~inside.any(dim=-1, keepdim=True)


class _MaskEmbedding(nn.Module):
    """Three-layer perceptron from query features to mask embeddings."""

    def __init__(self, dim: int, mask_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, mask_dim)])

    def forward(self, queries: Tensor) -> Tensor:
        first, second, last = self.layers
        output: Tensor = last(second(first(queries).relu()).relu())
        return output


def _checked_groups(groups: Sequence[QueryGroup]) -> tuple[QueryGroup, ...]:
    checked = tuple(QueryGroup(*group) for group in groups)
    names = tuple(group.name for group in checked)
    if not checked:
        raise ValueError("groups must hold at least one query group, got none")
    if len(set(names)) != len(names):
        raise ValueError(f"groups must have different names, got {names}")
    for group in checked:
        if group.count < 1:
            raise ValueError(f"each of groups must count at least 1 query, got {group}")
    return checked
