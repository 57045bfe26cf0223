#!/usr/bin/env python
"""Segment your own pictures: overlays, COCO files and a page to look at them in a browser.

* `python -m s2uniseg_d2.demo --input PICTURES --weights RUN/model_final.pth --output masks`
* without a trained model, UniAP's masks of a ViT: `--predictor uniap --weights vit_base_patch8_224.dino`
* a video or a camera: `--input clip.mp4 --every 10`, `--input webcam:0 --limit 100`

Then open masks/index.html. docs/demo.md describes the files.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

# before PyTorch starts its threads: threads that spin while they wait take the cores that reading and writing need
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from s2uniseg_d2._detectron2 import require_detectron2
from s2uniseg_d2.exit_status import HELP, INTERRUPTED, Parser, counted, fail, one_line, status_of

if TYPE_CHECKING:
    from s2uniseg_d2.gallery.run import Outcome

NAME = "demo"
SHOWN = 5  # unreadable pictures that are named at the end
TASKS = ("instance", "semantic", "panoptic")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, check, segment; returns the exit status (:mod:`s2uniseg_d2.exit_status`)."""
    logging.basicConfig(format="%(message)s")
    # fvcore 0.1.5 was written for older torch, and a reader of this command can do nothing about it
    warnings.filterwarnings("ignore", "`torch.jit.script", FutureWarning)
    try:
        arguments = _parser().parse_args(argv)
        require_detectron2()
        outcome = _segment(arguments)
    except (ValueError, FloatingPointError, OSError, ImportError) as error:
        return fail(NAME, error, status_of(error))
    except KeyboardInterrupt:
        return fail(NAME, "interrupted before the first picture", INTERRUPTED)
    return _report(outcome, arguments)


def _segment(arguments: argparse.Namespace) -> Outcome:
    from s2uniseg_d2.gallery.frames import Frames
    from s2uniseg_d2.gallery.run import GalleryOptions, make_gallery
    from s2uniseg_d2.segmenter import Segmenter

    options = GalleryOptions(
        arguments.output,
        TASKS if arguments.task == "all" else (arguments.task,),
        overwrite=arguments.overwrite,
        limit=arguments.limit,
        page_limit=arguments.page_limit,
    )
    options.check()
    frames = Frames(arguments.input, every=arguments.every, results=arguments.output)
    if frames.repeated:
        logging.getLogger(NAME).warning("%s named again, counted once", counted(frames.repeated, "picture"))
    if frames.left_out:
        left_out = counted(frames.left_out, "picture")
        logging.getLogger(NAME).warning("%s left out, as results in %s", left_out, arguments.output)
    segmenter = Segmenter.from_pretrained(
        arguments.weights,
        device=arguments.device,
        config_file=arguments.config_file,
        predictor=arguments.predictor,
        score_threshold=arguments.score_threshold,
        image_size=arguments.image_size,
        overrides=arguments.opts,
    )
    return make_gallery(segmenter, frames, options)


def _report(outcome: Outcome, arguments: argparse.Namespace) -> int:
    from termcolor import colored  # plain in files and pipes, and with NO_COLOR

    output = one_line(arguments.output)
    for _, reason in outcome.skipped[:SHOWN]:
        sys.stderr.write(f"skipped: {one_line(reason)}\n")
    if len(outcome.skipped) > SHOWN:
        more = len(outcome.skipped) - SHOWN
        sys.stderr.write(f"skipped: {more} more, see {output}/skipped.txt\n")
    if not outcome.pictures:
        if outcome.stopped_by:
            return fail(NAME, "interrupted before the first picture was done", 128 + outcome.stopped_by)
        return fail(NAME, f"of {counted(len(outcome.skipped), 'picture')} none could be used")
    speed = outcome.pictures / outcome.seconds
    sys.stdout.write(
        f"{counted(outcome.pictures, 'picture')}, {counted(outcome.masks, 'mask')}, {len(outcome.skipped):,} skipped, "
        f"{outcome.seconds:.1f} s "
        f"({speed:.2f} pictures/s, {outcome.model_seconds / outcome.seconds:.0%} of the time in the model)\n"
    )
    if not outcome.masks:
        sys.stderr.write(
            "no mask reached the score threshold: a smaller --score-threshold shows more instances, and "
            "-- MODEL.INFERENCE.OBJECT_THRESHOLD 0.3 more panoptic segments\n"
        )
    page = colored(f"{output}/index.html", attrs=["bold"])
    sys.stdout.write(f"{page}: open it in a browser; the files lie beside it\n")
    if outcome.stopped_by:
        return fail(NAME, "interrupted; what was done by then is written", 128 + outcome.stopped_by)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m s2uniseg_d2.demo",
        description=__doc__,
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--input",
        nargs="+",
        action="extend",
        required=True,
        metavar="PATH",
        help="files, folders, globs, .txt lists, video files, or webcam:N for camera N",
    )
    add("--weights", required=True, help="a checkpoint of train_net.py; with --predictor uniap also a ViT (see docs)")
    add("--output", type=Path, required=True, metavar="FOLDER", help="where the results go")
    add("--task", default="all", choices=[*TASKS, "all"], help="what is written and shown (default: all)")
    add("--config-file", help="YAML of the model (default: config.yaml beside the weights, else the paper's)")
    add(
        "--predictor",
        choices=["decoder", "uniap"],
        help="trained decoder, or UniAP's masks (default: the config's)",
    )
    add("--score-threshold", type=float, metavar="S", help="leave out instances below (default: 0.5; UniAP's: 0)")
    add("--device", help="cpu, cuda, cuda:1 ... (default: the config's, or the CPU where that is not there)")
    add("--image-size", type=int, metavar="PX", help="longer side that the model sees (default: the config's)")
    add("--every", type=int, default=1, metavar="N", help="of a video or camera, one frame in N (default: 1)")
    add(
        "--limit",
        type=int,
        default=0,
        metavar="N",
        help="end after N pictures, not counting skipped ones (default: all)",
    )
    add("--page-limit", type=int, default=500, metavar="N", help="pictures in the page, the first N (default: 500)")
    add("--overwrite", action="store_true", help="take the place of an earlier gallery in the folder, whose files go")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides, last, after --")
    return parser


if __name__ == "__main__":
    sys.exit(main())
