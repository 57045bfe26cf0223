#!/usr/bin/env python
"""List ImageNet's training pictures (ILSVRC2012) in `imagenet/train.txt`; train on `list:.../imagenet/train.txt`.

`folder:.../imagenet/train` has the same pictures in the same order; the list is checked against the published number of
pictures and classes, and freezes them. Labels are not read: the folders' names are classes, but nothing here uses them.

    python datasets/prepare_imagenet.py
    python datasets/prepare_imagenet.py --folder /data/ILSVRC/Data/CLS-LOC/train
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# the shared module lies beside this file, whoever imports it
sys.path.insert(0, str(Path(__file__).resolve().parent))
from preparing import Source, check_count, make_parser, picture_size, require, run_targets, spread, write_list

from s2uniseg_d2.data.picture_folder import list_pictures
from s2uniseg_d2.exit_status import run_main

PAGE = "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php"
NUM_PICTURES, NUM_CLASSES = 1_281_167, 1000  # https://image-net.org/challenges/LSVRC/2012/


def prepare(args: argparse.Namespace) -> str:
    """Write the list.

    Raises:
        ValueError: if pictures are missing, or not in one folder for each class.
    """
    folder = args.folder or args.root / "imagenet/train"
    require(Source(folder, "ILSVRC2012_img_train.tar, each of its 1,000 archives in a folder of its name", PAGE))
    root = folder.expanduser().absolute()
    names = [os.path.relpath(path, root) for path in list_pictures(root)]
    if strangers := [name for name in names if not _is_imagenet(name)]:
        raise ValueError(
            f"{folder} must hold pictures as n01440764/n01440764_10026.JPEG, got {len(strangers)} others, such as "
            f"{strangers[0]}"
        )
    classes = {name.split(os.sep)[0] for name in names}
    check_count("classes of ILSVRC2012", len(classes), NUM_CLASSES, partial=args.partial)
    check_count("training pictures of ILSVRC2012", len(names), NUM_PICTURES, partial=args.partial)
    for name in spread(names):
        picture_size(root / name)
    target = args.root / "imagenet/train.txt"
    heading = f"{len(names)} training pictures of ILSVRC2012 in {len(classes)} classes"
    return f"{heading}, {write_list(target, heading, [str(root / name) for name in names])}"


def _is_imagenet(name: str) -> bool:
    parts = name.split(os.sep)
    return len(parts) == 2 and parts[0][:1] == "n" and parts[0][1:].isdecimal() and parts[1].startswith(f"{parts[0]}_")


TARGETS = {"train": prepare}


def main(arguments: list[str] | None = None) -> int:
    """Parse and list; returns the exit status."""
    parser = make_parser(__doc__, [*TARGETS])
    parser.add_argument("--folder", type=Path, metavar="FOLDER", help="of the pictures (default: ROOT/imagenet/train)")
    return run_targets("prepare_imagenet.py", TARGETS, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(run_main(main, "prepare_imagenet.py", "the same words go on"))
