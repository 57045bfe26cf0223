"""How the ViT's tokens and the adapter's pyramid tell each other what they see.

Axes: b pictures, n = h * w patch tokens at stride 16, m = 5.25 n pyramid tokens (strides 8, 16 and 32 one after
another, each row-major), c channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from s2uniseg_d2.core.ops.deformable import MSDeformAttn, pixel_centres
from s2uniseg_d2.core.recompute import call

LAYER_NORM_EPS = 1e-6
PYRAMID_LEVELS = 3


class TokenGrids(NamedTuple):
    """The grids of one input size and the reference points of their cells.

    Attributes:
        patches: (h, w) of the ViT's tokens.
        pyramid: (h, w) of strides 8, 16 and 32.
        patch_points: ``(1, n, 1, 2)`` cell centres (x, y) in [0, 1].
        pyramid_points: ``(1, m, 1, 2)`` likewise.
    """

    patches: tuple[int, int]
    pyramid: tuple[tuple[int, int], ...]
    patch_points: Tensor
    pyramid_points: Tensor

    @classmethod
    def of(cls, h: int, w: int, like: Tensor) -> TokenGrids:
        """Grids of ``h`` x ``w`` patch tokens, both even, with points on the device of ``like``."""
        pyramid = ((2 * h, 2 * w), (h, w), (h // 2, w // 2))
        return cls((h, w), pyramid, pixel_centres([(h, w)], like), pixel_centres(pyramid, like))

    def split(self, tokens: Tensor) -> list[Tensor]:
        """Pyramid tokens ``(b, m, c)`` as maps ``(b, c, rows, columns)`` of strides 8, 16 and 32."""
        maps: list[Tensor] = []
        start = 0
        for h, w in self.pyramid:
            level = tokens[:, start : start + h * w]
            maps.append(level.transpose(1, 2).reshape(*level.shape[::2], h, w))
            start += h * w
        return maps


class Injector(nn.Module):
    """Adds to every patch token what it reads around itself in the pyramid, scaled by ``gamma`` (0 at first).

    Source: ViT-Adapter (arXiv 2205.08534), Eq. 1.
    """

    def __init__(self, dim: int, *, num_heads: int, num_points: int, value_ratio: float) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.feat_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = MSDeformAttn(
            dim, num_levels=PYRAMID_LEVELS, num_heads=num_heads, num_points=num_points, value_ratio=value_ratio
        )
        self.gamma = nn.Parameter(torch.zeros(dim))

    def forward(self, patches: Tensor, pyramid: Tensor, grids: TokenGrids) -> Tensor:
        """New patch tokens ``(b, n, c)`` from those given and the pyramid ``(b, m, c)``."""
        read: Tensor = self.attn(self.query_norm(patches), grids.patch_points, self.feat_norm(pyramid), grids.pyramid)
        return patches + self.gamma * read


class PyramidConvolution(nn.Module):
    """One depthwise 3 x 3 convolution, shared by the three maps of a pyramid sequence and applied to each alone."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)

    def forward(self, pyramid: Tensor, grids: TokenGrids) -> Tensor:
        """``(b, m, c)`` to ``(b, m, c)``."""
        maps = [self.dwconv(level).flatten(2) for level in grids.split(pyramid)]
        return torch.cat(maps, dim=2).transpose(1, 2)


class PyramidFeedForward(nn.Module):
    """Linear, depthwise convolution, GELU, Linear on the tokens of a pyramid."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = PyramidConvolution(hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, pyramid: Tensor, grids: TokenGrids) -> Tensor:
        """``(b, m, c)`` to ``(b, m, c)``."""
        output: Tensor = self.fc2(self.act(self.dwconv(self.fc1(pyramid), grids)))
        return output


class Extractor(nn.Module):
    """Adds to every pyramid token what it reads around itself in the ViT's map, then a convolutional feed-forward.

    Source: ViT-Adapter (arXiv 2205.08534), Eq. 2 and 3. Stochastic depth acts on the feed-forward alone, at the full
    rate in every extractor.
    """

    def __init__(
        self, dim: int, *, num_heads: int, num_points: int, value_ratio: float, ffn_ratio: float, drop_path_rate: float
    ) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.feat_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = MSDeformAttn(dim, num_levels=1, num_heads=num_heads, num_points=num_points, value_ratio=value_ratio)
        self.ffn_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.ffn = PyramidFeedForward(dim, int(dim * ffn_ratio))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, pyramid: Tensor, patches: Tensor, grids: TokenGrids) -> Tensor:
        """New pyramid tokens ``(b, m, c)`` from those given and the patch tokens ``(b, n, c)``."""
        read = self.attn(self.query_norm(pyramid), grids.pyramid_points, self.feat_norm(patches), [grids.patches])
        pyramid = pyramid + read
        refined: Tensor = pyramid + self.drop_path(self.ffn(self.ffn_norm(pyramid), grids))
        return refined


class Interaction(nn.Module):
    """Injects the pyramid into the patch tokens, runs a group of ViT blocks, extracts their tokens to the pyramid.

    Prefix tokens (CLS, registers) pass through the blocks with the patches; nothing is injected into or extracted from
    them. Differs from ViT-Adapter, which drops them for plain ViTs: a DINO block without its CLS token gives other
    patch tokens than DINO's.

    Args:
        dim: channels.
        num_heads: heads of the deformable attentions.
        num_points: their samples per head and level.
        value_ratio: their value width relative to ``dim``.
        ffn_ratio: hidden width of the extractor's feed-forward relative to ``dim``.
        drop_path_rate: stochastic depth of the extractor's feed-forward.
        extra_extractors: extractors that follow the first one on the same patch tokens.
        recomputes: whether injector and extractors are computed again in the backward pass.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        num_points: int,
        value_ratio: float,
        ffn_ratio: float,
        drop_path_rate: float,
        extra_extractors: int,
        recomputes: bool = False,
    ) -> None:
        super().__init__()

        def make_extractor() -> Extractor:
            return Extractor(
                dim,
                num_heads=num_heads,
                num_points=num_points,
                value_ratio=value_ratio,
                ffn_ratio=ffn_ratio,
                drop_path_rate=drop_path_rate,
            )

        self.recomputes = recomputes
        self.injector = Injector(dim, num_heads=num_heads, num_points=num_points, value_ratio=value_ratio)
        self.extractor = make_extractor()
        self.extra_extractors = nn.ModuleList(make_extractor() for _ in range(extra_extractors))

    def forward(
        self,
        prefix: Tensor,
        patches: Tensor,
        pyramid: Tensor,
        run_blocks: Callable[[Tensor], Tensor],
        grids: TokenGrids,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """New prefix ``(b, p, c)``, patch ``(b, n, c)`` and pyramid ``(b, m, c)`` tokens.

        ``run_blocks`` is the ViT's group of blocks, ``(b, p + n, c)`` to the same shape.
        """
        injected = call(self.injector, patches, pyramid, grids, recomputes=self.recomputes)
        tokens = run_blocks(torch.cat([prefix, injected], dim=1))
        prefix, patches = tokens[:, : prefix.shape[1]], tokens[:, prefix.shape[1] :]
        for extractor in (self.extractor, *self.extra_extractors):
            pyramid = call(extractor, pyramid, patches, grids, recomputes=self.recomputes)
        return prefix, patches, pyramid
