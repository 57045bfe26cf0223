#!/usr/bin/env python
"""Draw what each knob of UniAP does, on a generated scene: the pictures of docs/own-pictures.md.

* the pictures as they are in docs/, from random weights: `python tools/draw_knobs.py`
* of a model that was trained: `python tools/draw_knobs.py --weights RUN/model_final.pth --config-file RUN/config.yaml`

The same words give the same masks. Each picture is a row: the scene, then the masks for each value of one knob, a
colour for each mask; what no mask covers keeps its own colours.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from s2uniseg_d2.config import load_config
from s2uniseg_d2.data.pictures import Picture
from s2uniseg_d2.engine.drawing import caption, draw_label_map, grid, resize_to
from s2uniseg_d2.exit_status import HELP, fail, run_main
from s2uniseg_d2.labeling.maker import MaskSet, PseudoMaskMaker
from s2uniseg_d2.modeling.labelers import build_uniap

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "datasets"))
from make_scenes import make_scene  # noqa: E402

SCENE_PX, CELL_PX = 640, 232
COLOURS = 224  # of a PNG, which keeps it small


class Column(NamedTuple):
    """One cell of a picture.

    Attributes:
        title: above it, in ASCII.
        changes: of the config, as ``KEY VALUE`` words.
        layers: how many of UniAP's layers are shown; 0 shows all.
        kind: of the masks, instance or semantic.
        size_px: longer side for the encoder; 0 takes the config's.
    """

    title: str
    changes: tuple[str, ...] = ()
    layers: int = 0
    kind: str = "instance"
    size_px: int = 0


def rows_by_picture(taus: Sequence[float]) -> dict[str, list[list[Column]]]:
    """What each picture shows, by file name.

    Args:
        taus: of the config.
    """
    kinds = ("instance", "semantic")
    omegas = [(0.0, "features alone"), (0.4, "the paper"), (0.8, "mostly place")]
    sigmas, sizes = (0.01, 0.07, 0.5), (160, 320, 640)
    return {
        "knob_tau.png": [
            [Column(f"{kind}, tau {tau:g}", layers=layer + 1, kind=kind) for layer, tau in enumerate(taus)]
            for kind in kinds
        ],
        "knob_omega.png": [[Column(f"{_greek('omega', space)}, {words}", _omega(space)) for space, words in omegas]],
        "knob_sigma.png": [
            [Column(f"sigma {sigma:g}", ("MODEL.UNIAP.SIGMA", str(sigma))) for sigma in sigmas],
        ],
        "knob_size.png": [[Column(f"{size} pixels", size_px=size) for size in sizes]],
    }


def _greek(name: str, value: float) -> str:
    return f"{name}_s {value:g}"


def _omega(space: float) -> tuple[str, ...]:
    return ("MODEL.UNIAP.OMEGA_S", str(space), "MODEL.UNIAP.OMEGA_F", str(round(1 - space, 2)))


class Painter:
    """Paints a scene's masks for one value after the other; a mask keeps its colour from one cell to the next.

    Args:
        maker: whose labeler and picture size are changed.
        scene: a square picture.
        config_file: of the model.
    """

    def __init__(self, maker: PseudoMaskMaker, scene: Picture, config_file: str) -> None:
        self._maker, self._scene, self._config_file = maker, scene, config_file
        self._small = resize_to(scene, (CELL_PX, CELL_PX))
        self._before = np.full((CELL_PX, CELL_PX), -1, dtype=np.int64)

    def scene(self) -> Picture:
        """The cell without masks."""
        return caption(self._small, "scene")

    def paint(self, column: Column) -> Picture:
        """A cell with the number of masks in its title."""
        cfg = load_config(self._config_file, list(column.changes))
        self._maker.labeler = build_uniap(cfg)
        self._maker.image_size = column.size_px or cfg.INPUT.GLOBAL_LONGEST_PX
        found: MaskSet = getattr(self._maker(self._scene), column.kind)
        shown = found.levels < column.layers if column.layers else np.ones(len(found.levels), dtype=bool)
        owner = _coarsest(found.masks[shown])
        places = (2 * np.arange(CELL_PX) + 1) * len(owner) // (2 * CELL_PX)
        owner = self._before = _follow(owner[places[:, None], places], self._before)
        count = len(np.unique(owner[owner >= 0]))
        return caption(draw_label_map(self._small, owner, alpha=0.7), f"{column.title}: {count} masks")


def _coarsest(masks: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The number of the coarsest mask that covers each pixel, -1 where none does."""
    owner = np.full(masks.shape[1:], -1, dtype=np.int64)
    for number, mask in enumerate(masks):
        owner[mask] = number
    return owner


def _follow(owner: NDArray[np.int64], before: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same regions, numbered as those before that they share most pixels with; the largest choose first."""
    numbers, areas = np.unique(owner[owner >= 0], return_counts=True)
    renamed, free = np.full_like(owner, -1), int(before.max(initial=-1)) + 1
    taken: set[int] = set()
    for number in numbers[np.argsort(-areas)]:
        region = owner == number
        old, shared = np.unique(before[region & (before >= 0)], return_counts=True)
        candidates = [int(old[place]) for place in np.argsort(-shared) if int(old[place]) not in taken]
        if not candidates:
            candidates, free = [free], free + 1
        renamed[region] = candidates[0]
        taken.add(candidates[0])
    return renamed


def main(arguments: list[str] | None = None) -> int:
    """Draw all pictures; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--output", type=Path, default=REPOSITORY / "docs" / "pictures", metavar="FOLDER", help="default: docs/pictures"
    )
    add("--config-file", default=str(REPOSITORY / "configs" / "evidence.yaml"), metavar="FILE", help="of the model")
    add("--weights", default="", help="a checkpoint or a ViT's name (default: random weights, seed 0)")
    add("--scene", type=int, default=5, metavar="N", help="seed of the scene (default: %(default)s)")
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    try:
        maker = PseudoMaskMaker.from_pretrained(args.weights, args.config_file, device="cpu")
        taus = load_config(args.config_file).MODEL.UNIAP.TAUS
        scene = make_scene(SCENE_PX, 4, np.random.default_rng([args.scene, 0, 0])).image
        args.output.mkdir(parents=True, exist_ok=True)
        for name, rows in rows_by_picture(taus).items():
            painters = [Painter(maker, scene, args.config_file) for _ in rows]
            page = grid([[one.scene(), *map(one.paint, columns)] for one, columns in zip(painters, rows, strict=True)])
            path = args.output / name
            Image.fromarray(page).quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB", flush=True)
    except (ValueError, OSError) as error:
        return fail("draw_knobs.py", error)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main, "draw_knobs.py"))
