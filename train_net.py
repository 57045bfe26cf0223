#!/usr/bin/env python
"""Train S2-UniSeg on pictures without labels, or evaluate what was trained.

A config file names the recipe; KEY VALUE words at the end change it. Data sets are named by what they are:
folder:PATH, list:FILE, tar:PATTERN, coco:JSON:PICTURES, scenes:FOLDER, or a benchmark's name (datasets/README.md).
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings

# before PyTorch starts its threads: threads that spin while they wait make a step many times slower as soon as
# another process (a loader, say) wants the same core
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from s2uniseg_d2._detectron2 import require_detectron2
from s2uniseg_d2.exit_status import HELP, INTERRUPTED, fail

NAME = "train_net.py"
EPILOG = """\
examples:
  try a recipe first: builds everything, checks the data, tells memory and time, writes nothing
    python train_net.py --config-file configs/tiny_photos.yaml --dry-run DATASETS.TRAIN "('folder:PICTURES',)"
  train; go on after a stop
    python train_net.py --config-file configs/tiny_photos.yaml DATASETS.TRAIN "('folder:PICTURES',)"
    python train_net.py --config-file configs/tiny_photos.yaml --resume DATASETS.TRAIN "('folder:PICTURES',)"
  evaluate
    python train_net.py --config-file configs/eval_coco_agnostic.yaml --eval-only MODEL.WEIGHTS RUN/model_final.pth
  eight GPUs; the same by torchrun
    python train_net.py --config-file configs/s2uniseg_in1k.yaml --num-gpus 8
    torchrun --nproc-per-node 8 train_net.py --config-file configs/s2uniseg_in1k.yaml

A training run that SIGUSR1 stops, as SLURM sends it, gives 138.
Results go to OUTPUT_DIR. Every key is explained in s2uniseg_d2/config.py, training in docs/training.md, one's own
pictures from start to finish in docs/own-pictures.md.

"""


def main(arguments: list[str] | None = None) -> int:
    """Parse, then train, evaluate or try; returns the exit status."""
    args = make_parser().parse_args(arguments)
    # fvcore 0.1.5 was written for older torch, and a reader of this command can do nothing about it
    warnings.filterwarnings("ignore", "`torch.jit.script", FutureWarning)
    try:
        require_detectron2()
        from s2uniseg_d2.engine.command import execute
    except ImportError as error:
        return fail(NAME, error)
    except KeyboardInterrupt:
        return fail(NAME, "interrupted before anything was done", INTERRUPTED)
    return execute(args, NAME)


def make_parser() -> argparse.ArgumentParser:
    """Detectron2's usual arguments, without the time that importing it takes, and --dry-run."""
    parser = argparse.ArgumentParser(
        prog=NAME, description=__doc__, epilog=EPILOG + HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="the recipe or protocol, a YAML file")
    what = parser.add_argument_group("what to do (default: train)")
    what.add_argument("--dry-run", action="store_true", help="build all, check the data, measure a few steps; no trace")
    what.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR, if any")
    what.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS on DATASETS.TEST")
    where = parser.add_argument_group("where")
    where.add_argument("--num-gpus", type=int, default=1, metavar="N", help="GPUs on each machine (default: 1)")
    where.add_argument("--num-machines", type=int, default=1, metavar="N", help="machines (default: 1)")
    where.add_argument(
        "--machine-rank", type=int, default=0, metavar="I", help="which this one is, from 0 (default: 0)"
    )
    port = 2**15 + 2**14 + hash(os.getuid()) % 2**14  # Detectron2's: one for each user
    where.add_argument(
        "--dist-url",
        default=f"tcp://127.0.0.1:{port}",
        metavar="URL",
        help="where processes meet: the first machine, or auto for a free port of this one (default: %(default)s)",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes of the config, last")
    return parser


if __name__ == "__main__":
    sys.exit(main())
