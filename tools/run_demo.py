#!/usr/bin/env python
"""The main job from end to end: scenes, training without labels, evaluation, one table, one panel of pictures.

* `make demo`, or `python tools/run_demo.py`
* another recipe: `python tools/run_demo.py --config configs/tiny_scenes.yaml --output output/tiny`

A run that is done is not repeated; one that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s2uniseg_d2.config import load_config
from s2uniseg_d2.exit_status import HELP, run_main

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG = "configs/evidence.yaml"

# (row, weights, predictor) in the table's order
ROWS = [
    ("UniAP labels, initial teacher", "model_initial.pth", "uniap"),
    ("UniAP labels, final teacher", "model_final.pth", "uniap"),
    ("student, before training", "model_initial.pth", "decoder"),
    ("student, after training", "model_final.pth", "decoder"),
]


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, default=Path("output/demo"), metavar="FOLDER", help="of all results (%(default)s)")
    add("--config", default=CONFIG, metavar="FILE", help="the recipe (default: %(default)s)")
    add("--seeds", type=int, nargs="+", default=[0], metavar="S", help="one training run each (default: 0)")
    add("--train", type=int, default=400, metavar="N", help="generated scenes to learn from (default: %(default)s)")
    add("--val", type=int, default=48, metavar="N", help="held-out scenes (default: %(default)s)")
    add("--size", type=int, default=256, metavar="PX", help="side of a scene (default: %(default)s)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes of the recipe, last")
    args = parser.parse_args(arguments)
    start = time.perf_counter()
    output = args.output.resolve()
    scenes = output / "scenes"
    _say(f"1/4  scenes: {args.train} to learn from, {args.val} held out")
    sizes = ["--train", str(args.train), "--val", str(args.val), "--size", str(args.size)]
    run_command([sys.executable, "datasets/make_scenes.py", "--output", str(scenes), *sizes], output / "scenes.log")
    data = [
        "DATASETS.TRAIN", f"('scenes:{scenes / 'train'}',)",
        "DATASETS.TEST", f"('scenes:{scenes / 'val'}',)",
        *args.opts,
    ]  # fmt: skip
    results: dict[str, list[dict[str, Any]]] = {row: [] for row, _, _ in ROWS}
    for seed in args.seeds:
        folder = output / f"seed_{seed}"
        _say(f"2/4  training on the pictures alone, seed {seed}")
        _train(args.config, folder, [*data, "SEED", str(seed)])
        _say(f"3/4  evaluation on the held-out scenes, seed {seed}")
        for row, weights, predictor in ROWS:
            results[row].append(_evaluate(args.config, folder, weights, predictor, data))
    _say("4/4  pictures")
    panel = output / "panel.png"
    _copy_panel(panel, output / f"seed_{args.seeds[0]}")
    table = format_table(results)
    (output / "results.json").write_text(json.dumps({"seeds": args.seeds, "results": results}, indent=1))
    (output / "table.txt").write_text(table + "\n")
    _say(f"\nHeld-out scenes, mean over {len(args.seeds)} seed(s), in percent\n\n{table}\n")
    _say(f"pictures  {panel}")
    _say(f"table     {output / 'table.txt'}")
    _say(f"runs      {', '.join(str(output / f'seed_{seed}') for seed in args.seeds)}")
    _say(f"took      {time.perf_counter() - start:.0f} s")
    return 0


def _say(text: str) -> None:
    print(text, flush=True)


def run_command(
    command: list[str], log: Path, show: str | None = None, environment: Mapping[str, str] | None = None
) -> None:
    """Run one of the project's commands; its output goes to a log, the lines that match ``show`` to the screen too."""
    log.parent.mkdir(parents=True, exist_ok=True)
    last: list[str] = []
    with (
        log.open("w") as file,
        subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            last = [*last[-9:], line]
            if show and (found := re.search(show, line)):
                _say("     " + " ".join(found.group(0).split()))
    if process.returncode:
        raise SystemExit(f"{' '.join(command[1:3])} failed; its log is {log}\n{''.join(last)}")


def _train(config: str, folder: Path, overrides: list[str]) -> None:
    request = load_config(REPOSITORY / config, overrides).dump()
    stamp = folder / "request.yaml"
    if stamp.is_file() and stamp.read_text() != request:
        raise SystemExit(f"{folder} holds a run with other settings: remove it, or name another folder with --output")
    folder.mkdir(parents=True, exist_ok=True)
    stamp.write_text(request)
    if (folder / "model_final.pth").is_file():
        _say(f"     already trained: {folder}")
        return
    command = [sys.executable, "train_net.py", "--config-file", config, "--resume", *overrides]
    run_command(
        [*command, "TEST.TASKS", "()", "OUTPUT_DIR", str(folder)], folder / "stdout.log", r"eta: .*total_loss: \S+"
    )


def _evaluate(config: str, folder: Path, weights: str, predictor: str, overrides: list[str]) -> dict[str, Any]:
    output = folder / f"eval_{Path(weights).stem}_{predictor}"
    command = [sys.executable, "train_net.py", "--config-file", config, "--eval-only", *overrides]
    settings = ["MODEL.WEIGHTS", str(folder / weights), "MODEL.INFERENCE.PREDICTOR", predictor]
    if predictor == "uniap":
        # labels are judged at the size that they are made at in training
        size = load_config(REPOSITORY / config, overrides).INPUT.GLOBAL_LONGEST_PX
        settings += ["INPUT.TEST_LONGEST_PX", str(size)]
    run_command([*command, *settings, "OUTPUT_DIR", str(output)], output / "stdout.log")
    figures: dict[str, Any] = json.loads((output / "metrics.json").read_text().splitlines()[-1])
    return figures


def _copy_panel(path: Path, folder: Path) -> None:
    """The panel that the last evaluation of the trained student drew, under a name of its own."""
    drawn = sorted((folder / "eval_model_final_decoder" / "pictures").glob("*.png"))
    if not drawn:
        raise SystemExit("no panel was drawn: TEST.PICTURES must be at least 1")
    path.write_bytes(drawn[0].read_bytes())


# column title -> (group, key) in an evaluation's results
COLUMNS: dict[str, tuple[str, str]] = {
    "AP": ("segm_agnostic", "AP"),
    "AR@10": ("segm_agnostic", "AR@10"),
    "AR@100": ("segm_agnostic", "AR@100"),
    "class AP": ("segm_mapped", "AP_hungarian"),
    "PixelAcc": ("sem_seg_mapped", "PixelAcc_hungarian"),
    "mIoU": ("sem_seg_mapped", "mIoU_hungarian"),
    "PQ": ("panoptic_mapped", "PQ_hungarian"),
}


def format_table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Rows of mean figures, with the spread over seeds where there are several."""
    rows = [["", *COLUMNS]]
    for name, runs in results.items():
        cells = [_cell([run[group][key] for run in runs]) for group, key in COLUMNS.values()]
        rows.append([name, *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]))
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    mean = f"{statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.1f}-{max(values):.1f})"


if __name__ == "__main__":
    sys.exit(
        run_main(
            main,
            "run_demo.py",
            "a run that is done is not repeated and one that was stopped goes on: the same words again",
        )
    )
