#!/usr/bin/env python
"""Evaluate checkpoints of one run, labels and student, and keep the figures of each in one JSON file.

A checkpoint whose figures are there is not evaluated again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from s2uniseg_d2.exit_status import HELP, run_main

# as train_net.py, before PyTorch starts its threads
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

PREDICTORS = {"labels": "uniap", "student": "decoder"}
# what the paper predicts: query masks whole, and all of them
PLAIN = ["MODEL.INFERENCE.SPLIT_INSTANCES", "False", "MODEL.INFERENCE.DUPLICATE_IOU", "1.0"]


def main(arguments: list[str] | None = None) -> int:
    """Evaluate what is missing; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="the recipe that the run was trained with")
    parser.add_argument(
        "--folder", type=Path, required=True, metavar="RUN", help="of the run; the figures go to evaluation.json there"
    )
    parser.add_argument("--checkpoints", nargs="+", required=True, metavar="NAME", help="names of files in the folder")
    parser.add_argument(
        "--plain", nargs="*", default=[], metavar="NAME", help="those to evaluate with whole masks and duplicates too"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes of the recipe, last")
    args = parser.parse_args(arguments)
    path = args.folder / "evaluation.json"
    figures: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    wanted = [(name, row, row, args.opts) for name in args.checkpoints for row in PREDICTORS]
    wanted += [(name, row, f"plain {row}", [*args.opts, *PLAIN]) for name in args.plain for row in PREDICTORS]
    for checkpoint, row, title, overrides in wanted:
        key = f"{title} {checkpoint}"
        if key in figures:
            continue
        start = time.perf_counter()
        found = evaluate(args.config_file, overrides, args.folder, checkpoint, PREDICTORS[row])
        figures[key] = {"seconds": time.perf_counter() - start, "results": found}
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(figures, indent=1))
        partial.replace(path)
        print(f"{key}: {figures[key]['seconds']:.0f} s", flush=True)
    return 0


def evaluate(config: str, overrides: list[str], folder: Path, checkpoint: str, predictor: str) -> dict[str, Any]:
    """The figures of one checkpoint by group; labels are judged at the size that they are made at in training."""
    from s2uniseg_d2.config import load_config
    from s2uniseg_d2.data import resolve_dataset
    from s2uniseg_d2.engine.checkpoint import SafeCheckpointer
    from s2uniseg_d2.engine.trainer import Trainer

    cfg = load_config(config, overrides)
    if predictor == "uniap":
        cfg.INPUT.TEST_LONGEST_PX = cfg.INPUT.GLOBAL_LONGEST_PX
    cfg.MODEL.INFERENCE.PREDICTOR = predictor
    cfg.TEST.PICTURES = 0
    cfg.OUTPUT_DIR = str(folder / "evaluation")
    cfg.freeze()
    for name in cfg.DATASETS.TEST:
        resolve_dataset(name)
    model = Trainer.build_model(cfg)
    SafeCheckpointer(model, cfg.OUTPUT_DIR).resume_or_load(str(folder / checkpoint), resume=False)
    results: dict[str, Any] = Trainer.test(cfg, model)
    return results


if __name__ == "__main__":
    sys.exit(run_main(main, "evaluate_checkpoints.py", "the same words go on"))
