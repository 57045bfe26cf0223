"""The feature maps that bm_uniap.py times, by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

SYNTHETIC = ("smooth", "block", "scene")
BLOCK = 4
# Pixels that a token of the "picture" map stands for.
STRIDE = 4
VIT_DEPTH = 2


def make_features(kind: str, side: int, width: int, seed: int, picture: Path | None = None) -> torch.Tensor:
    """Return a map ``(1, width, side, side)`` of float32.

    Args:
        kind: "smooth": the texture is fixed in tokens, so that regions grow in number with them; "block": what the
            zero-initialised adapter gives; "scene": always the same scene, sampled ever finer; "picture": a random ViT.
        side: tokens per side, a multiple of 4.
        width: feature channels.
        seed: of everything random but the scene's regions and the ViT's weights.
        picture: the photograph of "picture".
    """
    generator = torch.Generator().manual_seed(seed)
    if kind == "picture":
        if picture is None:
            raise ValueError("picture must name a photograph for the map kind 'picture', got None")
        return picture_features(picture, side, width)
    return {"smooth": smooth_features, "block": block_features, "scene": scene_features}[kind](side, width, generator)


def smooth_features(side: int, d: int, generator: torch.Generator) -> torch.Tensor:
    """Regions of three scales with a common direction and smooth noise: adjacent cosines mostly 0.5 to 0.95."""
    field = 0.3 * torch.randn(1, d, 1, 1, generator=generator).expand(1, d, side, side).clone()
    for cells, strength in ((2, 0.3), (4, 0.3), (max(1, side // 4), 0.7)):
        field += strength * _regions(side, cells, d, generator)
    return field + 3 * _noise(side, d, generator, 0.3, 2.5)


def block_features(side: int, d: int, generator: torch.Generator) -> torch.Tensor:
    """What the zero-initialised adapter gives: tokens of a quarter of the resolution, enlarged by nearest."""
    return functional.interpolate(smooth_features(side // BLOCK, d, generator), scale_factor=BLOCK, mode="nearest")


def scene_features(side: int, d: int, generator: torch.Generator) -> torch.Tensor:
    """The same regions at every size, on noise of the tokens: adjacent cosines of 0.5 to 0.95 at every size."""
    fixed = torch.Generator().manual_seed(0)
    field = 0.4 * torch.randn(1, d, 1, 1, generator=fixed).expand(1, d, side, side).clone()
    for cells, strength in ((2, 0.4), (4, 0.5), (8, 0.6)):
        field += strength * _regions(side, cells, d, fixed)
    return field + 3 * _noise(side, d, generator, 0.5, 0.4)


def picture_features(path: Path, side: int, width: int) -> torch.Tensor:
    """Tokens of a two-layer ViT with random weights and 4 x 4 patches: colours and edges, no meaning."""
    # Here, because the timed processes import this module and are to stay small.
    from timm.models.vision_transformer import VisionTransformer

    from s2uniseg_d2.data.pictures import read_picture

    pixels = torch.from_numpy(np.ascontiguousarray(read_picture(path))).permute(2, 0, 1)[None].float()
    pixels = functional.interpolate(pixels, size=(STRIDE * side,) * 2, mode="bilinear", antialias=True)
    heads = max(1, width // 64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = VisionTransformer(
            STRIDE * side,
            STRIDE,
            num_classes=0,
            global_pool="",
            embed_dim=width,
            depth=VIT_DEPTH,
            num_heads=heads,
            class_token=False,
        )
    with torch.no_grad():
        tokens = vit.eval().forward_features(pixels / 127.5 - 1)
    return tokens.transpose(1, 2).reshape(1, width, side, side).contiguous()


def adjacent_cosines(features: torch.Tensor) -> list[float]:
    """Return the quantiles 0.05, 0.5 and 0.95 of the cosines of tokens beside or below each other."""
    unit = functional.normalize(features, dim=1)
    right, down = (unit[..., 1:] * unit[..., :-1]).sum(dim=1), (unit[..., 1:, :] * unit[..., :-1, :]).sum(dim=1)
    cosines = torch.cat([right.flatten(), down.flatten()])
    return [round(float(q), 2) for q in torch.quantile(cosines, torch.tensor([0.05, 0.5, 0.95]))]


def _regions(side: int, cells: int, d: int, generator: torch.Generator) -> torch.Tensor:
    """Voronoi cells of random colour around cells² random points."""
    axis = (torch.arange(side) + 0.5) / side
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).view(-1, 2)
    centres = torch.rand(cells * cells, 2, generator=generator)
    nearest = torch.cdist(grid, centres).argmin(dim=1)
    colours = torch.randn(cells * cells, d, generator=generator)
    return colours[nearest].T.reshape(1, d, side, side)


def _noise(side: int, d: int, generator: torch.Generator, least: float, more: float) -> torch.Tensor:
    """Noise averaged over 3 x 3 tokens, of an amount between ``least`` and ``least + more`` that varies slowly."""
    noise = functional.avg_pool2d(torch.randn(1, d, side, side, generator=generator), 3, 1, 1, count_include_pad=False)
    amount = functional.interpolate(torch.rand(1, 1, 8, 8, generator=generator), size=(side, side), mode="bilinear")
    return (least + more * amount) * noise
