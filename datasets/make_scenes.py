#!/usr/bin/env python
"""Write generated scenes with instance, semantic and panoptic truth in COCO's formats.

* `python datasets/make_scenes.py --output output/scenes`
* `python datasets/make_scenes.py --output output/scenes --train 2000 --val 200 --size 256 --seed 1 --classes 4`

Each scene has 2 to 4 textured regions of stuff, and 2 to 7 textured things that overlap. The same arguments give the
same scenes; scene i does not depend on how many there are. `datasets/README.md` describes the files.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_util

# the tool lies beside this file, whoever imports it
sys.path.insert(0, str(Path(__file__).resolve().parent))
from scene_paint import STUFF, THINGS, paint_thing, value_noise

from s2uniseg_d2.exit_status import HELP, run_main

FORMAT_VERSION = 1  # of the scenes that given arguments produce
MARKER = "scenes.json"
MIN_VISIBLE = 80  # pixels of a 256 x 256 scene; a thing of which less is visible is left out of the scene
JPEG_QUALITY = 95


class Scene(NamedTuple):
    """One picture and its truth.

    Attributes:
        image: ``(size, size, 3)`` uint8 RGB.
        stuff: ``(size, size)`` int64, index into the stuff classes, under the things too.
        owner: ``(size, size)`` int64, number of the visible thing, -1 where stuff is visible.
        kinds: class index of each thing, in drawing order, the lowest first.
    """

    image: NDArray[np.uint8]
    stuff: NDArray[np.int64]
    owner: NDArray[np.int64]
    kinds: list[int]


def make_scene(size: int, num_classes: int, rng: np.random.Generator) -> Scene:
    """Draw one scene with things of the first ``num_classes`` classes."""
    stuff = _lay_out_stuff(size, rng)
    picture = np.zeros((size, size, 3), np.float32)
    for index, paint in enumerate(STUFF.values()):
        if (region := stuff == index).any():
            picture[region] = paint(size, rng)[region]
    names = list(THINGS)[:num_classes]
    # few classes per scene, so that most scenes hold several instances of one
    palette = rng.choice(len(names), size=min(len(names), int(rng.integers(2, 5))), replace=False)
    kinds = [int(kind) for kind in rng.choice(palette, size=int(rng.integers(2, 8)))]
    painted = [paint_thing(names[kind], size, rng) for kind in kinds]
    kept = _visible_enough(size, painted)
    painted, kinds = [painted[k] for k in kept], [kinds[k] for k in kept]
    owner = _stack(size, painted)
    _cast_shadow(picture, owner >= 0)
    for index, ((left, top), shape, surface) in enumerate(painted):
        window = np.s_[top : top + shape.shape[0], left : left + shape.shape[1]]
        mine = owner[window] == index
        picture[window][mine] = surface[mine]
    return Scene(_expose(picture, rng), stuff, owner, kinds)


def _lay_out_stuff(size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Two to four classes, each around its own height, with wavy, slanted borders."""
    chosen = np.sort(rng.choice(len(STUFF), size=int(rng.integers(2, 5)), replace=False))
    axis = (np.arange(size) + 0.5) / size
    slant = rng.uniform(-0.5, 0.5)
    height = axis[:, None] + slant * (axis[None, :] - 0.5)
    levels = (np.arange(len(chosen)) + 0.5) / len(chosen)
    waves = [0.16 * value_noise(size, size, (3, 3), rng) for _ in chosen]
    scores = np.stack([wave - (height - level) ** 2 for wave, level in zip(waves, levels, strict=True)])
    return chosen[scores.argmax(axis=0)]


def _stack(size: int, painted: list[Any]) -> NDArray[np.int64]:
    owner = np.full((size, size), -1)
    for index, ((left, top), shape, _) in enumerate(painted):
        owner[top : top + shape.shape[0], left : left + shape.shape[1]][shape] = index
    return owner


def _visible_enough(size: int, painted: list[Any]) -> list[int]:
    """Things that stay in the scene: leaving one out uncovers others, so one at a time, the least visible first."""
    kept = list(range(len(painted)))
    least = MIN_VISIBLE * size**2 / 256**2
    while kept:
        owner = _stack(size, [painted[k] for k in kept])
        areas = np.bincount(owner[owner >= 0], minlength=len(kept))
        if areas.min() >= least:
            break
        kept.pop(int(areas.argmin()))
    return kept


def _cast_shadow(picture: NDArray[np.float32], covered: NDArray[np.bool_]) -> None:
    shift = max(1, picture.shape[0] // 50)
    shadow = np.zeros(covered.shape, np.float32)
    shadow[shift:, shift:] = covered[:-shift, :-shift]
    picture *= (1 - 0.3 * cv2.GaussianBlur(shadow, (0, 0), shift))[:, :, None]


def _expose(picture: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Uneven light, a lens that blurs by half a pixel, a sensor with noise."""
    size = picture.shape[0]
    light = 0.88 + 0.24 * value_noise(size, size, (2, 2), rng)
    blurred = cv2.GaussianBlur(picture * light[:, :, None], (0, 0), 0.5)
    noisy = blurred + 0.018 * rng.standard_normal((size, size, 3), dtype=np.float32)
    return (np.clip(noisy, 0, 1) * 255 + 0.5).astype(np.uint8)


class SplitWriter:
    """Writes the scenes of one split and keeps their annotations.

    Args:
        folder: made here.
        classes: names of the things.
    """

    def __init__(self, folder: Path, classes: list[str]) -> None:
        self.folder = folder
        self._num_things = len(classes)
        names = [*classes, *STUFF]
        # ids from 1: things, then stuff; a class number in a semantic picture is its id minus 1
        self._categories = [
            {"id": number, "name": name, "isthing": int(number <= len(classes)), "supercategory": "scene"}
            for number, name in enumerate(names, start=1)
        ]
        self._images: list[dict[str, Any]] = []
        self._instances: list[dict[str, Any]] = []
        self._panoptic: list[dict[str, Any]] = []
        for name in ("images", "semantic", "panoptic"):
            (folder / name).mkdir(parents=True)

    def add(self, scene: Scene) -> None:
        """Write one scene's three pictures and note its annotations."""
        image_id = len(self._images) + 1
        name, (height, width) = f"{image_id:06d}", scene.owner.shape
        segments = np.where(scene.owner >= 0, scene.owner + 1, len(scene.kinds) + 1 + scene.stuff)
        classes = {index + 1: kind + 1 for index, kind in enumerate(scene.kinds)}
        classes |= {len(scene.kinds) + 1 + index: self._num_things + 1 + index for index in range(len(STUFF))}
        infos = []
        for number in np.unique(segments).tolist():
            rle = mask_util.encode(np.asfortranarray(segments == number, dtype=np.uint8))
            area, bbox = int(mask_util.area(rle)), [int(side) for side in mask_util.toBbox(rle)]
            info = {"category_id": classes[number], "area": area, "bbox": bbox, "iscrowd": 0}
            infos.append({"id": number, **info})
            if number <= len(scene.kinds):
                rle["counts"] = rle["counts"].decode("ascii")
                numbered = {"id": len(self._instances) + 1, "image_id": image_id}
                self._instances.append({**numbered, **info, "segmentation": rle})
        self._images.append({"id": image_id, "file_name": f"{name}.jpg", "height": height, "width": width})
        self._panoptic.append({"image_id": image_id, "file_name": f"{name}.png", "segments_info": infos})
        lookup = np.zeros(max(classes) + 1, np.uint8)
        lookup[list(classes)] = [category - 1 for category in classes.values()]
        quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        _write(self.folder / "images" / f"{name}.jpg", scene.image[:, :, ::-1], quality)
        _write(self.folder / "semantic" / f"{name}.png", lookup[segments])
        # R + 256 G + 65536 B, and OpenCV takes B, G, R; a scene has fewer than 256 segments
        coded = np.stack([np.zeros_like(segments), segments // 256, segments % 256], axis=2).astype(np.uint8)
        _write(self.folder / "panoptic" / f"{name}.png", coded)

    def finish(self) -> None:
        """Write the two annotation files."""
        things = [category for category in self._categories if category["isthing"]]
        for name, truth, categories in (
            ("instances", self._instances, things),
            ("panoptic", self._panoptic, self._categories),
        ):
            content = {"images": self._images, "annotations": truth, "categories": categories}
            (self.folder / f"{name}.json").write_text(json.dumps(content))


def _write(path: Path, picture: NDArray[Any], parameters: list[int] | None = None) -> None:
    if not cv2.imwrite(str(path), picture, parameters or []):
        raise OSError(f"cannot write {path}")


def make_scenes(output: Path, counts: dict[str, int], size: int, seed: int, num_classes: int) -> None:
    """Write all splits beside ``output``, then move them there: a half-written folder never bears the final name."""
    partial = output.with_name(f".{output.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for index, (split, count) in enumerate(counts.items()):
            writer = SplitWriter(partial / split, list(THINGS)[:num_classes])
            start = shown = time.monotonic()
            for number in range(count):
                writer.add(make_scene(size, num_classes, np.random.default_rng([seed, index, number])))
                if time.monotonic() - shown > 5:
                    shown = time.monotonic()
                    print(f"{split}: {number + 1} of {count} scenes", flush=True)
            writer.finish()
            rate = count / max(time.monotonic() - start, 1e-9)
            print(f"{split}: {count} scenes, {rate:.0f} per second", flush=True)
        (partial / MARKER).write_text(json.dumps(_request(counts, size, seed, num_classes)))
        if output.exists():
            shutil.rmtree(output)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _request(counts: dict[str, int], size: int, seed: int, num_classes: int) -> dict[str, Any]:
    return {"version": FORMAT_VERSION, **counts, "size": size, "seed": seed, "classes": num_classes}


def _is_there(output: Path, request: dict[str, Any], *, overwrite: bool) -> bool:
    """Whether ``output`` already holds what is asked for.

    Raises:
        ValueError: if it holds something else that must not be replaced.
    """
    if not output.exists():
        return False
    if not output.is_dir():
        raise ValueError(f"--output must be a folder, got the file {output}")
    if not any(output.iterdir()):
        return False
    marker = output / MARKER
    if not marker.is_file():
        raise ValueError(f"{output} is not empty and was not written by this tool: name another folder")
    if overwrite:
        return False
    if json.loads(marker.read_text()) == request:
        return True
    raise ValueError(f"{output} holds scenes made with other arguments: add --overwrite, or name another folder")


def main(arguments: list[str] | None = None) -> int:
    """Parse, check, write; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="folder to write, with train/ and val/ in it"
    )
    parser.add_argument("--train", type=int, default=400, metavar="N", help="training scenes (default %(default)s)")
    parser.add_argument("--val", type=int, default=80, metavar="N", help="held-out scenes (default %(default)s)")
    parser.add_argument("--size", type=int, default=256, metavar="PX", help="side of a scene (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of all draws (default %(default)s)")
    parser.add_argument("--classes", type=int, default=len(THINGS), metavar="C", help="of things (default %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace scenes made with other arguments")
    args = parser.parse_args(arguments)
    lowest = {"train": 1, "val": 1, "size": 32, "seed": 0, "classes": 1}
    for name, least in lowest.items():
        if getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(args, name)}")
    if args.classes > len(THINGS):
        parser.error(f"--classes must be at most {len(THINGS)}, got {args.classes}")
    output = args.output.expanduser().absolute()
    counts = {"train": args.train, "val": args.val}
    try:
        if _is_there(output, _request(counts, args.size, args.seed, args.classes), overwrite=args.overwrite):
            print(f"{args.output}: already there")
            return 0
        make_scenes(output, counts, args.size, args.seed, args.classes)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"make_scenes.py: {error}\n")
        return 1
    print(f"{args.output}: written; train with DATASETS.TRAIN \"('scenes:{args.output}/train',)\"")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main, "make_scenes.py"))
