#!/usr/bin/env python
"""Train or evaluate S2-UniSeg with Detectron2's usual arguments.

* `python train_net.py --config-file configs/tiny_scenes.yaml`
* `python train_net.py --config-file configs/s2uniseg_in1k.yaml --num-gpus 8`
* `torchrun --nproc-per-node 8 train_net.py --config-file configs/s2uniseg_in1k.yaml`
* `python train_net.py --config-file configs/eval_coco_agnostic.yaml --eval-only MODEL.WEIGHTS output/model_final.pth`
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# before PyTorch starts its threads: threads that spin while they wait make a step many times slower as soon as
# another process (a loader, say) wants the same core
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from s2uniseg_d2._detectron2 import require_detectron2


def main(arguments: list[str] | None = None) -> int:
    """Parse, set up, train or evaluate; returns the exit status."""
    try:
        require_detectron2()
        from detectron2.engine import default_argument_parser

        from s2uniseg_d2.engine.processes import start
        from s2uniseg_d2.engine.run import prepare, run
        from s2uniseg_d2.engine.stopping import TERMINATED, Terminated, how_to_go_on
    except ImportError as error:
        return _fail(error)
    from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

    args: argparse.Namespace = default_argument_parser(epilog=__doc__).parse_args(arguments)
    folder = None
    try:
        plan = prepare(args)
        folder = None if args.eval_only else Path(plan.cfg.OUTPUT_DIR)
        start(run, plan.processes, args, device=plan.cfg.MODEL.DEVICE)
    except (ValueError, FloatingPointError, OSError) as error:
        return _fail(error)
    except ProcessRaisedException as error:
        return _fail(str(error).strip().splitlines()[-1])
    except ProcessExitedException as error:
        if error.exit_code != TERMINATED or folder is None:
            return _fail(error)
        return _fail(f"stopped by SIGTERM; {how_to_go_on(folder)}", status=TERMINATED)
    except Terminated as stop:
        return _fail(stop, status=TERMINATED)
    except KeyboardInterrupt:
        kept = how_to_go_on(folder) if folder else "--resume goes on from what was kept"
        return _fail(f"interrupted; {kept}", status=130)
    return 0


def _fail(reason: object, status: int = 1) -> int:
    sys.stderr.write(f"train_net.py: {' '.join(str(reason).split())}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
