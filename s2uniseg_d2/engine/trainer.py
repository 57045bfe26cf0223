"""Detectron2's DefaultTrainer with a teacher."""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import nn

from s2uniseg_d2.data import build_test_loader, build_train_loader, resolve_dataset
from s2uniseg_d2.data.center_crop import CenterCrop
from s2uniseg_d2.evaluation import build_evaluator, format_results
from s2uniseg_d2.evaluation.build import choose_tasks, crop_for, evaluator_settings
from s2uniseg_d2.evaluation.whole_files import remove_partials
from s2uniseg_d2.modeling.compilation import compile_student

from .checkpoint import SafeCheckpointer
from .comparison import comparison_rows, picture_name
from .hooks import FirstCheckpointHook, FreezeLastLayerHook, PicturesHook, PseudoLabelHook, TeacherMomentumHook
from .observation import ObservationHook
from .optimizer import build_optimizer
from .panel import draw_comparison, write_png
from .processes import parallelize
from .record import PERIOD, EvaluationHook, RecordHook
from .replay import save_replay
from .resuming import StepDrawsHook
from .schedules import ScheduleHook, build_scheduler
from .step import TrainingStep, autocast_dtype
from .step_guard import NonFiniteStepError
from .stopping import TerminationHook

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains and evaluates S2-UniSeg; everything not named here is Detectron2's."""

    def __init__(self, cfg: CfgNode) -> None:
        # in place of DefaultTrainer's own: it wraps modules on the CPU for a GPU, and takes its own step
        TrainerBase.__init__(self)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        if cfg.MODEL.COMPILE:
            compile_student(model)
        optimizer = self.build_optimizer(cfg, model)
        self._trainer = TrainingStep(
            parallelize(model),
            self.build_train_loader(cfg),
            optimizer,
            autocast_dtype=autocast_dtype(cfg),
            accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = SafeCheckpointer(
            self.model, cfg.OUTPUT_DIR, keep=cfg.SOLVER.KEEP_CHECKPOINTS, trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume from the last checkpoint in ``OUTPUT_DIR``, or load ``MODEL.WEIGHTS``; say which."""
        if resume and not self.checkpointer.has_checkpoint():
            logger.warning("--resume: no checkpoint in %s, starting anew", self.cfg.OUTPUT_DIR)
        super().resume_or_load(resume)
        if self.start_iter:
            # the stream of pictures goes on where it stopped
            self._trainer.reset_data_loader(lambda: build_train_loader(self.cfg, start_iter=self.start_iter))

    def run_step(self) -> None:
        """Train on the next batch.

        Raises:
            FloatingPointError: if a loss or gradient is not finite; says how to run the step again.
        """
        try:
            super().run_step()
        except NonFiniteStepError as error:
            raise FloatingPointError(f"{error}; {save_replay(self, error)}") from error

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks with ours in their places.

        Order: the teacher moves right after the optimizer and before checkpoints and evaluations, which must hold
        it; labels wrap the loader before the pictures hook looks at the labelled batches; a signal to stop is heeded
        after the checkpoint of the step, and not left waiting for its evaluation.
        """
        cfg = self.cfg
        ours: list[HookBase] = [
            StepDrawsHook(cfg.SEED),
            ScheduleHook.from_config(cfg),
            FreezeLastLayerHook(cfg.MODEL.QUERY_SD.FREEZE_LAST_LAYER_ITERS),
            PseudoLabelHook(autocast_dtype(cfg), len(cfg.MODEL.UNIAP.TAUS)),
            TeacherMomentumHook(cfg.MODEL.TEACHER.MOMENTUM, cfg.MODEL.TEACHER.MOMENTUM_END),
            ObservationHook(PERIOD),
            FirstCheckpointHook(),
        ]
        if cfg.VIS_PERIOD and comm.is_main_process():
            ours.append(PicturesHook(cfg.VIS_PERIOD, Path(cfg.OUTPUT_DIR) / "pictures"))
        defaults = [hook for hook in super().build_hooks() if not isinstance(hook, (hooks.PeriodicWriter, type(None)))]
        first = next(i for i, hook in enumerate(defaults) if isinstance(hook, hooks.LRScheduler)) + 1
        last = next(i for i, hook in enumerate(defaults) if isinstance(hook, hooks.EvalHook))
        # where there is nothing to evaluate, the record says nothing of it
        kind = EvaluationHook if cfg.DATASETS.TEST else hooks.EvalHook
        evaluation = kind(cfg.TEST.EVAL_PERIOD, self._test_and_keep)
        record = RecordHook(
            Path(cfg.OUTPUT_DIR),
            cfg.SOLVER.MAX_ITER,
            evaluation=(evaluation.evaluate, cfg.TEST.EVAL_PERIOD) if isinstance(evaluation, EvaluationHook) else None,
            is_writing=comm.is_main_process(),
        )
        termination = TerminationHook()
        around_evaluation = [termination, evaluation, *defaults[last + 1 :], termination.after_evaluation]
        return [*defaults[:first], *ours, *defaults[first:last], *around_evaluation, record]

    def after_train(self) -> None:
        """Detectron2's; where no step was left, its loop has counted one too many."""
        self.iter: int = min(self.iter, self.max_iter)
        super().after_train()

    def _test_and_keep(self) -> OrderedDict[str, Any]:
        self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def build_writers(self) -> list[EventWriter]:
        """None here: the record is opened when it is known where it goes on, by :class:`RecordHook`."""
        return []

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW with the recipe's parameter groups."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        """The recipe's course of the learning rate, or one of Detectron2's."""
        return build_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
        """Multi-view batches."""
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict[str, Any]]]:
        """Whole pictures, or their crops, one at a time."""
        return build_test_loader(cfg, dataset_name, crop=_crop_of(cfg, dataset_name))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """All the evaluators that the data set's truth allows."""
        return build_evaluator(
            resolve_dataset(dataset_name),
            output_dir=str(Path(cfg.OUTPUT_DIR) / "inference" / picture_name(dataset_name)),
            **evaluator_settings(cfg),
        )

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> OrderedDict[str, Any]:
        """Evaluate on every data set of ``DATASETS.TEST``, draw the first pictures of each and log one table."""
        if comm.is_main_process():
            remove_partials(Path(cfg.OUTPUT_DIR) / "inference")
        results: OrderedDict[str, Any] = super().test(cfg, model, evaluators)
        cls.draw_first_pictures(cfg, model)
        if comm.is_main_process() and results:
            logger.info("Results:\n%s", format_results(results))
        return results

    @classmethod
    def draw_first_pictures(cls, cfg: CfgNode, model: nn.Module) -> None:
        """Draw the first ``TEST.PICTURES`` of every test set beside labels and truth, on the main process."""
        if comm.is_main_process() and cfg.TEST.PICTURES:
            for dataset_name in cfg.DATASETS.TEST:
                cls._draw(cfg, model, dataset_name)

    @classmethod
    def _draw(cls, cfg: CfgNode, model: nn.Module, dataset_name: str) -> None:
        labelling = cfg.clone()
        labelling.defrost()
        labelling.INPUT.TEST_LONGEST_PX = cfg.INPUT.GLOBAL_LONGEST_PX
        rows = comparison_rows(
            model,
            resolve_dataset(dataset_name),
            cls.build_test_loader(cfg, dataset_name),
            cls.build_test_loader(labelling, dataset_name),
            cfg.TEST.PICTURES,
            crop=_crop_of(cfg, dataset_name),
        )
        write_png(Path(cfg.OUTPUT_DIR) / "pictures" / f"{picture_name(dataset_name)}.png", draw_comparison(rows))


def _crop_of(cfg: CfgNode, dataset_name: str) -> CenterCrop | None:
    settings = evaluator_settings(cfg)
    return crop_for(choose_tasks(resolve_dataset(dataset_name), settings["tasks"]), settings["crop"])
