"""A plain timm vision transformer, run in groups of blocks."""

from __future__ import annotations

import difflib
from typing import Any

import timm
import torch
from timm.layers import DropPath, PatchEmbed, resample_abs_pos_embed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from s2uniseg_d2.core.recompute import call

CLOSE_NAMES = 5


class TimmViT(nn.Module):
    """The layers of one timm ViT under their own names, so that another module can act between the blocks.

    ``embed``, ``run`` over all blocks and ``norm`` give exactly timm's ``forward_features``, however the blocks are
    grouped. Parameters are named as in timm and in DINO's checkpoints (``cls_token``, ``pos_embed``,
    ``patch_embed.proj``, ``blocks.N``, ``norm``); the classifier is left out. Position embeddings follow the picture's
    size by timm's own resampling (bicubic, antialiased). Rotary positions, as DINOv3 has, are made for the picture's
    grid and handed to every block.

    Source: the encoder of S2-UniSeg is a DINO ViT-B/8, ``vit_base_patch8_224.dino`` in timm.

    Args:
        name: a timm model, with or without the tag of its weights.
        patch_size: side of a patch in pixels; None keeps the name's own, as below.
        embed_dim: channels of a token.
        depth: number of blocks.
        num_heads: attention heads of a block.
        drop_path_rate: stochastic depth of the last block, in [0, 1); it rises linearly from 0 at the first.
        pretrained: fetch timm's weights of that name (network or timm's cache).
        img_size: side of the square picture whose grid the position embeddings have.
        recomputes: whether blocks are computed again in the backward pass, which saves their activations.

    Raises:
        ValueError: if timm does not know the name, if the model is not a plain ViT with position embeddings (learned,
            or rotary and the same in all blocks) and square patches, if the sizes do not fit together, or if the
            weights cannot be had.
    """

    def __init__(
        self,
        name: str,
        *,
        patch_size: int | None = None,
        embed_dim: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        drop_path_rate: float = 0.0,
        pretrained: bool = False,
        img_size: int | None = None,
        recomputes: bool = False,
    ) -> None:
        super().__init__()
        sizes = {
            "patch_size": patch_size,
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": num_heads,
            "img_size": img_size,
        }
        for size_name, size in sizes.items():
            if size is not None and size <= 0:
                raise ValueError(f"{size_name} must be positive or None, got {size}")
        if not 0.0 <= drop_path_rate < 1.0:
            raise ValueError(f"drop_path_rate must lie in [0, 1), got {drop_path_rate}")
        chosen = {key: size for key, size in sizes.items() if size is not None}
        model = _create(name, pretrained=pretrained, drop_path_rate=drop_path_rate, **chosen)
        if 0 in model.patch_embed.grid_size:
            raise ValueError(f"img_size must hold at least one patch of {model.patch_embed.patch_size}, got {img_size}")
        self.patch_embed = model.patch_embed
        self.cls_token: Tensor | None = model.cls_token
        self.reg_token: Tensor | None = model.reg_token
        self.pos_embed: Tensor | None = model.pos_embed
        self.rope = getattr(model, "rope", None)
        self.pos_drop = model.pos_drop
        self.norm_pre = getattr(model, "norm_pre", nn.Identity())  # older Evas of timm have none
        self.blocks = model.blocks
        self.norm = model.norm
        self.name = name
        self.recomputes = recomputes
        self.embed_dim: int = model.embed_dim
        self.depth: int = len(model.blocks)
        self.patch_size: int = model.patch_embed.patch_size[0]
        # what the name's weights were trained with, per channel (RGB), for pictures in [0, 255]
        self.pixel_mean, self.pixel_std = _pixel_statistics(model)
        self._is_fixed = False
        self._grid_size: tuple[int, int] = tuple(model.patch_embed.grid_size)
        self.num_prefix_tokens: int = model.num_prefix_tokens
        # models with registers and DeiT-3 give the prefix tokens no position
        self.num_prefix_positions: int = 0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of the grid that ``pos_embed`` was made for."""
        return self._grid_size

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Turn pictures ``(b, 3, H, W)`` into the tokens that the first block reads.

        Returns:
            tokens ``(b, p + h * w, c)``, the p prefix tokens (CLS, then registers) first and the patches row-major, and
            the grid (h, w) = (H, W) / patch size.

        Raises:
            ValueError: if H or W is not a positive multiple of the patch size.
        """
        if images.dim() != 4 or any(side <= 0 or side % self.patch_size for side in images.shape[2:]):
            raise ValueError(
                f"images must be (b, 3, H, W) with H and W multiples of the patch size {self.patch_size}, "
                f"got {tuple(images.shape)}"
            )
        patches: Tensor = self.patch_embed(images)
        b, h, w, _ = patches.shape
        prefix = [token.expand(b, -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        tokens = patches.flatten(1, 2)
        if self.pos_embed is None:
            tokens = torch.cat([*prefix, tokens], dim=1)
        elif self.num_prefix_positions:
            tokens = torch.cat([*prefix, tokens], dim=1) + self._positions(h, w)
        else:
            tokens = torch.cat([*prefix, tokens + self._positions(h, w)], dim=1)
        embedded: Tensor = self.norm_pre(self.pos_drop(tokens))
        return embedded, (h, w)

    @torch.no_grad()
    def fix_grid(self, h: int, w: int) -> None:
        """Resample the position embeddings to a grid once, for pictures of that size alone; nothing else changes."""
        if self.pos_embed is not None:
            self.pos_embed = nn.Parameter(self._positions(h, w).clone(), requires_grad=self.pos_embed.requires_grad)
        self._grid_size, self._is_fixed = (h, w), True

    def _positions(self, h: int, w: int) -> Tensor:
        """Position embeddings of a grid, those of the prefix tokens first if they have any."""
        if self._is_fixed and (h, w) == self._grid_size:
            assert self.pos_embed is not None
            return self.pos_embed
        positions: Tensor = resample_abs_pos_embed(
            self.pos_embed, new_size=[h, w], old_size=list(self.grid_size), num_prefix_tokens=self.num_prefix_positions
        )
        return positions

    def run(self, tokens: Tensor, start: int, stop: int, grid: tuple[int, int] | None = None) -> Tensor:
        """Pass tokens ``(b, p + n, c)`` through the blocks ``start`` to ``stop - 1``, counted from 0.

        Args:
            tokens: of ``embed`` or of the blocks before.
            start: the first block.
            stop: the block after the last.
            grid: rows and columns of the patches, which rotary positions need.

        Raises:
            ValueError: if the range is not inside ``[0, depth]``, or the grid is missing or not that of the tokens.
        """
        if not 0 <= start <= stop <= self.depth:
            raise ValueError(f"start and stop must satisfy 0 <= start <= stop <= {self.depth}, got {start} and {stop}")
        rotary: tuple[Tensor, ...] = ()
        if self.rope is not None:
            if grid is None or grid[0] * grid[1] != tokens.shape[1] - self.num_prefix_tokens:
                raise ValueError(
                    f"grid must hold the {tokens.shape[1] - self.num_prefix_tokens} patches of tokens, got {grid}"
                )
            rotary = (self.rope.get_embed(shape=list(grid)),)
        for index in range(start, stop):
            tokens = call(self.blocks[index], tokens, *rotary, recomputes=self.recomputes)
        return tokens

    def freeze(self, blocks: int) -> None:
        """Keep the embeddings and the first blocks from learning, and from stochastic depth.

        Args:
            blocks: how many; 0 changes nothing, -1 is the whole ViT with its final norm, and so is ``depth``.

        Raises:
            ValueError: if there are not so many.
        """
        if not -1 <= blocks <= self.depth:
            raise ValueError(f"blocks must lie in [-1, {self.depth}], the depth of {self.name!r}, got {blocks}")
        if blocks == 0:
            return
        if blocks in (-1, self.depth):
            self.requires_grad_(False)
            frozen = list(self.blocks)
        else:
            frozen = list(self.blocks[:blocks])
            learning = {id(p) for part in (self.blocks[blocks:], self.norm) for p in part.parameters()}
            for parameter in self.parameters():
                if id(parameter) not in learning:
                    parameter.requires_grad_(False)
        for block in frozen:
            for module in block.modules():
                if isinstance(module, DropPath):
                    module.drop_prob = 0.0

    def forward(self, images: Tensor) -> Tensor:
        """All tokens ``(b, p + h * w, c)`` after the last block and the final LayerNorm."""
        tokens, grid = self.embed(images)
        normed: Tensor = self.norm(self.run(tokens, 0, self.depth, grid))
        return normed


def _create(name: str, *, pretrained: bool, **sizes: Any) -> Any:
    """Timm's model of that name, or a ValueError that says what is wrong with the name or the sizes."""
    tagged = timm.list_models(module="vision_transformer", include_tags=True)
    if not timm.is_model(name) or ("." in name and name not in timm.list_models(include_tags=True)):
        known = {*tagged, *timm.list_models(module="vision_transformer")}
        near = difflib.get_close_matches(name, sorted(known), n=CLOSE_NAMES, cutoff=0.3)
        raise ValueError(f"name must be a model that timm knows, got {name!r}; near names: {', '.join(near) or 'none'}")
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=0, dynamic_img_size=True, **sizes)
    except TypeError as error:
        # models without a patch grid do not take these arguments
        raise ValueError(f"name must be a plain ViT of timm, got {name!r}, which refuses its arguments") from error
    except AssertionError as error:
        raise ValueError(f"sizes of {name!r} must fit together, got {sizes}: {error}") from error
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise ValueError(
            f"pretrained weights of {name!r} could not be fetched or do not fit ({type(error).__name__}: {error}); "
            "name a local checkpoint instead"
        ) from error
    reason = _not_plain_because(model)
    if reason is not None:
        raise ValueError(f"name must be a plain ViT of timm, got {name!r} ({type(model).__name__}), which {reason}")
    return model


def _pixel_statistics(model: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    mean, std = (tuple(255.0 * value for value in model.pretrained_cfg[key]) for key in ("mean", "std"))
    return mean, std


def _not_plain_because(model: Any) -> str | None:
    """What keeps a timm model from being run here block by block, or None if nothing does."""
    if not hasattr(model, "blocks"):
        return "has no blocks"
    if getattr(model, "rope_mixed", False):
        return "has rotary positions of its own in every block"
    if getattr(model, "pos_embed", None) is None and getattr(model, "rope", None) is None:
        return "has no position embedding (pos_embed or rope)"
    if type(model) not in (VisionTransformer, Eva):
        return "embeds or runs its tokens in a way of its own"
    if not isinstance(model.patch_embed, PatchEmbed):
        return f"cuts its patches with {type(model.patch_embed).__name__} instead of one convolution"
    rows, columns = model.patch_embed.patch_size
    if rows != columns:
        return f"has patches of {rows} x {columns} pixels, not square ones"
    return None
