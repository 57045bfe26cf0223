#!/usr/bin/env python
"""Count the arithmetic of a recipe's training step and calculate what a whole run takes on GPUs.

One picture goes through a real step on the CPU with random weights: the teacher's labels, the student's forward pass
with matching and losses, the backward pass. Counted are matrix products and convolutions, a multiplication and an
addition each, by precision: what mixed precision would compute in 16 bits, and what stays in float32. Not counted are
sampling (deformable attention, points of the mask losses), norms, the optimizer and the teacher's momentum, which wait
for memory rather than for arithmetic, nor loading, matching on the CPU and communication; a utilisation below 1 stands
for them. So the hours are a calculation, not a measurement.

    python tools/training_cost.py --config-file configs/s2uniseg_in1k.yaml --utilisation 0.05 0.1 0.2
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import s2uniseg_d2.modeling  # noqa: F401  (registers)
from s2uniseg_d2.config import load_config
from s2uniseg_d2.exit_status import HELP, run_main

HALF, FULL = "half", "float32"


class GPU(NamedTuple):
    """Peak rates in 10^12 operations a second, dense, from the vendor's data sheet; float32 without TF32."""

    half: float
    float32: float


GPUS = {"A100": GPU(312.0, 19.5), "H100": GPU(989.0, 67.0), "A10 (24 GB)": GPU(125.0, 31.2)}


class Operations(TorchDispatchMode):
    """Counts operations of matrix products and convolutions by part and precision while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.part = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            dtype = next(leaf.dtype for leaf in tree_leaves(args) if isinstance(leaf, Tensor))
            precision = HALF if dtype.itemsize == 2 else FULL
            self.counts[self.part][precision] += formula(*args, **(kwargs or {}), out_val=result)
        return result

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Count what happens inside as this part."""
        before, self.part = self.part, part
        yield
        self.part = before


def count_picture(cfg: CfgNode) -> dict[str, dict[str, int]]:
    """Operations that a picture of 4 : 3 takes in a training step, by part and precision."""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    side, views = cfg.INPUT.GLOBAL_LONGEST_PX, cfg.INPUT.VIEWS
    # smooth patches of colour, so that labels are neither one mask nor thousands
    coarse = torch.rand(1, 3, 12, 16)
    image = 255 * torch.nn.functional.interpolate(coarse, size=(side * 3 // 4, side), mode="bicubic").clamp(0, 1)[0]
    item: dict[str, Any] = {
        "image": image,
        "views": 255 * torch.rand(views.NUM, 3, views.SIZE_PX, views.SIZE_PX),
        "boxes": torch.tensor([[0.1, 0.1, 0.6, 0.7]] * views.NUM) * torch.tensor([side, side * 3 // 4] * 2),
        "flips": torch.zeros(views.NUM, dtype=torch.bool),
    }
    operations = Operations()
    pool = model.teacher_backbone.pooling_features

    def pool_counted(*given: Any) -> Tensor:
        with operations.of("teacher"):
            return pool(*given)

    model.teacher_backbone.pooling_features = pool_counted
    # one fused operator of attention has no formula; the plain products do
    with sdpa_kernel(SDPBackend.MATH), operations:
        # the CPU's 16 bits stand for any
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cfg.SOLVER.AMP.ENABLED):
            with operations.of("UniAP"):
                item["pseudo"] = model.label([item])[0]
            with operations.of("student, matching, losses"):
                loss = torch.stack(list(model([item]).values())).sum()
        with operations.of("backward"):
            loss.backward()
    return {part: dict(counts) for part, counts in operations.counts.items()}


def gpu_hours(picture: Mapping[str, Mapping[str, int]], pictures: int, gpu: GPU, utilisation: float) -> float:
    """Hours of one GPU for the operations of so many pictures, at a share of its peak rates."""
    totals: Counter[str] = Counter()
    for counts in picture.values():
        totals.update(counts)
    seconds = totals[HALF] / (gpu.half * 1e12) + totals[FULL] / (gpu.float32 * 1e12)
    return pictures * seconds / utilisation / 3600


def main(arguments: list[str] | None = None) -> int:
    """Count, calculate, print; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", default="configs/s2uniseg_in1k.yaml", metavar="FILE", help="the recipe (%(default)s)"
    )
    parser.add_argument(
        "--utilisation",
        type=float,
        nargs="+",
        default=[0.05, 0.1, 0.2],
        metavar="SHARE",
        help="assumed shares of the peak (default: 0.05 0.1 0.2)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts there as well")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes of the recipe, last")
    args = parser.parse_args(arguments)
    if not all(0 < share <= 1 for share in args.utilisation):
        parser.error(f"--utilisation must lie in (0, 1], got {args.utilisation}")
    try:
        cfg = load_config(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu", "MODEL.VIT.WEIGHTS", ""])
    except ValueError as error:
        sys.stderr.write(f"training_cost.py: {error}\n")
        return 1
    picture = count_picture(cfg)
    if args.json:
        args.json.write_text(json.dumps(picture, indent=1))
    sys.stdout.write(report(picture, cfg, args.utilisation))
    return 0


def report(picture: Mapping[str, Mapping[str, int]], cfg: CfgNode, utilisation: list[float]) -> str:
    """The counts and the hours as two Markdown tables."""
    batch, iters = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER
    lines = ["| 10^9 operations a picture | 16 bits | float32 |", "|---|---|---|"]
    lines += [f"| {part} | {n.get(HALF, 0) / 1e9:.1f} | {n.get(FULL, 0) / 1e9:.1f} |" for part, n in picture.items()]
    half, full = (sum(counts.get(kind, 0) for counts in picture.values()) for kind in (HALF, FULL))
    lines += [
        f"| sum | {half / 1e9:.1f} | {full / 1e9:.1f} |",
        "",
        f"A step of {batch} pictures: {(half + full) * batch / 1e12:.1f} x 10^12; "
        f"{iters:,} steps: {(half + full) * batch * iters / 1e18:.2f} x 10^18.",
        "",
        "| hours of one GPU, calculated | " + " | ".join(f"{share:.0%} of the peak" for share in utilisation) + " |",
        "|---|" + "---|" * len(utilisation),
    ]
    for name, gpu in GPUS.items():
        hours = (gpu_hours(picture, batch * iters, gpu, share) for share in utilisation)
        lines.append(f"| {name} | " + " | ".join(f"{value:,.0f}" for value in hours) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(run_main(main, "training_cost.py"))
