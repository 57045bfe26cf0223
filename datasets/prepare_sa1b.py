#!/usr/bin/env python
"""List subsets of SA-1B's pictures in `sa1b/sa1b_0.4M.txt` and so on; train on `list:.../sa1b/sa1b_0.4M.txt`.

The paper trains on 0.4, 1.2 and 2 million pictures and is silent on which. Two choices are offered, both reproducible,
and in both a smaller subset is a part of a larger one drawn from the same pictures:

* `--choice first` (default): the lowest numbers (sa_1, sa_2, ...). The archives are in the order of the numbers, about
  11,000 pictures each, so that the first ones suffice. The list says which numbers it holds.
* `--choice random`: the first of a seeded shuffle of all numbers that are on disk; wants the whole data set.

Masks are not read, except that a few JSONs are compared with their pictures.

    python datasets/prepare_sa1b.py 0.4M
    python datasets/prepare_sa1b.py --count 100000 --choice random --seed 1
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from functools import partial
from pathlib import Path

import numpy as np

# the shared module lies beside this file, whoever imports it
sys.path.insert(0, str(Path(__file__).resolve().parent))
from preparing import Source, make_parser, picture_size, require, run_targets, spread, write_list

from s2uniseg_d2.data.coco_json import read_json
from s2uniseg_d2.data.picture_folder import list_pictures
from s2uniseg_d2.exit_status import run_main

PAGE = "https://ai.meta.com/datasets/segment-anything-downloads/"
SUBSETS = {"0.4M": 400_000, "1.2M": 1_200_000, "2M": 2_000_000}
NAME = re.compile(r"sa_(\d+)\.jpg")


def prepare(args: argparse.Namespace, label: str, count: int) -> str:
    """Write the list of one subset.

    Raises:
        ValueError: if pictures are too few or named otherwise than SA-1B's, or a JSON contradicts its picture.
    """
    folder = args.folder or args.root / "sa1b/images"
    require(Source(folder, "the archives sa_000000.tar, sa_000001.tar, ...", PAGE))
    root = folder.expanduser().absolute()
    by_number: dict[int, str] = {}
    for path in list_pictures(root):
        match = NAME.fullmatch(os.path.basename(path))
        if match is None:
            raise ValueError(f"{folder} must hold pictures named as sa_1.jpg, got {path}")
        if by_number.setdefault(int(match[1]), path) != path:
            raise ValueError(f"{folder} holds {match[0]} twice: {by_number[int(match[1])]} and {path}")
    if len(by_number) < count and not args.partial:
        raise ValueError(
            f"{folder} holds {len(by_number)} pictures, {count} are needed: more archives are at {PAGE}, "
            "--partial takes what there is"
        )
    chosen = choose(sorted(by_number), count, args.choice, args.seed)
    for number in spread(chosen):
        _check_json(Path(by_number[number]))
    ending = f"_random{args.seed}" if args.choice == "random" else ""
    how = f"by a shuffle with seed {args.seed}" if args.choice == "random" else "with the lowest numbers"
    numbers = f"sa_{chosen[0]} to sa_{chosen[-1]}"
    heading = f"{len(chosen)} of {len(by_number)} pictures of SA-1B, those {how} ({numbers})"
    target = args.root / f"sa1b/sa1b_{label}{ending}.txt"
    return f"{heading}, {write_list(target, heading, [by_number[number] for number in chosen])}"


def choose(numbers: list[int], count: int, choice: str, seed: int) -> list[int]:
    """Return the numbers of a subset, in increasing order."""
    if choice == "first":
        return numbers[:count]
    return sorted(np.random.default_rng(seed).permutation(numbers)[:count].tolist())


def _check_json(path: Path) -> None:
    """Compare a picture with the JSON beside it, if there is one."""
    size, beside = picture_size(path), path.with_suffix(".json")
    if not beside.is_file():
        return
    image = read_json(beside).get("image", {})
    stated = (image.get("height"), image.get("width"))
    if image.get("file_name") != path.name or stated != size:
        raise ValueError(
            f"{beside} must describe {path.name} of height and width {size}, got {image.get('file_name')} of {stated}"
        )


TARGETS = {label: partial(prepare, label=label, count=count) for label, count in SUBSETS.items()}


def main(arguments: list[str] | None = None) -> int:
    """Parse and list; returns the exit status."""
    parser = make_parser(__doc__, [*TARGETS])
    parser.add_argument(
        "--folder", type=Path, metavar="FOLDER", help="of the pictures, in any depth (default: ROOT/sa1b/images)"
    )
    parser.add_argument("--count", type=int, metavar="N", help="one subset of N pictures, in place of the targets")
    parser.add_argument(
        "--choice", choices=("first", "random"), default="first", help="of the pictures (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the random choice (default %(default)s)")
    args = parser.parse_args(arguments)
    if args.seed < 0:
        parser.error(f"--seed must not be negative, got {args.seed}")
    if args.count is None:
        return run_targets("prepare_sa1b.py", TARGETS, args)
    if args.count < 1 or args.targets:
        parser.error(f"--count must be at least 1 and stand without targets, got {args.count} and {args.targets}")
    own = {str(args.count): partial(prepare, label=str(args.count), count=args.count)}
    return run_targets("prepare_sa1b.py", own, args)


if __name__ == "__main__":
    sys.exit(run_main(main, "prepare_sa1b.py", "the same words go on"))
