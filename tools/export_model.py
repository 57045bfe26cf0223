#!/usr/bin/env python
"""Write the inference model as ONNX and as a torch.export program, check both against PyTorch and time them.

    python tools/export_model.py RUN/model_final.pth --output exported --size 512x512 --size 480x640

One file per size (rows x columns, multiples of 32): the graphs take pictures of one size, one at a time. Input:
`pictures` (1, 3, H, W), float32, RGB, 0 to 255. Outputs: `mask_logits` (1, q, H / 4, W / 4), `objectness_logits`
(1, q, 2) and `class_logits` (1, q, K), instance queries first. A file that differs from PyTorch by more than 1e-3 of an
output's largest value is removed again. docs/export.md says how the outputs become masks.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from detectron2.modeling import build_model

from s2uniseg_d2.config import load_config
from s2uniseg_d2.core.tensor_files import file_digest
from s2uniseg_d2.engine.checkpoint import SafeCheckpointer
from s2uniseg_d2.engine.model_export import (
    INPUTS,
    OPSET,
    OUTPUTS,
    InferenceNetwork,
    compare,
    load_onnx,
    load_program,
    require,
    trace,
    write_onnx,
    write_program,
)
from s2uniseg_d2.exit_status import HELP, fail, run_main
from s2uniseg_d2.modeling.s2uniseg import S2UniSeg

FORMATS = ("onnx", "pt2")


def read_size(text: str) -> tuple[int, int]:
    """Rows and columns of a word such as 480x640.

    Raises:
        ValueError: if it is none.
    """
    rows, _, columns = text.partition("x")
    if not (rows.isdigit() and columns.isdigit()):
        raise ValueError(f"--size must be ROWSxCOLUMNS, such as 480x640, got {text!r}")
    return int(rows), int(columns)


def build(args: argparse.Namespace) -> S2UniSeg:
    """The model of the checkpoint, or of the config with random weights.

    Raises:
        ValueError: if there is no config, or the weights do not fit it.
    """
    config = args.config_file or (args.checkpoint.parent / "config.yaml" if args.checkpoint else None)
    if config is None:
        raise ValueError("name a checkpoint, or a --config-file whose model is exported with random weights")
    cfg = load_config(config, ["MODEL.DEVICE", "cpu", "MODEL.VIT.WEIGHTS", "", *args.opts])
    torch.manual_seed(0)
    model: S2UniSeg = build_model(cfg)
    if args.checkpoint:
        SafeCheckpointer(model).load(str(args.checkpoint))
    return model.eval()


def export_size(model: S2UniSeg, size: tuple[int, int], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Write, check and time one size in all formats.

    Raises:
        ValueError: if a file does not do as PyTorch does; it is removed.
    """
    network = InferenceNetwork(model, size)
    program = trace(network)
    rows = []
    for kind in args.formats:
        path = args.output / f"s2uniseg_{size[0]}x{size[1]}.{kind}"
        (write_onnx if kind == "onnx" else write_program)(program, path)
        try:
            run = load_onnx(path, torch.get_num_threads()) if kind == "onnx" else load_program(path)
            found = compare(network, run, args.runs)
        except ValueError:
            path.unlink()
            raise
        print(
            f"{path}: {path.stat().st_size / 1e6:.1f} MB, largest difference {found.difference:.1e}; "
            f"{found.seconds * 1e3:.0f} ms a picture, PyTorch {found.reference_seconds * 1e3:.0f} ms "
            f"(medians of {found.runs}, {torch.get_num_threads()} threads)",
            flush=True,
        )
        rows.append({"file": path.name, "size": list(size), "sha256": file_digest(path), **found._asdict()})
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Export; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, nargs="?", help="a .pth file of train_net.py; none: random weights")
    parser.add_argument("--config-file", type=Path, help="default: config.yaml beside the checkpoint")
    parser.add_argument("--output", type=Path, default=Path("output/exported"), help="folder")
    parser.add_argument("--size", action="append", help="ROWSxCOLUMNS; again for more; default 512x512")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS, help="default: both")
    parser.add_argument("--runs", type=int, default=5, help="of each, whose median time is told")
    parser.add_argument("--opts", nargs="+", default=[], help="KEY VALUE overrides of the config")
    args = parser.parse_args(arguments)
    # of PyTorch's own code, while it traces
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        if args.runs < 1:
            raise ValueError(f"--runs must be at least 1, got {args.runs}")
        if "onnx" in args.formats:
            require("onnx", "onnxscript", "onnxruntime")
        sizes = [read_size(text) for text in args.size or ["512x512"]]
        model = build(args)
        args.output.mkdir(parents=True, exist_ok=True)
        files = [row for size in sizes for row in export_size(model, size, args)]
        record = {
            "source": args.checkpoint.name if args.checkpoint else "random weights",
            "source_sha256": file_digest(args.checkpoint) if args.checkpoint else "",
            "opset": OPSET,
            "inputs": list(INPUTS),
            "outputs": list(OUTPUTS),
            "queries": {name: [part.start, part.stop] for name, part in model.sem_seg_head.slices.items()},
            "torch": torch.__version__,
            "files": files,
        }
        (args.output / "export.json").write_text(json.dumps(record, indent=1) + "\n")
    except (ValueError, OSError) as error:
        return fail("export_model.py", error)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main, "export_model.py"))
