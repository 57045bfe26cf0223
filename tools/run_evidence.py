#!/usr/bin/env python
"""Train the evidence recipe and its variants on generated scenes, and write what came out to docs/evidence.md.

* `make evidence`                        all runs, two at a time with one thread each
* `make evidence DEVICE=cuda`            the same on a GPU
* `make evidence ARGS="--only main"`     the seeds of the main setting alone
* `make evidence ARGS="--finished"`      the document from the runs that are done, naming those that are not

A run that is done is not repeated; one that was stopped goes on. No label is read in training. The scenes that are
reported here (seed 0 of datasets/make_scenes.py) were not looked at while the recipe was chosen; those had seed 77.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))
from evidence_report import RunRecord, write_document
from run_demo import REPOSITORY, run_command

from s2uniseg_d2.config import load_config
from s2uniseg_d2.exit_status import HELP, run_main

CONFIG = "configs/evidence.yaml"
GROUPS = ("main", "ablation", "table3", "scaling")
SEEDS = (0, 1, 2)
TRAIN_SCENES = 400
VAL_SCENES = 48
SIZE_PX = 256
SHORT_SHARE = 0.4  # of the main run's iterations, what a variant trains for
CHECKPOINTS = 4  # of a main run that are evaluated, evenly spread, the last one included


class Run(NamedTuple):
    """One training run of the plan.

    Attributes:
        name: of its folder.
        group: of GROUPS.
        row: of the table.
        overrides: KEY VALUE words on top of the recipe.
        seed: of weights, pictures and draws.
        scenes: to learn from.
        is_short: trains for SHORT_SHARE of the iterations.
    """

    name: str
    group: str
    row: str
    overrides: tuple[str, ...] = ()
    seed: int = 0
    scenes: int = TRAIN_SCENES
    is_short: bool = True


def plan(train_scenes: int = TRAIN_SCENES, seeds: Sequence[int] = SEEDS) -> list[Run]:
    """All runs, the longest first, so that two at a time end together."""
    quarter, fourfold = max(train_scenes // 4, 1), train_scenes * 4
    full = f"{train_scenes} scenes"
    runs = [Run(f"seed_{seed}", "main", full, seed=seed, scenes=train_scenes, is_short=False) for seed in seeds]
    runs += [
        Run(f"scenes_{count}", "scaling", f"{count} scenes", scenes=count, is_short=False)
        for count in (quarter, fourfold)
    ]
    variants: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {
        ("ablation", "full"): {"everything": ()},
        ("ablation", "part"): {
            "no QuerySD": ("MODEL.LOSS.QUERY_SD_WEIGHT", "0.0"),
            "no semantic group": ("MODEL.LOSS.KINDS", "('instance',)"),
            "no momentum (teacher = student)": ("MODEL.TEACHER.MOMENTUM", "0.0", "MODEL.TEACHER.MOMENTUM_END", "0.0"),
            "teacher never moves": ("MODEL.TEACHER.MOMENTUM", "1.0", "MODEL.TEACHER.MOMENTUM_END", "1.0"),
            "one view": ("INPUT.VIEWS.NUM", "1"),
        },
        ("table3", "K"): {
            "K = 16": ("MODEL.QUERY_SD.NUM_PROTOTYPES", "16"),
            "K = 256": ("MODEL.QUERY_SD.NUM_PROTOTYPES", "256"),
        },
        ("table3", "delta"): {"δ = 4": ("INPUT.VIEWS.NUM", "4")},
        ("table3", "omega"): {
            "ω_s, ω_f = 0.2, 0.8": ("MODEL.UNIAP.OMEGA_S", "0.2", "MODEL.UNIAP.OMEGA_F", "0.8"),
            "ω_s, ω_f = 0.6, 0.4": ("MODEL.UNIAP.OMEGA_S", "0.6", "MODEL.UNIAP.OMEGA_F", "0.4"),
        },
        ("table3", "tau"): {
            "τ = 0.8 to 0.4 (the paper's)": ("MODEL.UNIAP.TAUS", "(0.8, 0.7, 0.6, 0.5, 0.4)"),
            "τ = 0.95 to 0.55, nine steps": (
                "MODEL.UNIAP.TAUS",
                "(0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55)",
            ),
        },
    }
    for (group, part), rows in variants.items():
        for number, (row, overrides) in enumerate(rows.items()):
            runs.append(Run(f"{group}_{part}_{number}", group, row, overrides, scenes=train_scenes))
    return runs


def main(arguments: list[str] | None = None) -> int:
    """Run the plan, then write the document; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/evidence"), metavar="FOLDER", help="of all runs")
    parser.add_argument("--document", type=Path, default=Path("docs/evidence.md"), metavar="FILE", help="to write")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="runs at a time, one thread each (default: 2)")
    parser.add_argument("--only", choices=GROUPS, nargs="+", default=list(GROUPS), help="groups of runs (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), metavar="S", help="of the main setting")
    parser.add_argument(
        "--train", type=int, default=TRAIN_SCENES, metavar="N", help="scenes of a main run (default %(default)s)"
    )
    parser.add_argument(
        "--val", type=int, default=VAL_SCENES, metavar="N", help="held-out scenes (default %(default)s)"
    )
    parser.add_argument("--finished", action="store_true", help="write up the runs that are done, train nothing")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes of the recipe, last")
    args = parser.parse_args(arguments)
    if args.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {args.jobs}")
    start = time.perf_counter()
    output = args.output.resolve()
    opts = ["MODEL.DEVICE", args.device, *args.opts]
    runs = [run for run in plan(args.train, args.seeds) if run.group in args.only]
    missing = [run for run in runs if args.finished and not _is_done(output / run.name, run)]
    runs = [run for run in runs if run not in missing]
    if args.finished and not runs:
        parser.error(f"--finished: no run is done in {output}")
    if not args.finished:
        for count in sorted({run.scenes for run in runs}):
            _make_scenes(output, count, args.val)
    with ThreadPoolExecutor(args.jobs) as pool:
        records = list(pool.map(lambda run: _complete(output, run, opts, args.train), runs))
    seconds = time.perf_counter() - start
    facts = _facts(args, seconds, opts) | {"missing": [f"{run.group}: {run.row}" for run in missing]}
    (output / "results.json").write_text(json.dumps({"facts": facts, "runs": [r._asdict() for r in records]}, indent=1))
    write_document(args.document, facts, records)
    print(f"written  {args.document}\nresults  {output / 'results.json'}\ntook     {seconds / 60:.1f} min", flush=True)
    return 0


def _scenes_folder(output: Path, count: int) -> Path:
    return output / f"scenes_{count}_pictures"


def _make_scenes(output: Path, count: int, val: int) -> None:
    """Scenes 1 to ``count`` are the same whatever the count, and so are the held-out ones."""
    sizes = ["--train", str(count), "--val", str(val), "--size", str(SIZE_PX), "--seed", "0"]
    folder = _scenes_folder(output, count)
    run_command(
        [sys.executable, "datasets/make_scenes.py", "--output", str(folder), *sizes], output / f"scenes_{count}.log"
    )


def _is_done(folder: Path, run: Run) -> bool:
    """Whether a run is trained and evaluated: the last of what is evaluated is there."""
    last = ("student" if run.is_short else "plain student") + " model_final.pth"
    path = folder / "evaluation.json"
    return (folder / "model_final.pth").is_file() and path.is_file() and last in json.loads(path.read_text())


def _complete(output: Path, run: Run, opts: list[str], train_scenes: int) -> RunRecord:
    """Train and evaluate one run as far as that is not done yet."""
    folder = output / run.name
    iterations = load_config(REPOSITORY / CONFIG, list(opts)).SOLVER.MAX_ITER
    if run.is_short:
        iterations = max(int(iterations * SHORT_SHARE), 1)
    period = max(iterations // CHECKPOINTS, 1)
    words = [
        *opts, *run.overrides, "SEED", str(run.seed),
        "SOLVER.MAX_ITER", str(iterations), "SOLVER.CHECKPOINT_PERIOD", str(period),
        "DATASETS.TRAIN", f"('scenes:{_scenes_folder(output, run.scenes) / 'train'}',)",
        "DATASETS.TEST", f"('scenes:{_scenes_folder(output, train_scenes) / 'val'}',)",
    ]  # fmt: skip
    request = load_config(REPOSITORY / CONFIG, words).dump()
    stamp = folder / "request.yaml"
    if stamp.is_file() and stamp.read_text() != request:
        raise SystemExit(f"{folder} holds a run with other settings: remove it, or name another folder with --output")
    folder.mkdir(parents=True, exist_ok=True)
    stamp.write_text(request)
    # the package of this checkout, whatever is installed
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(REPOSITORY)}
    if not (folder / "model_final.pth").is_file():
        command = [sys.executable, "train_net.py", "--config-file", CONFIG, "--resume", *words]
        run_command(
            [*command, "TEST.TASKS", "()", "OUTPUT_DIR", str(folder)], folder / "stdout.log", environment=environment
        )
    at = {"model_final.pth": iterations}
    if not run.is_short:
        steps = [period * number for number in range(1, CHECKPOINTS) if period * number < iterations]
        at |= {"model_initial.pth": 0, **{f"model_{step - 1:07d}.pth": step for step in steps}}
    names = sorted(at, key=lambda name: at[name])
    command = [sys.executable, "tools/evaluate_checkpoints.py", "--config-file", CONFIG, "--folder", str(folder)]
    plain = [] if run.is_short else [names[-1]]
    command += ["--checkpoints", *names, "--plain", *plain, "--", *words]
    run_command(command, folder / "evaluation.log", environment=environment)
    figures = json.loads((folder / "evaluation.json").read_text())
    rows = {
        name: ["labels", "student", *(["plain labels", "plain student"] if name in plain else [])] for name in names
    }
    record = RunRecord(
        name=run.name,
        group=run.group,
        row=run.row,
        seed=run.seed,
        scenes=run.scenes,
        iterations=iterations,
        is_short=run.is_short,
        seconds=_training_seconds(folder),
        figures=[
            {"iteration": at[name], "row": row, "results": figures[f"{row} {name}"]["results"]}
            for name in names
            for row in rows[name]
        ],
    )
    print(f"{time.strftime('%H:%M:%S')}  {run.group}: {run.row}, seed {run.seed}: {record.seconds:.0f} s", flush=True)
    return record


def _training_seconds(folder: Path) -> float:
    """Seconds of all iterations, from the run's own record; a repeated iteration counts once."""
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    timed = {line["iteration"]: line["time"] for line in lines if "time" in line}
    ends = sorted(timed)
    return sum(timed[end] * (end - begin) for begin, end in zip([-1, *ends], ends, strict=False))


def _facts(args: argparse.Namespace, seconds: float, opts: list[str]) -> dict[str, Any]:
    """What the document says about how it came about."""
    import torch

    cfg = load_config(REPOSITORY / CONFIG, opts)
    uniap = cfg.MODEL.UNIAP
    commit = _git("rev-parse", "--short", "HEAD") or "unknown"
    changed = " with changes that are not committed" if _git("status", "--porcelain", "--", "*.py", "configs") else ""
    return {
        "commit": commit + changed,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "device": args.device,
        "jobs": args.jobs,
        "train": args.train,
        "val": args.val,
        "overrides": opts[2:],
        "recipe": {
            "k": cfg.MODEL.QUERY_SD.NUM_PROTOTYPES,
            "delta": cfg.INPUT.VIEWS.NUM,
            "omega": f"{uniap.OMEGA_S}, {uniap.OMEGA_F}",
            "taus": ", ".join(str(tau) for tau in uniap.TAUS),
        },
        "minutes": seconds / 60,
    }


def _git(*words: str) -> str:
    found = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else ""


if __name__ == "__main__":
    sys.exit(
        run_main(
            main,
            "run_evidence.py",
            "a run that is done is not repeated and one that was stopped goes on: the same words again",
        )
    )
