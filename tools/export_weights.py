#!/usr/bin/env python
"""Write a part of a trained model to a file of its own, for Detectron2, timm or any reader of safetensors.

    python tools/export_weights.py RUN/model_final.pth encoder.pth                            # the teacher's encoder
    python tools/export_weights.py RUN/model_final.pth vit.safetensors --what vit             # plain ViT, timm's names

teacher-backbone and student-backbone load as MODEL.WEIGHTS of configs/transfer/; student and model load as
MODEL.WEIGHTS of train_net.py; vit loads into timm.create_model(NAME, num_classes=0) and as MODEL.VIT.WEIGHTS.
docs/transfer.md has the calls.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from s2uniseg_d2.config import load_config
from s2uniseg_d2.engine.weight_export import WHATS, export_weights
from s2uniseg_d2.exit_status import HELP, fail, run_main


def main(arguments: list[str] | None = None) -> int:
    """Export and say what was written; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="a .pth file of train_net.py")
    parser.add_argument("output", type=Path, help="the file to write: .pth or .safetensors")
    parser.add_argument("--what", choices=WHATS, default=WHATS[0], help="the part (default: %(default)s)")
    parser.add_argument(
        "--branch", choices=("teacher", "student"), default="teacher", help="whose ViT, with --what vit"
    )
    parser.add_argument("--prefix", default="", help="before each name; Detectron2's matching of names needs none")
    parser.add_argument(
        "--config-file", type=Path, help="what the checkpoint was trained with; default: config.yaml beside it, if any"
    )
    args = parser.parse_args(arguments)
    config = args.config_file or args.checkpoint.parent / "config.yaml"
    try:
        cfg = load_config(config) if args.config_file or config.is_file() else None
        done = export_weights(
            args.checkpoint, args.output, what=args.what, branch=args.branch, prefix=args.prefix, cfg=cfg
        )
    except (ValueError, OSError) as error:
        return fail("export_weights.py", error)
    size = done.path.stat().st_size / 1e6
    print(f"{done.path}: {done.tensors} tensors, {done.numbers:,} numbers, {size:,.1f} MB")
    for name, text in done.metadata.items():
        print(f"  {name}: {text}")
    if cfg is None:
        print("  no config.yaml lies beside the checkpoint: the file does not say which ViT and which colours it needs")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main, "export_weights.py"))
