"""Detectron2 hooks: labels from the teacher, the teacher's momentum, the frozen last layer, pictures."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn

from s2uniseg_d2.core.ops.transfer import to_device
from s2uniseg_d2.core.schedules import cosine
from s2uniseg_d2.core.structures import PseudoLabels
from s2uniseg_d2.modeling import S2UniSeg
from s2uniseg_d2.modeling.inspection import inspect_views

from .panel import write_png
from .step_guard import UnlabelledBatchError
from .training_panel import draw_training_step

logger = logging.getLogger(__name__)

Batch = Sequence[dict[str, Any]]


def unwrap(model: nn.Module) -> S2UniSeg:
    """The S2UniSeg inside ``DistributedDataParallel``, or the model itself."""
    inner = getattr(model, "module", model)
    if not isinstance(inner, S2UniSeg):
        raise ValueError(f"trainer.model must be an S2UniSeg, got {type(inner).__name__}")
    return inner


class LabelledLoader:
    """A data loader whose batches carry ``pseudo`` labels.

    Items that hold none are labelled by the teacher. Offline labels from a mapper, masks whose embeddings have no width
    yet, keep their masks and get the teacher's embeddings: UniAP does not run for them. Whole labels pass as they are.
    ``num_masks`` and ``num_dropped`` count what offline labels brought and left out. The model's observer sees how many
    masks a picture has, by kind, and by kind and level for levels below ``num_levels``.
    """

    def __init__(
        self, loader: Iterable[Batch], model: S2UniSeg, autocast_dtype: torch.dtype | None, num_levels: int = 0
    ) -> None:
        self.loader = loader
        self.model = model
        self.autocast_dtype = autocast_dtype
        self.num_levels = num_levels
        self.num_masks = self.num_dropped = 0

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            self.model.observer.lap("load")
            bare = [item for item in batch if "pseudo" not in item]
            offline = [item for item in batch if "pseudo" in item and _lacks_embeddings(item["pseudo"])]
            if bare or offline:
                kind = self.model.device.type
                with torch.autocast(kind, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None):
                    labels = self._label(batch, bare, offline)
                for item, pseudo in zip(bare + offline, labels, strict=True):
                    item["pseudo"] = pseudo
            if offline:
                self._count(offline)
            self._observe(batch)
            yield batch

    def _label(self, batch: Batch, bare: Batch, offline: Batch) -> list[PseudoLabels]:
        try:
            return (self.model.label(bare) if bare else []) + (self.model.embed(offline) if offline else [])
        except FloatingPointError as error:
            raise UnlabelledBatchError(str(error), batch) from error

    def _observe(self, batch: Batch) -> None:
        device, levels = self.model.device, torch.arange(self.num_levels)
        for kind in PseudoLabels._fields:
            found = [getattr(item["pseudo"], kind).level for item in batch]
            self.model.observer.add(f"labels/{kind}_masks", sum(len(level) for level in found), len(batch))
            if self.num_levels:
                level = torch.cat(found).to(device, non_blocking=True)
                by_level = (level[:, None] == to_device(levels, device)).sum(dim=0)
                self.model.observer.add(f"labels/{kind}_level", by_level, len(batch))

    def _count(self, offline: Batch) -> None:
        dropped = sum(item.get("dropped_masks", 0) for item in offline)
        self.num_masks += sum(len(kind.level) for item in offline for kind in item["pseudo"])
        self.num_dropped += dropped
        get_event_storage().put_scalar("labels/dropped_masks", dropped / len(offline))


def _lacks_embeddings(labels: PseudoLabels) -> bool:
    return any(kind.embeddings.shape[1] == 0 for kind in labels)


class PseudoLabelHook(HookBase):
    """Lets the teacher label every batch, or embed its offline labels, before the step sees it.

    The data loader is wrapped for the time of training, so that Detectron2's own ``run_step`` and mixed precision
    stay as they are.

    Args:
        autocast_dtype: of the teacher's forward pass; None is full precision. UniAP itself runs in float32.
        num_levels: of the labels, whose masks are counted by level.
    """

    def __init__(self, autocast_dtype: torch.dtype | None = None, num_levels: int = 0) -> None:
        self.autocast_dtype = autocast_dtype
        self.num_levels = num_levels
        self._labelled: LabelledLoader | None = None

    def before_train(self) -> None:
        """Wrap the loader."""
        loader = self.trainer.data_loader
        self.trainer.data_loader = self._labelled = LabelledLoader(
            loader, unwrap(self.trainer.model), self.autocast_dtype, self.num_levels
        )

    def after_train(self) -> None:
        """Put the loader back, from under whatever other hooks have wrapped around it since; count offline labels."""
        # Detectron2 calls this also when another hook failed before the loader was wrapped
        if self._labelled is None:
            return
        self.trainer.data_loader = self._labelled.loader
        used, dropped = self._labelled.num_masks, self._labelled.num_dropped
        if used or dropped:
            logger.info("Offline labels: %d masks used, %d smaller than MODEL.UNIAP.MIN_TOKENS left out", used, dropped)


class TeacherMomentumHook(HookBase):
    """Moves the teacher after every step; must come before the checkpointer and the evaluator.

    The momentum goes from ``start`` to ``end`` along a cosine over the run. A new run begins with an exact copy of
    the student; a resumed one keeps the teacher of its checkpoint.
    """

    def __init__(self, start: float, end: float) -> None:
        self.start, self.end = start, end

    def before_train(self) -> None:
        """Copy the student when the run is new."""
        if self.trainer.start_iter == 0:
            unwrap(self.trainer.model).copy_student_to_teacher()

    def after_step(self) -> None:
        """Update encoder and head."""
        momentum = cosine(self.trainer.iter / max(self.trainer.max_iter - 1, 1), self.start, self.end)
        unwrap(self.trainer.model).update_teacher(momentum)
        self.trainer.storage.put_scalar("teacher_momentum", momentum)


class FreezeLastLayerHook(HookBase):
    """Holds the student head's last layer still for the first iterations, as DINO does for its first epoch.

    A rate of zero freezes the layer under AdamW (decay is scaled by the rate) and, unlike a missing gradient, keeps
    every parameter in use for data-parallel training.
    """

    def __init__(self, iters: int) -> None:
        self.iters = iters

    def before_step(self) -> None:
        """Zero the rate; Detectron2's scheduler sets it anew after every step."""
        if self.trainer.iter < self.iters:
            for group in self.trainer.optimizer.param_groups:
                if group.get("is_last_layer"):
                    group["lr"] = 0.0


class FirstCheckpointHook(HookBase):
    """Saves ``model_initial`` before the first step, the point that later checkpoints are compared with.

    Also makes ``model_final`` of the last periodic checkpoint where a run was stopped between the two.
    """

    def before_train(self) -> None:
        """Save when the run is new, or no step is left."""
        if not comm.is_main_process():
            return
        if self.trainer.start_iter == 0:
            # a run that is stopped now has nothing to go on from
            self.trainer.checkpointer.save("model_initial", is_last=False, iteration=-1)
        elif self.trainer.start_iter == self.trainer.max_iter:
            self.trainer.checkpointer.copy_final(self.trainer.max_iter - 1)


class PicturesHook(HookBase):
    """Draws labels, views and the student's masks of one picture every ``period`` iterations, also to TensorBoard."""

    def __init__(self, period: int, folder: Path) -> None:
        self.period = period
        self.folder = folder

    def before_train(self) -> None:
        """Watch the batches go by."""
        self._last: list[Batch] = []
        self.trainer.data_loader = _Watched(self.trainer.data_loader, self._last)

    def after_train(self) -> None:
        """Stop watching."""
        if isinstance(self.trainer.data_loader, _Watched):
            self.trainer.data_loader = self.trainer.data_loader.loader

    def after_step(self) -> None:
        """Draw the first picture of the batch just used."""
        if (self.trainer.iter + 1) % self.period and self.trainer.iter != self.trainer.start_iter:
            return
        item = self._last[-1][0]
        picture = draw_training_step(item, inspect_views(unwrap(self.trainer.model), item))
        write_png(self.folder / f"views_{self.trainer.iter + 1:07d}.png", picture)
        self.trainer.storage.put_image("views_and_labels", torch.from_numpy(picture).permute(2, 0, 1))


class _Watched:
    def __init__(self, loader: Iterable[Batch], last: list[Batch]) -> None:
        self.loader = loader
        self.last = last

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            self.last[:] = [batch]
            yield batch
