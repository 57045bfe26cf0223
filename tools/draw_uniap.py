#!/usr/bin/env python
"""Draw what UniAP does to one generated scene, step by step: the pictures of docs/uniap.md.

    python tools/draw_uniap.py --output docs/pictures

The features are those of a ViT with random weights, at the size and with the thresholds of `configs/tiny.yaml`, so that
nothing is downloaded. The same arguments give the same pictures on the same machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage
from torch import Tensor

from s2uniseg_d2.core.labelers.rounding import full_float32
from s2uniseg_d2.core.labelers.uniap import Layer, UniAP, UniAPConfig
from s2uniseg_d2.engine.drawing import Image, draw_label_map, grid, resize_to, upsample_labels
from s2uniseg_d2.exit_status import HELP, run_main
from s2uniseg_d2.labeling.maker import PseudoMaskMaker

REPOSITORY = Path(__file__).resolve().parents[1]
SIDE_PX = 512  # of the scene for the ViT: 32 x 32 tokens of 16 pixels
CELL_PX = 192


class Similarity(NamedTuple):
    """Similarities of neighbouring tokens, each ``(edges,)`` in [-1, 1], and their edges ``(2, edges)``."""

    edges: Tensor
    feature: Tensor
    spatial: Tensor
    both: Tensor


def neighbour_similarities(tokens: Tensor, config: UniAPConfig) -> Similarity:
    """Eq. 1, 2 and 3 of the first layer as they are printed, on all pairs: small maps only.

    Args:
        tokens: ``(d, rows, columns)``.
        config: for its weights ω.
    """
    _, rows, columns = tokens.shape
    unit = torch.nn.functional.normalize(tokens.flatten(1).T.double(), dim=1)
    affinity = unit @ unit.T
    number = torch.arange(rows * columns).view(rows, columns)
    across = torch.stack([number[:, :-1].reshape(-1), number[:, 1:].reshape(-1)])
    down = torch.stack([number[:-1].reshape(-1), number[1:].reshape(-1)])
    edges = torch.cat([across, down], dim=1)
    feature = affinity[edges[0], edges[1]]
    spatial = 1 - (affinity[edges[0]] - affinity[edges[1]]).abs().mean(dim=1)
    return Similarity(edges, feature, spatial, config.omega_f * feature + config.omega_s * spatial)


def draw_identify(picture: Image, tokens: Tensor, config: UniAPConfig) -> Image:
    """One row: the scene, its features as colours, both similarities, their sum, and what the first threshold joins."""
    found = neighbour_similarities(tokens, config)
    shape = (tokens.shape[1], tokens.shape[2])
    cells = [resize_to(picture, (CELL_PX, CELL_PX)), _enlarge(_feature_colours(tokens))]
    cells += [_enlarge(_heat(_mean_at_tokens(found.edges, values, shape))) for values in found[1:]]
    cells.append(_draw_edges(picture, found.edges[:, found.both >= config.taus[0]], shape))
    titles = ["scene", "features (PCA)", "S^f, Eq. 1", "S^s, Eq. 2", "S, Eq. 3", f"S >= {config.taus[0]}"]
    return grid([cells], titles)


def draw_layers(picture: Image, layers: list[Layer], taus: tuple[float, ...]) -> Image:
    """Two rows, a column for each layer: the partition by instance pooling, and the groups of semantic pooling."""
    small = resize_to(picture, (CELL_PX, CELL_PX))
    rows = [
        [draw_label_map(small, upsample_labels(_by_first_token(labels), (CELL_PX, CELL_PX))) for labels in kind]
        for kind in ([layer.instance for layer in layers], [layer.semantic for layer in layers])
    ]
    counts = [int(layer.instance.max()) + 1 for layer in layers]
    titles = [f"tau = {tau}: {count} nodes" for tau, count in zip(taus, counts, strict=True)]
    return grid(rows, titles)


def _by_first_token(labels: Tensor) -> NDArray[np.int64]:
    """The map with every region's number replaced by that of its first token: what stays, keeps its colour."""
    flat = labels.numpy().reshape(-1)
    found, first, index = np.unique(flat, return_index=True, return_inverse=True)
    return np.where(found < 0, -1, first)[index].reshape(labels.shape)


def _feature_colours(tokens: Tensor) -> Image:
    """The three main directions of the features as red, green and blue, ``(rows, columns, 3)``."""
    flat = torch.nn.functional.normalize(tokens.flatten(1).T.double(), dim=1)
    flat = flat - flat.mean(dim=0)
    _, _, directions = torch.linalg.svd(flat, full_matrices=False)
    # The sign of a direction is free: the larger half points up, so that colours are the same everywhere.
    chosen = directions[:3] * directions[:3].sum(dim=1, keepdim=True).sign()
    values = flat @ chosen.T
    low, high = values.quantile(0.02, dim=0), values.quantile(0.98, dim=0)
    scaled = ((values - low) / (high - low)).clamp(0, 1) * 255
    return scaled.round().to(torch.uint8).view(tokens.shape[1], tokens.shape[2], 3).numpy()


def _mean_at_tokens(edges: Tensor, values: Tensor, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Mean of the values of all edges at each token, ``(rows, columns)``."""
    total, count = torch.zeros(2, shape[0] * shape[1], dtype=torch.float64)
    for end in edges:
        total.index_add_(0, end, values)
        count.index_add_(0, end, torch.ones_like(values))
    return (total / count).view(shape).numpy()


def _heat(values: NDArray[np.float64]) -> Image:
    """Values from 0 (dark) to 1 (light) in colours that also part in grey."""
    grey = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(cv2.applyColorMap(grey, cv2.COLORMAP_VIRIDIS)[..., ::-1])


def _enlarge(image: Image) -> Image:
    return np.asarray(cv2.resize(image, (CELL_PX, CELL_PX), interpolation=cv2.INTER_NEAREST), dtype=np.uint8)


def _draw_edges(picture: Image, edges: Tensor, shape: tuple[int, int]) -> Image:
    """The scene, paled, with a line from token to token for every edge."""
    canvas = resize_to(picture, (CELL_PX, CELL_PX)) // 3
    step = np.array([CELL_PX / shape[1], CELL_PX / shape[0]])
    for i, j in edges.T.tolist():
        ends = [np.rint((np.array([n % shape[1], n // shape[1]]) + 0.5) * step).astype(int).tolist() for n in (i, j)]
        cv2.line(canvas, ends[0], ends[1], (255, 255, 255), 1)
    return canvas


def encode_scene(seed: int) -> tuple[Image, Tensor, UniAPConfig]:
    """A generated scene, its tokens ``(d, rows, columns)`` and the settings of the tiny recipe."""
    sys.path.insert(0, str(REPOSITORY / "datasets"))
    from make_scenes import make_scene

    picture = make_scene(256, 6, np.random.default_rng(seed)).image
    maker = PseudoMaskMaker.from_pretrained(
        "", REPOSITORY / "configs/tiny.yaml", device="cpu", image_size=SIDE_PX, overrides=["MODEL.WEIGHTS", ""]
    )
    tokens = maker.encode([maker.resize(picture)], (SIDE_PX, SIDE_PX))[0]
    config = getattr(maker.labeler, "config", None)
    if not isinstance(config, UniAPConfig):
        raise ValueError(f"configs/tiny.yaml must label with UniAP, got {type(maker.labeler).__name__}")
    return picture, tokens, config


def main(arguments: list[str] | None = None) -> int:
    """Draw and write; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("docs/pictures"), help="folder (default %(default)s)")
    parser.add_argument("--seed", type=int, default=4, help="of the scene (default %(default)s)")
    args = parser.parse_args(arguments)
    picture, tokens, config = encode_scene(args.seed)
    with full_float32(tokens.device):
        layers = list(UniAP(config).iterate_layers(tokens))
    args.output.mkdir(parents=True, exist_ok=True)
    drawn = {
        "uniap_identify.jpg": draw_identify(picture, tokens, config),
        "uniap_layers.jpg": draw_layers(picture, layers, config.taus),
    }
    for name, image in drawn.items():
        # a third of a PNG's bytes: scenes are noisy
        PILImage.fromarray(image).save(args.output / name, quality=90, subsampling=0)
        print(args.output / name)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main, "draw_uniap.py"))
