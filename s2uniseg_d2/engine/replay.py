"""Steps that were not finite: written down by the run that met one, and run again."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor

from s2uniseg_d2.config import load_config
from s2uniseg_d2.core.structures import PseudoLabels, PseudoMasks
from s2uniseg_d2.modeling import S2UniSeg
from s2uniseg_d2.modeling.normalizers import Normalizers

from .checkpoint_files import read_checkpoint, write_whole
from .hooks import LabelledLoader, unwrap
from .step import TrainingStep, autocast_dtype
from .step_guard import NonFiniteStepError, name_gradient

if TYPE_CHECKING:
    from .trainer import Trainer

logger = logging.getLogger(__name__)

FOLDER = "replay"  # below OUTPUT_DIR
STATE, CONFIG = "state.pth", "config.yaml"
FORMAT = 1


class Replay(NamedTuple):
    """One process's part of a step, as read from its file.

    Attributes:
        record: what :func:`save_replay` wrote.
        cfg: of the run.
        model: as it was before the step, in training mode.
        state: the whole file of weights, optimizer and scaler.
    """

    record: dict[str, Any]
    cfg: CfgNode
    model: S2UniSeg
    state: dict[str, Any]


def save_replay(trainer: Trainer, error: NonFiniteStepError) -> str:
    """Write down all that the step needs to be run again; returns in words where it is, or why it is not there.

    Below ``OUTPUT_DIR/replay/iteration_N`` each process leaves ``rank_R.pth``: its batch with pictures, labels and
    names, states of the generators and losses. ``state.pth`` beside it is laid out as a checkpoint, and ``config.yaml``
    is the run's. All can be read without running code. If all processes stop, the main one writes the state and none
    leaves before it is written, for the rest are ended with the first.
    """
    folder = Path(trainer.cfg.OUTPUT_DIR) / FOLDER / f"iteration_{trainer.iter:07d}"
    path = folder / f"rank_{comm.get_rank()}.pth"
    try:
        record = _describe(trainer, error)
        folder.mkdir(parents=True, exist_ok=True)
        if comm.is_main_process() or not error.is_shared:
            model = unwrap(trainer.model).state_dict()
            state = {"model": model, "trainer": trainer.state_dict(), "iteration": trainer.iter}
            write_whole(folder / STATE, lambda file: torch.save(state, file))
            write_whole(folder / CONFIG, lambda file: file.write(trainer.cfg.dump().encode()))
        write_whole(path, lambda file: torch.save(record, file))
        outcome = f"tools/replay_batch.py {path} runs it again"
    except OSError as reason:
        outcome = f"it cannot be run again: {reason}"
    if error.is_shared:
        comm.synchronize()
    return outcome


def _describe(trainer: Trainer, error: NonFiniteStepError) -> dict[str, Any]:
    model = unwrap(trainer.model)
    normalizers = None
    if error.is_shared and comm.get_world_size() > 1:
        # what the losses were divided by depends on the pictures of all processes
        normalizers = {name: _to_cpu(value) for name, value in model.count_normalizers(error.batch)._asdict().items()}
    return {
        "format": FORMAT,
        "reason": str(error),
        "iteration": trainer.iter,
        "rank": comm.get_rank(),
        "processes": comm.get_world_size(),
        "pictures": [str(item.get("file_name", "")) for item in error.batch],
        "losses": error.losses,
        "teacher_temp": model.teacher_temp,
        "generators": error.generators,
        "normalizers": normalizers,
        "batch": [_to_cpu(item) for item in error.batch],
    }


def _to_cpu(value: Any) -> Any:
    """Nested tensors on the CPU; of named tuples plain dictionaries, which can be read without running code."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {str(key): _to_cpu(part) for key, part in value.items()}
    if hasattr(value, "_asdict"):
        return _to_cpu(value._asdict())
    if isinstance(value, (list, tuple)):
        return [_to_cpu(part) for part in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def load_replay(path: Path, *, device: str = "cpu") -> Replay:
    """Read a step that :func:`save_replay` wrote, and rebuild its model.

    Raises:
        ValueError: if the file, or one of the two beside it, is missing, damaged or of another sort.
    """
    record = read_checkpoint(path)
    missing = {"format", "batch", "generators", "iteration", "teacher_temp"} - record.keys()
    if missing:
        raise ValueError(f"{path} must be a file that a stopped run left, it lacks {', '.join(sorted(missing))}")
    if record["format"] != FORMAT:
        raise ValueError(f"{path} must be of format {FORMAT}, got {record['format']}")
    cfg = load_config(path.parent / CONFIG, ["MODEL.DEVICE", device, "MODEL.COMPILE", "False"])
    cfg.MODEL.VIT.WEIGHTS = ""  # the state holds the whole model
    state = read_checkpoint(path.parent / STATE)
    model: S2UniSeg = build_model(cfg)
    model.load_state_dict(state["model"])
    model.train()
    model.teacher_temp = record["teacher_temp"]
    return Replay(record, cfg, model, state)


def run_again(replay: Replay) -> tuple[dict[str, float], str]:
    """Run forward and backward passes of the step again; returns its losses and what is not finite, "" if all is.

    Of several processes, one alone runs: losses are divided as they were, statistics of batches are those of its part.
    """
    record, cfg, model = replay.record, replay.cfg, replay.model
    batch = [_restore_labels(item, model.device) for item in record["batch"]]
    step = TrainingStep(
        model,
        [],
        torch.optim.SGD(model.parameters(), lr=0.0),
        autocast_dtype=autocast_dtype(cfg),
        accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
    )
    step.load_scale(replay.state["trainer"].get("_trainer", {}))
    try:
        with EventStorage(record["iteration"]):
            (labelled,) = LabelledLoader([batch], model, autocast_dtype(cfg))
        _set_generators(record["generators"], model.device)
        found = step.compute_gradients(labelled, _restore_normalizers(record.get("normalizers"), model.device))
    except FloatingPointError as error:
        return {}, str(error)
    losses = {name: float(loss) for name, loss in found.items()}
    wrong = [f"{name} = {loss}" for name, loss in losses.items() if not torch.tensor(loss).isfinite()]
    if wrong:
        return losses, ", ".join(wrong)
    if step.grad_scaler.is_enabled():
        step.grad_scaler.unscale_(step.optimizer)
    norm = torch.stack([value.grad.norm() for value in model.parameters() if value.grad is not None]).norm()
    return losses, "" if norm.isfinite() else name_gradient(model)


def _restore_labels(item: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The item as the teacher left it; labels go where the model is, all else stays where a mapper leaves it."""
    restored = dict(item)
    if "pseudo" in item:
        kinds = {
            kind: PseudoMasks(**{name: value.to(device) for name, value in masks.items()})
            for kind, masks in item["pseudo"].items()
        }
        restored["pseudo"] = PseudoLabels(**kinds)
    return restored


def _restore_normalizers(kept: Mapping[str, Any] | None, device: torch.device) -> Normalizers | None:
    if kept is None:
        return None
    groups = {name: {key: value.to(device) for key, value in kept[name].items()} for name in ("pairs", "weights")}
    return Normalizers(all_pairs=kept["all_pairs"].to(device), **groups)


def _set_generators(states: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
