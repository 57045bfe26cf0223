"""A run that is built whole and tried for a few steps in memory: sizes, memory, time and the state of its data.

Nothing is trained that would stay, and nothing is written: no folder, no checkpoint, no record, no index of tar shards.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from s2uniseg_d2.data.datasets import load_train_records
from s2uniseg_d2.data.loaders import check_test_files, load_test_records
from s2uniseg_d2.data.picture_check import draw_sample, read_pictures
from s2uniseg_d2.data.shards import keeping_no_index
from s2uniseg_d2.exit_status import counted

from .dry_run_memory import Memory, MemoryMeter, optimizer_bytes, part_sizes
from .hooks import FirstCheckpointHook, PicturesHook
from .record import RecordHook
from .run import Plan, prepare
from .stopping import EndOfEvaluation, TerminationHook
from .trainer import Trainer

SAMPLE = 64  # pictures of each data set that are read
STEPS = 3  # that are timed, after one that is not
PATIENCE_S = 30.0  # no further step begins after so long
# those that write, or take signals over to write; the checkpointer is switched off besides
WRITING: tuple[type[HookBase], ...] = (
    FirstCheckpointHook,
    PicturesHook,
    RecordHook,
    TerminationHook,
    EndOfEvaluation,
    hooks.PeriodicCheckpointer,
    hooks.EvalHook,
)


class Trial(NamedTuple):
    """What a few steps cost.

    Attributes:
        seconds: of each timed step, loading and labelling included.
        busy: CPU seconds of this process in them.
        memory: of the process and its GPU, in bytes.
    """

    seconds: list[float]
    busy: float
    memory: Memory


def dry_run(args: argparse.Namespace) -> str:
    """The report on a run that the arguments of ``train_net.py`` describe, as text.

    Model, teacher, labeler, optimizer, loaders and hooks are those of the run. Some steps are taken on this copy, in
    one process with its share of the batch, and forgotten. A seeded sample of the pictures is read, and all files that
    annotations name are looked for. Weights that timm would have to fetch are not: random ones stand for them.

    Raises:
        ValueError: for what would stop the run at its start, or data of which nothing can be read.
    """
    if args.eval_only:
        raise ValueError("--dry-run tries a training run: leave --eval-only out")
    with keeping_no_index():
        plan = prepare(args)
        cfg = plan.cfg
        if plan.processes.by_torchrun:
            raise ValueError("--dry-run takes one process: start it with python, --num-gpus as in the run")
        notes = [*plan.notes, *_stand_in_for_timm(cfg)]
        data = _check_data(cfg)
        batch = cfg.SOLVER.IMS_PER_BATCH
        cfg.SOLVER.IMS_PER_BATCH = batch // plan.processes.total
        cfg.freeze()
        seed_all_rng(None if cfg.SEED < 0 else cfg.SEED)
        trainer = Trainer(cfg)
        trainer.checkpointer.save_to_disk = False
        trainer.resume_or_load(resume=args.resume)
        left = max(0, trainer.max_iter - trainer.start_iter)
        trial = try_steps(trainer) if left else None
    sections = {
        "notes": notes,
        "data": data,
        "model": _describe_model(trainer),
        "step": _describe_trial(trial, plan, batch) if trial else ["the run is over: no iteration is left"],
        "run": _describe_run(trainer, trial, batch),
    }
    lines = [f"Dry run of {args.config_file or 'the default config'}: nothing is kept, nothing is written."]
    for title, content in sections.items():
        lines += ["", title, *(f"  {line}" for line in content)] if content else []
    return "\n".join(lines) + "\n"


def _stand_in_for_timm(cfg: CfgNode) -> list[str]:
    if cfg.MODEL.VIT.WEIGHTS != "timm":
        return []
    cfg.MODEL.VIT.WEIGHTS = ""
    return [
        f"the weights of {cfg.MODEL.VIT.NAME}, which timm downloads at the first start unless it has them, are not "
        "loaded: random ones stand for them, whose masks may take more or less time"
    ]


def _check_data(cfg: CfgNode) -> list[str]:
    """One line for each data set.

    Raises:
        ValueError: if no picture of a sample can be read, or files are missing.
    """
    seed, lines = max(cfg.SEED, 0), []
    for key, names in (("DATASETS.TRAIN", cfg.DATASETS.TRAIN), ("DATASETS.TEST", cfg.DATASETS.TEST)):
        for name in names:
            is_test = key.endswith("TEST")
            has_files = is_test or MetadataCatalog.get(name).get("records") is None
            records = load_test_records(name) if has_files else load_train_records([name], needs_annotations=False)
            if has_files:
                check_test_files(name, list(records))
            found = read_pictures(records, draw_sample(len(records), SAMPLE, seed))
            if not found.sizes:
                raise ValueError(f"{key} {name!r}: none of the pictures looked at can be read; {found.summary()}")
            lines.append(f"{key} {name}: {counted(len(records), 'picture')}; {found.summary()}")
            expected = len(found.unreadable) * len(records) // (len(found.unreadable) + len(found.sizes))
            if is_test and found.unreadable:
                lines.append("  an evaluation stops at a picture that cannot be read: mend or remove them")
            elif expected > cfg.INPUT.MAX_UNREADABLE:
                lines.append(
                    f"  about {expected:,} of all will be unreadable, more than INPUT.MAX_UNREADABLE = "
                    f"{cfg.INPUT.MAX_UNREADABLE}: the run would stop"
                )
    return lines


def try_steps(trainer: Trainer) -> Trial:
    """Take a few steps of a run with its hooks but for those that write, on the model that is in memory."""
    trainer.checkpointer.save_to_disk = False
    trainer._hooks = [hook for hook in trainer._hooks if not isinstance(hook, WRITING)]
    start, begun, busy, seconds = trainer.start_iter, time.perf_counter(), 0.0, []
    meter = MemoryMeter(trainer.model, trainer.optimizer)
    with EventStorage(start) as trainer.storage:
        trainer.iter = start
        trainer.before_train()
        try:
            for number in range(STEPS + 1):
                if number == 1:
                    busy = time.process_time()
                step_begun = time.perf_counter()
                trainer.iter = trainer.storage.iter = min(start + number, trainer.max_iter - 1)
                trainer.before_step()
                DefaultTrainer.run_step(trainer)  # ours would write a step down that is not finite
                trainer.after_step()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - step_begun)
                if len(seconds) > 1 and time.perf_counter() - begun > PATIENCE_S:
                    break
        finally:
            trainer.after_train()
    return Trial(seconds[1:], time.process_time() - busy, meter.read())


def _describe_model(trainer: Trainer) -> list[str]:
    parts = part_sizes(trainer.model)
    width = max(map(len, parts))
    lines = [f"{name:{width}}  {count:>13,} parameters  {gib(4 * count)}" for name, count in parts.items()]
    trained = [value for group in trainer.optimizer.param_groups for value in group["params"]]
    count = sum(value.numel() for value in trained)
    state = optimizer_bytes(trainer.optimizer) or 8 * count
    rest = f"gradients {gib(4 * count)}, optimizer {gib(state)}"
    return [*lines, f"{'trained':{width}}  {count:>13,} parameters; {rest}"]


def _describe_trial(trial: Trial, plan: Plan, batch: int) -> list[str]:
    cfg, memory = plan.cfg, trial.memory
    share = cfg.SOLVER.IMS_PER_BATCH
    shared = f", its share of {batch} in {plan.processes.total} processes" if plan.processes.total > 1 else ""
    precision = cfg.SOLVER.AMP.DTYPE if cfg.SOLVER.AMP.ENABLED else "float32"
    parts = f", in {cfg.SOLVER.ACCUMULATION_STEPS} parts" if cfg.SOLVER.ACCUMULATION_STEPS > 1 else ""
    middle, timed = statistics.median(trial.seconds), len(trial.seconds)
    rate = f"{share / middle:.3g} pictures a second"
    lines = [
        f"{counted(share, 'picture')}{shared}{parts}, on {cfg.MODEL.DEVICE}, {precision}",
        f"time    {middle:.3g} s, the middle of {timed} steps after a first one; {rate}",
    ]
    worked = trial.busy / sum(trial.seconds)
    if cfg.MODEL.DEVICE == "cpu" and worked < 0.7:
        alone = trial.busy / timed
        lines.append(f"        of that {alone:.3g} s at work: other work slows this process, alone it would be faster")
    return [*lines, f"memory  {memory.describe(gib)}"]


def _describe_run(trainer: Trainer, trial: Trial | None, batch: int) -> list[str]:
    cfg = trainer.cfg
    left = max(0, trainer.max_iter - trainer.start_iter)
    seen = counted(left * batch, "picture")
    lines = [f"iterations   {left:,} of {trainer.max_iter:,} are left, {seen} with repeats"]
    if trial:
        total = datetime.timedelta(seconds=round(left * statistics.median(trial.seconds)))
        lines.append(f"time         {total} by these steps, without evaluations, pictures and checkpoints")
    size = sum(value.numel() * value.element_size() for value in trainer.model.state_dict().values())
    size += optimizer_bytes(trainer.optimizer)
    periodic = trainer.max_iter // cfg.SOLVER.CHECKPOINT_PERIOD
    kept = min(periodic, cfg.SOLVER.KEEP_CHECKPOINTS or periodic) + 2
    output = Path(cfg.OUTPUT_DIR).expanduser().absolute()
    there = next(folder for folder in (output, *output.parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    lines.append(f"checkpoints  {kept} files of about {gib(size)}, together {gib(kept * size)}; {gib(free)} are free")
    if (kept + 1) * size > free:
        lines.append("             that is too little: lower SOLVER.KEEP_CHECKPOINTS, or name another OUTPUT_DIR")
    if not os.access(there, os.W_OK):
        lines.append(f"             {there} cannot be written: name another OUTPUT_DIR")
    lines.append(f"OUTPUT_DIR   {cfg.OUTPUT_DIR}{'' if there == output else ', which the run will make'}")
    return lines


def gib(size: float) -> str:
    """A number of bytes as a person reads it."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 2**10:.1f} KiB"
