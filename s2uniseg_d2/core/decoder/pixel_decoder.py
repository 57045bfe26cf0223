"""The pixel decoder of Mask2Former: deformable attention over strides 32, 16 and 8, and one top-down step to 4."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from s2uniseg_d2.core.decoder.position import sine_position
from s2uniseg_d2.core.ops.deformable import MSDeformAttn, pixel_centres
from s2uniseg_d2.core.recompute import call
from s2uniseg_d2.core.structures import FeaturePyramid

NUM_LEVELS = 3


class PixelFeatures(NamedTuple):
    """What the pixel decoder gives to the query decoder.

    Attributes:
        mask_features: ``(b, mask_dim, H / 4, W / 4)``; a query's mask is its product with these.
        memory: three maps ``(b, hidden_dim, h, w)`` at strides 32, 16 and 8, which the queries attend to.
    """

    mask_features: Tensor
    memory: tuple[Tensor, Tensor, Tensor]


class PixelDecoder(nn.Module):
    """Per-pixel embeddings at stride 4 and three refined maps of a feature pyramid.

    Source: Mask2Former (arXiv 2112.01527), Section 3.2.1 and its published settings; parameter names are those of its
    checkpoints. Under mixed precision the maps at strides 32, 16 and 8 are computed and returned in float32, because
    sampling positions need it; the step to stride 4 follows autocast.

    Args:
        in_channels: channels of the maps at strides 4, 8, 16 and 32.
        hidden_dim: channels inside and of the memory maps.
        mask_dim: channels of the mask features.
        num_layers: deformable encoder layers.
        num_heads: attention heads.
        ffn_dim: hidden width of each layer's perceptron.
        num_points: samples per head and level.
        recomputes: whether the encoder layers are computed again in the backward pass, which saves their activations.

    Raises:
        ValueError: if there are not four channel counts, a number is below 1, ``hidden_dim`` is not a multiple of 4
            (position code), or ``num_heads`` does not divide it.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        hidden_dim: int = 256,
        mask_dim: int = 256,
        num_layers: int = 6,
        num_heads: int = 8,
        ffn_dim: int = 1024,
        num_points: int = 4,
        recomputes: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels = tuple(in_channels)
        if len(self.in_channels) != NUM_LEVELS + 1 or min(self.in_channels) < 1:
            raise ValueError(
                f"in_channels must hold four positive counts (strides 4, 8, 16, 32), got {self.in_channels}"
            )
        counts = {"mask_dim": mask_dim, "num_layers": num_layers, "ffn_dim": ffn_dim, "num_points": num_points}
        check_decoder_sizes(hidden_dim, num_heads, counts)
        self.hidden_dim = hidden_dim
        self.mask_dim = mask_dim
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, hidden_dim, 1), _group_norm(hidden_dim))
            for channels in reversed(self.in_channels[1:])
        )
        self.transformer = _DeformableEncoder(
            hidden_dim,
            num_layers=num_layers,
            num_heads=num_heads,
            ffn_dim=ffn_dim,
            num_points=num_points,
            recomputes=recomputes,
        )
        self.adapter_1 = _NormedConv(self.in_channels[0], hidden_dim, kernel_size=1)
        self.layer_1 = _NormedConv(hidden_dim, hidden_dim, kernel_size=3)
        self.mask_features = nn.Conv2d(hidden_dim, mask_dim, 1)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        for projection in self.input_proj.modules():
            if isinstance(projection, nn.Conv2d):
                nn.init.xavier_uniform_(projection.weight)
                _zero_bias(projection)
        for conv in (self.adapter_1, self.layer_1, self.mask_features):
            # variance 1 / fan_in, Caffe2's reading of Xavier
            nn.init.kaiming_uniform_(conv.weight, a=1)
            _zero_bias(conv)

    def forward(self, features: FeaturePyramid) -> PixelFeatures:
        """Decode a pyramid.

        Args:
            features: maps of ``in_channels`` channels. Sizes need not be exact halves of each other.

        Raises:
            ValueError: if there are not four maps, or a map has other channels than announced.
        """
        if len(features) != NUM_LEVELS + 1:
            raise ValueError(f"features must hold four maps (strides 4, 8, 16, 32), got {len(features)}")
        channels = tuple(feature.shape[1] for feature in features)
        if channels != self.in_channels:
            raise ValueError(f"features must have {self.in_channels} channels, got {channels}")
        with torch.autocast(features[0].device.type, enabled=False):
            low_to_high = [
                project(feature.float())
                for project, feature in zip(self.input_proj, reversed(features[1:]), strict=True)
            ]
            coarse, middle, fine = self.transformer(low_to_high)
        lateral = self.adapter_1(features[0])
        enlarged = functional.interpolate(fine, size=lateral.shape[-2:], mode="bilinear", align_corners=False)
        stride4 = self.layer_1(lateral + enlarged).relu()
        return PixelFeatures(self.mask_features(stride4), (coarse, middle, fine))


class _DeformableEncoder(nn.Module):
    """Three maps after deformable self-attention over all of them."""

    def __init__(
        self, dim: int, *, num_layers: int, num_heads: int, ffn_dim: int, num_points: int, recomputes: bool
    ) -> None:
        super().__init__()
        self.recomputes = recomputes
        self.level_embed = nn.Parameter(torch.randn(NUM_LEVELS, dim))
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(
            _DeformableLayer(dim, num_heads=num_heads, ffn_dim=ffn_dim, num_points=num_points)
            for _ in range(num_layers)
        )

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        shapes = [(int(x.shape[-2]), int(x.shape[-1])) for x in maps]
        b, dim = maps[0].shape[:2]
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)
        places = [sine_position(shape, dim, tokens) + self.level_embed[i] for i, shape in enumerate(shapes)]
        position = torch.cat(places)[None]
        reference = pixel_centres(shapes, tokens)
        for layer in self.encoder.layers:  # type: ignore[union-attr]
            tokens = call(layer, tokens, position, reference, shapes, recomputes=self.recomputes)
        parts = tokens.split_with_sizes([h * w for h, w in shapes], dim=1)
        return tuple(part.transpose(1, 2).reshape(b, dim, *shape) for part, shape in zip(parts, shapes, strict=True))


class _DeformableLayer(nn.Module):
    """Tokens after deformable self-attention and a perceptron, each added and then normalised."""

    def __init__(self, dim: int, *, num_heads: int, ffn_dim: int, num_points: int) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(dim, num_levels=NUM_LEVELS, num_heads=num_heads, num_points=num_points)
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, tokens: Tensor, position: Tensor, reference: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        tokens = self.norm1(tokens + self.self_attn(tokens + position, reference, tokens, shapes))
        output: Tensor = self.norm2(tokens + self.linear2(self.linear1(tokens).relu()))
        return output


class _NormedConv(nn.Conv2d):
    """Same-size convolution without bias, then GroupNorm, stored as ``weight`` and ``norm.*``."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = _group_norm(out_channels)

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.norm(super().forward(input))
        return output


def _group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm of 32 groups, or of as many as divide both 32 and the channels."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


def _zero_bias(conv: nn.Conv2d) -> None:
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def check_decoder_sizes(hidden_dim: int, num_heads: int, counts: dict[str, int]) -> None:
    """Refuse sizes that no decoder can have.

    Raises:
        ValueError: if a count is below 1, ``hidden_dim`` is not a positive multiple of 4, or ``num_heads`` does not
            divide it.
    """
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    if hidden_dim < 4 or hidden_dim % 4:
        raise ValueError(f"hidden_dim must be a positive multiple of 4, got {hidden_dim}")
    if num_heads < 1 or hidden_dim % num_heads:
        raise ValueError(f"num_heads must divide hidden_dim, got num_heads {num_heads} and hidden_dim {hidden_dim}")
