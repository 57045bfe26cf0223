"""The record of a run: metrics.json, TensorBoard and the lines of the log, gone on with where a run was stopped."""

from __future__ import annotations

import datetime
import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.engine.hooks import EvalHook, PeriodicWriter
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter, JSONWriter, TensorboardXWriter, get_event_storage

from .checkpoint_files import write_whole

logger = logging.getLogger(__name__)

PERIOD = 20  # iterations between two lines of the record, and of what a line's medians are over
EVALUATED = "evaluation_seconds"  # stands in the record where an evaluation was finished
REMEMBERED = 200  # values of a scalar; the time left is told by the median of so many steps
GROUPS = ("query_sd", "mask", "dice", "objectness")  # the parts of the loss that a line of the log sums up


class EvaluationHook(EvalHook):
    """Detectron2's, which says in the record that it has evaluated, and how long that took."""

    def evaluate(self) -> None:
        """Evaluate, and put the figures."""
        start = time.perf_counter()
        super()._do_eval()
        get_event_storage().put_scalar(EVALUATED, time.perf_counter() - start, smoothing_hint=False)

    def _do_eval(self) -> None:
        self.evaluate()


class RecordHook(PeriodicWriter):
    """Writes a run's scalars every 20 iterations and after every evaluation; belongs last.

    What a killed run wrote after the checkpoint that is gone on from is taken back, so that every step stands in the
    record once. The last values before the checkpoint come back with it, so that medians over them go on too. An
    evaluation that follows the checkpoint and was cut short, or whose figures did not reach the record, is made up for.

    Args:
        folder: of the run.
        max_iter: last iteration, for the time that is left.
        evaluation: of the trainer, and its period; None where nothing is evaluated.
        is_writing: whether this process keeps the record; the others only take the values along.
    """

    def __init__(
        self,
        folder: Path,
        max_iter: int,
        *,
        evaluation: tuple[Callable[[], None], int] | None = None,
        is_writing: bool = True,
    ) -> None:
        super().__init__([], PERIOD)
        self.folder = folder
        self.max_iter = max_iter
        self.is_writing = is_writing
        self._evaluate = evaluation[0] if evaluation else None
        self._evaluation_period = evaluation[1] if evaluation else 0
        self._kept: Mapping[str, list[tuple[float, int]]] = {}
        self._latest: Mapping[str, tuple[float, int]] = {}

    def before_train(self) -> None:
        """Go on with the record."""
        start = self.trainer.start_iter
        is_missed = False
        if self.is_writing:
            self.folder.mkdir(parents=True, exist_ok=True)
            metrics = self.folder / "metrics.json"
            is_missed = self._is_missed(metrics, start)
            take_back(metrics, start - 1 if is_missed else start, keeps_seam=start < self.max_iter)
            self._writers = [
                ProgressPrinter(self.max_iter),
                JSONWriter(str(metrics)),
                # a final evaluation of a run that is prolonged stands at the first new step, and stays
                TensorboardXWriter(str(self.folder), purge_step=start + 1 if start else None),
            ]
        is_missed = any(comm.all_gather(is_missed))
        if start < self.max_iter or is_missed:  # else the last step's line is there already
            restore_histories(self.trainer.storage, self._kept)
        if is_missed:
            self._make_up(start)

    def after_step(self) -> None:
        """Write if a line is due, and forget what no later line will need."""
        if self._is_due(self.trainer.iter + 1) or self.trainer.iter == self.trainer.max_iter - 1:
            self._write()
            forget_old(self.trainer.storage)

    def state_dict(self) -> dict[str, Any]:
        """The last values of every scalar that is recorded at each step, and what else the last step has put."""
        storage = self.trainer.storage
        hints = storage.smoothing_hints()
        latest = {
            name: (value, iteration)
            for name, (value, iteration) in storage.latest().items()
            if iteration == storage.iter and not hints[name]
        }
        return {"histories": last_values(storage), "latest": latest}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Keep them until training starts."""
        self._kept = state_dict["histories"]
        self._latest = state_dict.get("latest", {})

    def _write(self) -> None:
        for writer in self._writers:
            writer.write()

    def _is_due(self, done: int) -> bool:
        """Whether a line follows so many iterations."""
        return done % PERIOD == 0 or self._is_evaluated(done)

    def _is_evaluated(self, done: int) -> bool:
        return self._evaluation_period > 0 and done % self._evaluation_period == 0 and done < self.max_iter

    def _is_missed(self, metrics: Path, start: int) -> bool:
        """Whether the line is not there, or not whole, that the last step before a resumed run owes the record."""
        if not (0 < start <= self.max_iter and (self._is_due(start) or start == self.max_iter)):
            return False
        wanted = {"total_loss"} | ({EVALUATED} if self._is_evaluated(start) else set())
        lines = metrics.read_text(encoding="utf-8", errors="replace").splitlines() if metrics.is_file() else []
        return not any(found.get("iteration") == start - 1 and wanted <= found.keys() for found in map(_read, lines))

    def _make_up(self, start: int) -> None:
        """Write the line that the step before ``start`` owes, after the evaluation if it is one's."""
        storage = self.trainer.storage
        storage.iter = start - 1
        for name, (value, iteration) in self._latest.items():
            storage.put_scalar(name, value, smoothing_hint=False, cur_iter=iteration)
        if self._evaluate is not None and self._is_evaluated(start):
            logger.info("The evaluation after iteration %d, which was not finished, is made up for", start - 1)
            self._evaluate()
        self._write()
        storage.iter = start


def last_values(storage: EventStorage) -> dict[str, list[tuple[float, int]]]:
    """The values, each with its iteration, that medians of the next iterations will need, by name.

    Those are of the scalars that every step puts: smoothed ones that the newest iteration has.
    """
    hints, latest, oldest = storage.smoothing_hints(), storage.latest(), storage.iter - PERIOD
    return {
        name: [(value, iteration) for value, iteration in history.values()[-PERIOD:] if iteration > oldest]
        for name, history in storage.histories().items()
        if hints[name] and latest[name][1] == storage.iter
    }


def restore_histories(storage: EventStorage, kept: Mapping[str, list[tuple[float, int]]]) -> None:
    """Put values back that :func:`last_values` gave."""
    for name, values in kept.items():
        for value, iteration in values:
            storage.put_scalar(name, value, cur_iter=iteration)


def forget_old(storage: EventStorage) -> None:
    """Cut every scalar's values to the last ``REMEMBERED``: Detectron2 keeps a million of each, 100 bytes a value."""
    for history in storage.histories().values():
        del history.values()[:-REMEMBERED]


def take_back(metrics: Path, start: int, *, keeps_seam: bool = True) -> None:
    """Remove the lines of steps from ``start`` on, and what is no line, from a run's metrics.json.

    An evaluation that stands at ``start`` stays, for a run that ended there left it, unless ``keeps_seam`` is false:
    where no step is left, that evaluation comes again.
    """
    if not metrics.is_file():
        return
    lines = metrics.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if _is_before(line, start, keeps_seam)]
    if len(kept) < len(lines):
        logger.info("%s: %d lines after iteration %d are taken back", metrics, len(lines) - len(kept), start - 1)
        write_whole(metrics, lambda file: file.write("".join(kept).encode()))


def _is_before(line: str, start: int, keeps_seam: bool) -> bool:
    scalars = _read(line)
    if "iteration" not in scalars:
        return bool(scalars)
    iteration = scalars["iteration"]
    # a step that failed leaves there what was put before it, which is no evaluation
    is_evaluation = EVALUATED in scalars and "total_loss" not in scalars
    return bool(iteration < start or (keeps_seam and iteration == start and is_evaluation))


def _read(line: str) -> dict[str, Any]:
    """The scalars of a line; empty where it is none."""
    try:
        scalars = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return scalars if isinstance(scalars, dict) else {}


class ProgressPrinter(EventWriter):
    """One line of the log: how far, how fast, how long still, and the losses, each summed over layers and groups.

    Differs from Detectron2's, whose line names every one of sixty losses and gives no iterations per second. Also
    puts ``iterations_per_second`` and ``eta_seconds``, so it belongs before other writers.

    Args:
        max_iter: iterations of the whole run.
    """

    def __init__(self, max_iter: int) -> None:
        self.max_iter = max_iter
        self._last: tuple[int, float] | None = None

    def write(self) -> None:
        """Log the line; nothing after the last iteration, when results alone are new."""
        storage = get_event_storage()
        if storage.iter >= self.max_iter:
            return
        medians = {name: value for name, (value, _) in storage.latest_with_smoothing_hint(PERIOD).items()}
        parts = [f"iter {storage.iter + 1:,} of {self.max_iter:,}", *self._pace(storage)]
        parts += [f"{name} {value:.4g}" for name, value in self._losses(medians).items()]
        parts += [f"{name} {medians[name]:.4g}" for name in ("grad_norm", "lr") if name in medians]
        if medians.get("time") and "seconds/load" in medians:
            parts.append(f"load {medians['seconds/load'] / medians['time']:.0%}")
        if torch.cuda.is_available():
            parts.append(f"memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
        logger.info("  ".join(parts))

    def _pace(self, storage: EventStorage) -> list[str]:
        """Iterations per second since the last line, all that happens between steps included, and the time left."""
        now, steps = time.perf_counter(), storage.histories().get("time")
        last, self._last = self._last, (storage.iter, now)
        seconds = steps.median(REMEMBERED) if steps else 0.0
        if last is not None and storage.iter > last[0]:
            rate = (storage.iter - last[0]) / (now - last[1])
        elif seconds:
            rate = 1.0 / seconds
        else:
            return []
        # by the steps alone: a line with an evaluation before it says nothing of those to come
        left = datetime.timedelta(seconds=int((self.max_iter - storage.iter - 1) * (seconds or 1.0 / rate)))
        storage.put_scalar("iterations_per_second", rate, smoothing_hint=False)
        storage.put_scalar("eta_seconds", left.total_seconds(), smoothing_hint=False)
        return [f"{rate:.3g} it/s", f"eta {left}"]

    @staticmethod
    def _losses(medians: Mapping[str, float]) -> dict[str, float]:
        found = {"total_loss": medians["total_loss"]} if "total_loss" in medians else {}
        for group in GROUPS:
            of_group = [value for name, value in medians.items() if name.startswith(f"loss_{group}")]
            if of_group:
                found[group] = sum(of_group)
        return found
