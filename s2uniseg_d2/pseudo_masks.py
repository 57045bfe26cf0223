#!/usr/bin/env python
"""Label pictures without labels: instance and semantic pseudo-masks of UniAP as one COCO file.

* `python -m s2uniseg_d2.pseudo_masks --input PICTURES --output labels.json --weights vit_base_patch8_224.dino`
* many machines: the same with `--shard 1/4` and so on, then `--merge part1.json part2.json ... --output labels.json`
* `coco:labels.json:ROOT` is then a data set, with the ROOT that stands in the file's info
* how good they are: `--evaluate coco:TRUTH.json:PICTURES`, the paper's Table 1 with a row for this run

A killed run goes on where it was when it is started again with the same words.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

# before PyTorch starts its threads: threads that spin while they wait take the cores that reading and writing need
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from s2uniseg_d2._detectron2 import require_detectron2
from s2uniseg_d2.exit_status import HELP, INTERRUPTED, Parser, UsageError, counted, fail, one_line, status_of

if TYPE_CHECKING:
    from s2uniseg_d2.labeling.maker import PseudoMaskMaker
    from s2uniseg_d2.labeling.run import Outcome

NAME = "pseudo_masks"
SHOWN = 5  # unreadable pictures that are named at the end


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, check, label or merge; returns the exit status (:mod:`s2uniseg_d2.exit_status`)."""
    logging.basicConfig(format="%(message)s")
    # fvcore 0.1.5 was written for older torch, and a reader of this command can do nothing about it
    warnings.filterwarnings("ignore", "`torch.jit.script", FutureWarning)
    try:
        arguments = _parser().parse_args(argv)
        if not (arguments.evaluate or arguments.output):
            raise UsageError("--output must name the COCO file to write")
        require_detectron2()
        if arguments.evaluate:
            return _evaluate(arguments)
        outcome = _merge(arguments) if arguments.merge else _label(arguments)
    except (ValueError, FloatingPointError, OSError, ImportError) as error:
        return fail(NAME, error, status_of(error))
    except KeyboardInterrupt:
        return fail(
            NAME, "interrupted; labelling goes on after its last full batch when called the same way", INTERRUPTED
        )
    return _report(outcome, arguments)


def _label(arguments: argparse.Namespace) -> Outcome:
    if not arguments.input:
        raise UsageError("--input must name the pictures (or --merge the shards of a run)")
    from s2uniseg_d2.labeling.records import Selection
    from s2uniseg_d2.labeling.run import RunOptions, label_pictures
    from s2uniseg_d2.labeling.sources import find_pictures

    options = RunOptions(
        output=arguments.output,
        batch_size=arguments.batch_size,
        selection=Selection(tuple(sorted(set(arguments.kinds))), arguments.min_score, arguments.max_masks),
        embeddings=arguments.embeddings,
        shard=_parse_shard(arguments.shard),
        preview=arguments.preview,
        readers=arguments.readers,
        overwrite=arguments.overwrite,
    )
    pictures = find_pictures(arguments.input)
    options.place(pictures)
    if pictures.repeated:
        logging.getLogger(NAME).warning("%s named again, counted once", counted(pictures.repeated, "picture"))
    return label_pictures(_make(arguments), pictures, options)


def _make(arguments: argparse.Namespace) -> PseudoMaskMaker:
    from s2uniseg_d2.labeling.maker import PseudoMaskMaker

    return PseudoMaskMaker.from_pretrained(
        arguments.weights,
        arguments.config_file,
        device=arguments.device,
        image_size=arguments.image_size,
        upscale=arguments.upscale,
        overrides=[*arguments.opts, *_taus(arguments.taus)],
    )


def _evaluate(arguments: argparse.Namespace) -> int:
    if arguments.input or arguments.merge:
        raise UsageError("--evaluate stands alone: it takes neither --input nor --merge")
    from s2uniseg_d2.config import load_config
    from s2uniseg_d2.labeling.table1 import evaluate_labels, format_table1

    weights = arguments.weights
    if weights is None:
        model = load_config(arguments.config_file or "", list(arguments.opts)).MODEL
        weights = model.WEIGHTS or model.VIT.WEIGHTS
    results = evaluate_labels(
        _make(arguments), arguments.evaluate, arguments.output, arguments.limit, weights=weights or "random weights"
    )
    sys.stdout.write(format_table1(results) + "\n")
    return 0


def _merge(arguments: argparse.Namespace) -> Outcome:
    if arguments.input:
        raise UsageError("--merge and --input exclude each other: first label, then merge")
    from s2uniseg_d2.labeling.merge import merge_shards

    return merge_shards(arguments.merge, arguments.output, overwrite=arguments.overwrite)


def _taus(text: str | None) -> list[str]:
    """Config words for thresholds by name or number."""
    if text is None:
        return []
    from s2uniseg_d2.core.labelers import uniap

    presets = uniap.TAU_PRESETS
    try:
        numbers = presets[text] if text in presets else tuple(float(word) for word in text.split(","))
        if not all(map(math.isfinite, numbers)):
            raise ValueError("not finite")
    except ValueError as error:
        known = ", ".join([*presets, "or numbers such as 0.8,0.6,0.4"])
        raise UsageError(f"--taus must be {known}, got {text!r}") from error
    return ["MODEL.UNIAP.TAUS", str(tuple(numbers))]


def _parse_shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal()):
        raise UsageError(f"--shard must be I/N with 1 <= I <= N, such as 1/4, got {text!r}")
    return int(part), int(parts)


def _report(outcome: Outcome, arguments: argparse.Namespace) -> int:
    tally, output = outcome.tally, arguments.output
    for item in outcome.skipped[:SHOWN]:
        sys.stderr.write(f"skipped: {one_line(item['reason'])}\n")
    if len(outcome.skipped) > SHOWN:
        sys.stderr.write(f"skipped: {len(outcome.skipped) - SHOWN} more, see {output.with_suffix('.skipped.txt')}\n")
    resumed = f", {outcome.resumed} of them by an earlier run" if outcome.resumed else ""
    sys.stdout.write(
        f"{output}: {counted(tally.annotations, 'mask')} of {counted(tally.labelled, 'picture')}; "
        f"{counted(tally.skipped, 'picture')} skipped{resumed}\n"
    )
    if not tally.labelled:
        return fail(NAME, f"no picture of this shard could be read; the file is there for --merge: {output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=f"python -m s2uniseg_d2.{NAME}",
        description=__doc__,
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--input", nargs="+", action="extend", default=[], metavar="PATH", help="files, folders, globs, .txt lists")
    add("--output", type=Path, metavar="FILE.json", help="the COCO file to write; with --evaluate a folder, if any")
    add("--merge", nargs="+", action="extend", type=Path, default=[], metavar="FILE.json", help="outputs of all shards")
    add("--evaluate", metavar="DATA_SET", help="compare masks with a data set's truth, such as coco:JSON:PICTURES")
    add("--limit", type=int, metavar="N", help="evaluate the first N pictures (default: all)")
    add(
        "--weights",
        help='a file, an address with a hash, the name of a timm model, or "" for random ones (default: the config\'s)',
    )
    add("--config-file", help="YAML of the model (default: the paper's)")
    add("--device", help="cpu, cuda, cuda:1 ... (default: the config's, or the CPU where that is not there)")
    add("--image-size", type=int, metavar="PX", help="longer side for the encoder (default: the config's, 512)")
    add("--batch-size", type=int, default=8, metavar="N", help="pictures labelled and recorded at a time (default: 8)")
    add("--upscale", default="nearest", help="masks to pixels: nearest (default), bilinear or edges")
    add("--taus", help="UniAP's thresholds: the name of a preset, or numbers such as 0.8,0.6,0.4")
    add(
        "--kinds",
        nargs="+",
        default=["instance", "semantic"],
        choices=["instance", "semantic"],
        help="of masks (default: both)",
    )
    add("--min-score", type=float, default=0.0, help="leave out masks with lower scores (default: 0)")
    add("--max-masks", type=int, default=0, metavar="N", help="best masks kept per picture and kind (default: all)")
    add("--embeddings", nargs="?", const="float16", default="", metavar="TYPE", help="side file, float16 or float32")
    add("--preview", type=int, default=0, metavar="N", help="draw the masks of the first N pictures")
    add("--shard", default="1/1", metavar="I/N", help="do part I of N; all parts need the same other words")
    add("--readers", type=int, default=2, metavar="N", help="threads that read pictures (default: 2)")
    add("--overwrite", action="store_true", help="begin anew, whatever is there")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides, last, after --")
    return parser


if __name__ == "__main__":
    sys.exit(main())
