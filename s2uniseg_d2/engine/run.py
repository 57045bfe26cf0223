"""One run from the command line's words: set up, then train or evaluate."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from s2uniseg_d2.config import load_config, read_yaml
from s2uniseg_d2.data import resolve_dataset
from s2uniseg_d2.downloads import check_address, is_address

from .checkpoint import SafeCheckpointer
from .checkpoint_files import resume_candidates, write_whole
from .evaluation import evaluate
from .evaluation_parts import PARTS, refuse_kept
from .lost_processes import is_loss, naming_losses
from .processes import Processes, count_processes, share_cores
from .stopping import how_to_go_on
from .trainer import Trainer

logger = logging.getLogger(__name__)


class Plan(NamedTuple):
    """What a command line asks for.

    Attributes:
        cfg: the checked config.
        notes: what was changed in it, in words.
        processes: that share the run.
    """

    cfg: CfgNode
    notes: list[str]
    processes: Processes


def set_up(args: argparse.Namespace) -> CfgNode:
    """The checked config of a run, with data sets resolved and the output folder made.

    Raises:
        ValueError: for anything wrong with the config, the data sets or the output folder.
    """
    cfg, notes, _ = prepare(args)
    comm.synchronize()  # what is checked above is changed below, by the fastest process first
    cfg.freeze()
    share_cores()
    _begin(cfg, args)
    logging.getLogger("detectron2.engine.train_loop").addFilter(_without_traceback)
    for note in notes:
        logger.warning(note)
    return cfg


def _begin(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Log, seed and keep the config as Detectron2's ``default_setup`` does, but ``config.yaml`` as a whole."""
    output, rank = Path(cfg.OUTPUT_DIR), comm.get_rank()
    if comm.is_main_process():
        output.mkdir(parents=True, exist_ok=True)
    for name in ("fvcore", "detectron2", "s2uniseg_d2"):
        setup_logger(str(output), distributed_rank=rank, name=name)
    logger.info("Process %d of %d\n%s", rank, comm.get_world_size(), collect_env_info())
    logger.info("%s\n%s", args, cfg.dump())
    if comm.is_main_process():
        write_whole(output / "config.yaml", lambda file: file.write(cfg.dump().encode()))
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if not args.eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


def prepare(args: argparse.Namespace) -> Plan:
    """What a run will do; everything cheap is checked before work begins.

    Raises:
        ValueError: for anything wrong with the config, the data sets or the output folder.
    """
    cfg, notes = _load(args)
    processes = count_processes(cfg.MODEL.DEVICE, args.num_gpus, args.num_machines)
    notes += fit_to_device(cfg, args.num_gpus)
    output = Path(cfg.OUTPUT_DIR)
    has_run = bool(resume_candidates(output))
    if args.eval_only:
        if has_run or (output / "config.yaml") == _described(cfg):
            cfg.OUTPUT_DIR = str(output / "eval")  # the record of the training run stays as it is
        _check_evaluation(cfg, resume=args.resume)
    elif not cfg.DATASETS.TRAIN:
        raise ValueError("training needs DATASETS.TRAIN, for example ('folder:PATH',)")
    split = (cfg.TEST.MAPPING_SPLIT,) if cfg.TEST.MAPPING_SPLIT else ()
    for name in (*(split if args.eval_only else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST):
        resolve_dataset(name)
    _check_weights(cfg)
    if output.exists() and not output.is_dir():
        raise ValueError(f"OUTPUT_DIR must be a folder, got the file {output}")
    if has_run and not args.eval_only and not args.resume:
        raise ValueError(f"OUTPUT_DIR {output} already holds a run: add --resume to go on, or name another folder")
    if (args.eval_only and cfg.MODEL.WEIGHTS) or (args.resume and has_run):
        cfg.MODEL.VIT.WEIGHTS = ""  # the checkpoint holds the whole model
    _check_sharing(cfg, processes.total, is_training=not args.eval_only)
    return Plan(cfg, notes, processes)


def _check_weights(cfg: CfgNode) -> None:
    """Refuse weights that are not there, and addresses that cannot be fetched, before anything is fetched."""
    model = cfg.MODEL
    for place in (model.WEIGHTS, model.VIT.WEIGHTS, model.VIT_ADAPTER.WEIGHTS, model.QUERY_HEAD.WEIGHTS):
        if is_address(place):
            check_address(place)
    if model.WEIGHTS and not is_address(model.WEIGHTS) and not Path(model.WEIGHTS).is_file():
        raise ValueError(f"MODEL.WEIGHTS names a file that does not exist: {model.WEIGHTS}")


def _load(args: argparse.Namespace) -> tuple[CfgNode, list[str]]:
    """The config; to evaluate weights, with the model that the training run beside them describes."""
    cfg = load_config(args.config_file, args.opts)
    described = _described(cfg) if args.eval_only else None
    if described is None:
        return cfg, []
    # what is asked for here says how to test, what stands beside the weights says what they are
    taken = load_config(args.config_file, args.opts, model_from=described)
    notes = [f"The model is that of {described}, which lies beside MODEL.WEIGHTS"]
    size = read_yaml(described).get("INPUT", {}).get("TEST_LONGEST_PX")
    if size not in (None, taken.INPUT.TEST_LONGEST_PX):
        notes.append(f"INPUT.TEST_LONGEST_PX is {taken.INPUT.TEST_LONGEST_PX}; that run tested at {size}")
    return taken, notes


def _described(cfg: CfgNode) -> Path | None:
    path = Path(cfg.MODEL.WEIGHTS).parent / "config.yaml"
    return path if cfg.MODEL.WEIGHTS and path.is_file() else None


def _check_evaluation(cfg: CfgNode, *, resume: bool) -> None:
    if not cfg.MODEL.WEIGHTS and cfg.MODEL.INFERENCE.PREDICTOR == "decoder":
        raise ValueError("--eval-only needs MODEL.WEIGHTS, the checkpoint to evaluate")
    if not cfg.DATASETS.TEST:
        raise ValueError("--eval-only needs DATASETS.TEST, the data to evaluate on")
    if not resume:
        refuse_kept(Path(cfg.OUTPUT_DIR) / PARTS)


def _without_traceback(record: logging.LogRecord) -> bool:
    """Leave an expected error to the one sentence at the end of the run."""
    error = record.exc_info[1] if record.exc_info else None
    if error and (isinstance(error, (ValueError, FloatingPointError, OSError)) or is_loss(error)):
        record.exc_info = None
    return True


def _check_sharing(cfg: CfgNode, processes: int, *, is_training: bool) -> None:
    """Refuse a batch that the processes cannot share evenly, and statistics that they would not share."""
    if not is_training:
        return
    parts = processes * cfg.SOLVER.ACCUMULATION_STEPS
    if cfg.SOLVER.IMS_PER_BATCH % parts:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH must be a multiple of {parts} ({processes} processes, "
            f"SOLVER.ACCUMULATION_STEPS {cfg.SOLVER.ACCUMULATION_STEPS}), got {cfg.SOLVER.IMS_PER_BATCH}"
        )
    if processes > 1 and cfg.MODEL.VIT_ADAPTER.NORM == "BN":
        raise ValueError(
            "MODEL.VIT_ADAPTER.NORM must be SyncBN or GN with several processes, got 'BN': "
            "each process would have statistics, and so a teacher, of its own"
        )


def fit_to_device(cfg: CfgNode, num_gpus: int = 1) -> list[str]:
    """Fall back to the CPU where there is no GPU; returns what was changed, in words."""
    if cfg.MODEL.DEVICE == "cpu":
        cfg.SOLVER.AMP.ENABLED = False
        if torch.cuda.is_available():
            return ["MODEL.DEVICE is cpu although a GPU is available; MODEL.DEVICE cuda uses it"]
        return []
    if torch.cuda.is_available():
        return []
    notes = [f"No GPU is available: MODEL.DEVICE {cfg.MODEL.DEVICE} becomes cpu"]
    if num_gpus > 1:
        notes.append(f"--num-gpus {num_gpus}, but no GPU is available: one process runs on the CPU")
    cfg.MODEL.DEVICE = "cpu"
    if cfg.SOLVER.AMP.ENABLED:
        cfg.SOLVER.AMP.ENABLED = False
        notes.append("Mixed precision (SOLVER.AMP.ENABLED) is off on the CPU")
    return notes


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    """Train or evaluate as the arguments say; the main process of an evaluation returns its results."""
    cfg = set_up(args)
    if not args.eval_only:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        try:
            with naming_losses(cfg):
                trainer.train()
        except (FloatingPointError, OSError) as error:
            kind = FloatingPointError if isinstance(error, FloatingPointError) else OSError
            raise kind(f"{error}; {how_to_go_on(Path(cfg.OUTPUT_DIR))}") from error
        return getattr(trainer, "_last_eval_results", None)
    if cfg.SEED >= 0:
        seed_all_rng(cfg.SEED)  # what no weights file fills must be the same in all processes
    model = Trainer.build_model(cfg)
    if cfg.MODEL.WEIGHTS:
        SafeCheckpointer(model, cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=False)
    with naming_losses(cfg):
        results = evaluate(cfg, model, resume=args.resume)
        Trainer.draw_first_pictures(cfg, model)
    return results
