"""The ViT-Adapter: a feature pyramid out of a plain ViT."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from s2uniseg_d2.core.ops.deformable import MSDeformAttn
from s2uniseg_d2.core.structures import FeaturePyramid
from s2uniseg_d2.core.trunks.interaction import PYRAMID_LEVELS, Extractor, Interaction, TokenGrids
from s2uniseg_d2.core.trunks.spatial_prior import SpatialPrior
from s2uniseg_d2.core.trunks.vit import TimmViT

GRID_STRIDE = 16
SIZE_DIVISOR = 32
DEFAULT_GROUPS = 4
ZERO_INITS = ("stride4", "all", "none")


class _Encoding(NamedTuple):
    """Maps before the assembly: the ViT's final patch tokens (stride 16), the prior (4) and the pyramid (8, 16, 32)."""

    vit: Tensor
    prior: Tensor
    pyramid: list[Tensor]


class ViTAdapter(nn.Module):
    """A plain ViT with convolutional side branch whose two meet before and after every group of blocks.

    Source: S2-UniSeg, section 3 (encoder), and ViT-Adapter (arXiv 2205.08534) in its detection variant: the final
    tokens are added at all four strides. Parameter names are those of its published checkpoints, the ViT's below
    ``vit.``. The ViT sees the picture resized by patch size / 16 (half for patch 8), so that its tokens always have
    stride 16; the side branch sees the picture as it is.

    Differs from ViT-Adapter: prefix tokens are kept and the ViT's final LayerNorm is applied, because the stride-4 map
    shall equal DINO's own tokens at first. The paper is silent on all of the adapter's sizes: the defaults are those
    published for ViT-B.

    ``zero_init`` says what is zero at first, beside the injectors' scale ``gamma``:

    * ``"stride4"``: the branch to stride 4 (``up``, ``spm.fc1``), so that ``pooling_features`` returns the plain ViT's
      tokens, exactly. All else has gradient from the first step on, except what lies behind another zero of the
      published start: the inside of the injectors (``gamma``) and the query norms (the attentions' zero weights).
    * ``"all"``: the whole pyramid too (``spm.fc2`` to ``fc4``, ``level_embed``, the last layer of each extractor
      branch), so that all four strides show the resized tokens before their norms. The spatial prior's convolutions
      and ``gamma`` then get gradient from the second step on.
    * ``"none"``: nothing more, as published.

    Args:
        vit: the transformer.
        conv_inplane: channels of the side branch at stride 4.
        deform_heads: heads of the deformable attentions.
        deform_ratio: their value width relative to the embedding.
        deform_points: their samples per head and level.
        ffn_ratio: hidden width of the extractors' feed-forward relative to the embedding.
        interaction_indexes: first and last block (both included, counted from 0) of every group; None makes four
            equal groups.
        extra_extractors: further extractors after the last group.
        add_vit_feature: add the ViT's tokens to the four outputs. ``pooling_features`` has them in either case.
        apply_vit_norm: pass the final tokens through the ViT's LayerNorm, where DINO's features are taken.
        zero_init: see above.
        drop_path_rate: stochastic depth of every extractor's feed-forward.
        norm_layer: makes the normalisation of the given number of channels, for the side branch and the four outputs.
        recomputes: whether injectors and extractors are computed again in the backward pass, which saves their
            activations; the ViT has its own.

    Raises:
        ValueError: if the groups do not cover the ViT's blocks in order, or a size or name is not allowed.
    """

    def __init__(
        self,
        vit: TimmViT,
        *,
        conv_inplane: int = 64,
        deform_heads: int = 12,
        deform_ratio: float = 0.5,
        deform_points: int = 4,
        ffn_ratio: float = 0.25,
        interaction_indexes: Sequence[tuple[int, int]] | None = None,
        extra_extractors: int = 2,
        add_vit_feature: bool = True,
        apply_vit_norm: bool = True,
        zero_init: str = "stride4",
        drop_path_rate: float = 0.0,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
        recomputes: bool = False,
    ) -> None:
        super().__init__()
        if zero_init not in ZERO_INITS:
            raise ValueError(f"zero_init must be one of {', '.join(ZERO_INITS)}, got {zero_init!r}")
        _check_sizes(vit.embed_dim, conv_inplane, deform_points, ffn_ratio, extra_extractors, drop_path_rate)
        dim = vit.embed_dim
        self.vit = vit
        self.add_vit_feature, self.apply_vit_norm = add_vit_feature, apply_vit_norm
        self.groups = _block_groups(vit.depth, interaction_indexes)
        self.level_embed = nn.Parameter(torch.zeros(PYRAMID_LEVELS, dim))
        self.spm = SpatialPrior(conv_inplane, dim, norm_layer)
        last = len(self.groups) - 1
        self.interactions = nn.ModuleList(
            Interaction(
                dim,
                num_heads=deform_heads,
                num_points=deform_points,
                value_ratio=deform_ratio,
                ffn_ratio=ffn_ratio,
                drop_path_rate=drop_path_rate,
                extra_extractors=extra_extractors if index == last else 0,
                recomputes=recomputes,
            )
            for index in range(len(self.groups))
        )
        self.up = nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2)
        self.norm1, self.norm2 = norm_layer(dim), norm_layer(dim)
        self.norm3, self.norm4 = norm_layer(dim), norm_layer(dim)
        self.reset_parameters(zero_init)
        if not (add_vit_feature and apply_vit_norm):
            # without a use in forward it would never get a gradient, which distributed training refuses
            vit.norm.requires_grad_(False)

    def reset_parameters(self, zero_init: str) -> None:
        """Draw the adapter's weights anew from torch's global generator; the ViT and the norms are left alone."""
        for part in (self.spm, self.interactions, self.up):
            part.apply(_init_layer)
        for module in self.modules():
            if isinstance(module, MSDeformAttn):
                module.reset_parameters()
        nn.init.normal_(self.level_embed)
        zeroed: list[nn.Module] = []
        if zero_init != "none":
            zeroed += [self.up, self.spm.fc1]
        if zero_init == "all":
            nn.init.zeros_(self.level_embed)
            zeroed += [self.spm.fc2, self.spm.fc3, self.spm.fc4]
            for module in self.modules():
                if isinstance(module, Extractor):
                    zeroed += [module.attn.output_proj, module.ffn.fc2]
        for module in zeroed:
            for parameter in module.parameters():
                nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> FeaturePyramid:
        """Encode normalised pictures ``(b, 3, H, W)`` as maps ``(b, embed_dim, H / s, W / s)``, s = 4, 8, 16, 32.

        Raises:
            ValueError: if H or W is not a positive multiple of 32.
        """
        encoding = self._encode(images)
        maps = [self._stride4_map(encoding), *encoding.pyramid]
        if self.add_vit_feature:
            maps = [part + _resize(encoding.vit, part.shape[2:]) for part in maps]
        norms = (self.norm1, self.norm2, self.norm3, self.norm4)
        return FeaturePyramid(*(norm(part) for norm, part in zip(norms, maps, strict=True)))

    def pooling_features(self, images: Tensor, stride: int = 4) -> Tensor:
        """The map that UniAP pools, before the final norms: ``(b, embed_dim, H / stride, W / stride)``.

        At stride 4 the final tokens, repeated 4 x 4, plus the adapter's stride-4 map (zero at first, see
        ``zero_init``); at stride 16 the final tokens alone. Differs from ``forward``, which enlarges bilinearly: a
        bilinear enlargement makes neighbours so alike (cosine 0.88 even between orthogonal tokens) that UniAP would
        merge the whole picture in its first layer. The paper is silent: its stride-4 map would do so. Batch statistics
        of a final norm would spoil the cosines likewise.

        Raises:
            ValueError: if the stride is neither 4 nor 16, or H or W is not a positive multiple of 32.
        """
        if stride not in (4, GRID_STRIDE):
            raise ValueError(f"stride must be 4 or {GRID_STRIDE}, got {stride}")
        encoding = self._encode(images)
        if stride == GRID_STRIDE:
            return encoding.vit
        repeated = functional.interpolate(encoding.vit, scale_factor=4, mode="nearest")
        return repeated + self._stride4_map(encoding)

    def _encode(self, images: Tensor) -> _Encoding:
        tokens, (h, w) = self.vit.embed(self._resize_for_vit(images))
        prior, *levels = self.spm(images)
        pyramid = torch.cat(
            [level.flatten(2).transpose(1, 2) + embed for level, embed in zip(levels, self.level_embed, strict=True)],
            dim=1,
        )
        grids = TokenGrids.of(h, w, images)
        prefix, patches = tokens[:, : self.vit.num_prefix_tokens], tokens[:, self.vit.num_prefix_tokens :]
        for interaction, (start, stop) in zip(self.interactions, self.groups, strict=True):
            run_blocks = partial(self.vit.run, start=start, stop=stop, grid=(h, w))
            prefix, patches, pyramid = interaction(prefix, patches, pyramid, run_blocks, grids)
        if self.apply_vit_norm:
            patches = self.vit.norm(patches)
        vit_map = patches.transpose(1, 2).reshape(len(images), self.vit.embed_dim, h, w)
        return _Encoding(vit_map, prior, grids.split(pyramid))

    def _stride4_map(self, encoding: _Encoding) -> Tensor:
        enlarged: Tensor = self.up(encoding.pyramid[0])
        return enlarged + encoding.prior

    def _resize_for_vit(self, images: Tensor) -> Tensor:
        if images.dim() != 4 or any(side <= 0 or side % SIZE_DIVISOR for side in images.shape[2:]):
            raise ValueError(
                f"images must be (b, 3, H, W) with H and W multiples of {SIZE_DIVISOR}, got {tuple(images.shape)}"
            )
        patch = self.vit.patch_size
        if patch == GRID_STRIDE:
            return images
        if 2 * patch == GRID_STRIDE:
            return functional.avg_pool2d(images, 2)
        return _resize(images, [side // GRID_STRIDE * patch for side in images.shape[2:]])


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resizing with pixel centres aligned, not corners; the same maps if they have that size already."""
    if list(maps.shape[2:]) == list(size):
        return maps
    return functional.interpolate(maps, size=list(size), mode="bilinear", align_corners=False)


def _block_groups(depth: int, indexes: Sequence[tuple[int, int]] | None) -> tuple[tuple[int, int], ...]:
    """Half-open ranges of blocks, one for every interaction."""
    if indexes is None:
        if depth % DEFAULT_GROUPS:
            raise ValueError(
                f"interaction_indexes must be given unless {DEFAULT_GROUPS} divides the depth, got None and {depth}"
            )
        size = depth // DEFAULT_GROUPS
        return tuple((start, start + size) for start in range(0, depth, size))
    groups = tuple((first, last + 1) for first, last in indexes)
    covered = [block for start, stop in groups for block in range(start, stop)]
    if covered != list(range(depth)) or any(start >= stop for start, stop in groups):
        raise ValueError(
            f"interaction_indexes must be (first, last) blocks that cover 0 to {depth - 1} in order, "
            f"got {tuple(tuple(pair) for pair in indexes)}"
        )
    return groups


def _check_sizes(
    dim: int, conv_inplane: int, deform_points: int, ffn_ratio: float, extra_extractors: int, drop_path_rate: float
) -> None:
    for name, size in (("conv_inplane", conv_inplane), ("deform_points", deform_points)):
        if size <= 0:
            raise ValueError(f"{name} must be positive, got {size}")
    if int(dim * ffn_ratio) <= 0:
        raise ValueError(f"ffn_ratio must leave at least one hidden channel of {dim}, got {ffn_ratio}")
    if extra_extractors < 0:
        raise ValueError(f"extra_extractors must not be negative, got {extra_extractors}")
    if not 0.0 <= drop_path_rate < 1.0:
        raise ValueError(f"drop_path_rate must lie in [0, 1), got {drop_path_rate}")


def _init_layer(module: nn.Module) -> None:
    """ViT-Adapter's published initialisation of linear layers and convolutions; norms keep weight 1 and bias 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        rows, columns = module.kernel_size
        fan_out = rows * columns * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
