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
    except ImportError as error:
        return _fail(error)
    from torch.multiprocessing import ProcessRaisedException

    args: argparse.Namespace = default_argument_parser(epilog=__doc__).parse_args(arguments)
    try:
        plan = prepare(args)
        start(run, plan.processes, args, device=plan.cfg.MODEL.DEVICE)
    except (ValueError, FloatingPointError, OSError) as error:
        return _fail(error)
    except ProcessRaisedException as error:
        return _fail(str(error).strip().splitlines()[-1])
    except KeyboardInterrupt:
        return _fail("interrupted; --resume goes on from what was kept", status=130)
    return 0


def _fail(reason: object, status: int = 1) -> int:
    sys.stderr.write(f"train_net.py: {' '.join(str(reason).split())}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
