#!/usr/bin/env python
"""Make COCOStuff-27's validation truth: COCO-Stuff's pixel maps of val2017 with 182 classes mapped to 27.

* `curated`: the pictures of the list that IIC, PiCIE and STEGO evaluate on, `Coco164kFull_Stuff_Coarse_7.txt`;
  `cocostuff27_val` is this one.
* `full`: all 5,000 pictures of val2017; `cocostuff27_val_full`. Its figures are not comparable with the list's.

Class numbers are STEGO's: 0 to 11 things, 12 to 26 stuff, 255 is ignored.

    python datasets/prepare_cocostuff27.py
    python datasets/prepare_cocostuff27.py full --maps /data/stuffthingmaps/val2017
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

# the shared module lies beside this file, whoever imports it
sys.path.insert(0, str(Path(__file__).resolve().parent))
from preparing import (
    Source,
    check_count,
    check_pictures,
    digest,
    make_parser,
    progress,
    read_labels,
    require,
    run_targets,
    write_json,
    write_png,
)

from s2uniseg_d2.data.benchmarks import BENCHMARKS
from s2uniseg_d2.data.class_tables import COCOSTUFF27_CLASSES, COCOSTUFF27_IGNORE, cocostuff27_lookup
from s2uniseg_d2.data.coco_json import check_files
from s2uniseg_d2.data.picture_folder import list_pictures
from s2uniseg_d2.exit_status import run_main

PICTURES_PAGE = "https://cocodataset.org/#download"
MAPS_PAGE = "https://github.com/nightrome/cocostuff#downloads"
LIST_PAGE = "https://github.com/xu-ji/IIC/tree/master/datasets"
NUM_PICTURES = 5000  # https://github.com/nightrome/cocostuff: "val 5K"
NUM_CURATED = 2175  # what papers on this list state; its owners do not print it
NUM_FINE = 182


def prepare_curated(args: argparse.Namespace) -> str:
    """Write the truth of the curated list.

    Raises:
        ValueError: if a file is missing or malformed.
    """
    source = args.list or args.root / "coco/curated/val2017/Coco164kFull_Stuff_Coarse_7.txt"
    require(Source(source, "the curated list, in COCOStuff164kCurated.tar.gz", LIST_PAGE))
    names = [line.strip() for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(set(names)) < len(names):
        raise ValueError(f"{source} must name each picture once, got {len(names)} names, {len(set(names))} of them new")
    check_count("pictures of the curated list", len(names), NUM_CURATED, partial=args.partial)
    return _prepare(args, "cocostuff27_val", source, [f"{Path(name).stem}.jpg" for name in names])


def prepare_full(args: argparse.Namespace) -> str:
    """Write the truth of all pictures.

    Raises:
        ValueError: if a file is missing or malformed.
    """
    pictures = args.root / BENCHMARKS["cocostuff27_val_full"].images
    require(Source(pictures, "val2017.zip", PICTURES_PAGE))
    names = [Path(path).name for path in list_pictures(pictures)]
    check_count("pictures of val2017", len(names), NUM_PICTURES, partial=args.partial)
    return _prepare(args, "cocostuff27_val_full", None, names)


def _prepare(args: argparse.Namespace, benchmark: str, source: Path | None, names: list[str]) -> str:
    target = BENCHMARKS[benchmark]
    pictures, maps = args.root / target.images, args.maps or args.root / "coco/stuffthingmaps/val2017"
    require(
        Source(pictures, "val2017.zip", PICTURES_PAGE),
        Source(maps, "val2017 of stuffthingmaps_trainval2017.zip", MAPS_PAGE),
    )
    listing = source or maps
    check_files(listing, "pixel maps", [f"{Path(name).stem}.png" for name in names], maps, kind="list")
    images, seen = [], np.zeros(256, dtype=np.int64)
    lookup = cocostuff27_lookup()
    for name in progress(names, "pixel maps"):
        path = maps / f"{Path(name).stem}.png"
        fine = read_labels(path)
        if wrong := np.unique(fine[(fine >= NUM_FINE) & (fine != COCOSTUFF27_IGNORE)]).tolist():
            raise ValueError(f"{path} must hold labels below {NUM_FINE} or {COCOSTUFF27_IGNORE}, got {wrong[:3]}")
        coarse = lookup[fine]
        seen += np.bincount(coarse.ravel(), minlength=256)
        write_png(args.root / target.maps / path.name, coarse)
        images.append({"id": _picture_id(name), "file_name": name, "height": fine.shape[0], "width": fine.shape[1]})
    check_pictures(listing, pictures, images)
    info = {"made_by": target.made_by, "list_sha256": digest(source) if source else None}
    categories = [{"id": number, "name": name} for number, name in enumerate(COCOSTUFF27_CLASSES)]
    content = {"info": info, "images": images, "categories": categories}
    held, ignored = np.count_nonzero(seen[: len(categories)]), seen[COCOSTUFF27_IGNORE] / max(seen.sum(), 1)
    what = f"{len(images)} pictures, {held} of {len(categories)} classes seen, {ignored:.1%} of the pixels ignored"
    return f"{what}, {write_json(args.root / target.truth, content)}"


def _picture_id(name: str) -> int:
    if not Path(name).stem.isdecimal():
        raise ValueError(f"pictures of COCO are named by number, got {name}")
    return int(Path(name).stem)


TARGETS = {"curated": prepare_curated, "full": prepare_full}


def main(arguments: list[str] | None = None) -> int:
    """Parse and make; returns the exit status."""
    parser = make_parser(__doc__, [*TARGETS])
    parser.add_argument(
        "--maps", type=Path, help="folder of the pixel maps (default: ROOT/coco/stuffthingmaps/val2017)"
    )
    parser.add_argument(
        "--list",
        type=Path,
        help="the curated list (default: ROOT/coco/curated/val2017/Coco164kFull_Stuff_Coarse_7.txt)",
    )
    return run_targets("prepare_cocostuff27.py", TARGETS, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(run_main(main, "prepare_cocostuff27.py", "the same words go on"))
