"""Data loaders for training and evaluation, Detectron2's own with the mappers of this package."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .center_crop import CenterCrop
from .datasets import load_train_records, resolve_dataset
from .mapper import InferenceMapper, MultiViewMapper
from .offline_labels import check_offline_records
from .workers import set_up_workers

logger = logging.getLogger(__name__)

# what an evaluation opens, by key of a record
_FILES = {"file_name": "pictures", "sem_seg_file_name": "label maps", "pan_seg_file_name": "panoptic maps"}


class DrawSampler(TrainingSampler):
    """Detectron2's endless shuffled stream, each index with its place in the stream: ``(draw, index)``.

    Args:
        size: of the data set.
        seed: of the shuffle; None draws one that all processes share.
        start: place in the stream, counted over all processes, at which to begin.

    Raises:
        ValueError: if ``start`` is negative.
    """

    def __init__(self, size: int, *, seed: int | None = None, start: int = 0) -> None:
        super().__init__(size, seed=seed)
        if start < 0:
            raise ValueError(f"start must not be negative, got {start}")
        self._start = start

    def _infinite_indices(self) -> Iterator[tuple[int, int]]:
        # Detectron2's own shuffle, without its list of numbers, which takes 40 bytes for each in every worker
        generator = torch.Generator().manual_seed(self._seed)
        for epoch in itertools.count():
            order = torch.randperm(self._size, generator=generator).numpy()
            before = epoch * self._size
            for place in range(max(self._start - before, 0), self._size):
                yield before + place, int(order[place])


class _MappedStream(IterableDataset):
    """What the mapper makes of the records that a sampler names, or of others where a picture is unreadable.

    A substitute is drawn by ``seed`` and ``draw`` alone, so that an unreadable picture moves no other sample: with the
    next sample of the stream in its place every later batch would depend on the workers and on the run's start.

    Differs from Detectron2's ``ToIterableDataset``, which goes over the sampler once per picture of a batch, each time
    with a shuffle of its own in memory.

    Args:
        records: see :class:`DrawSampler` for their order.
        sampler: of this process.
        mapper: returns None for an unreadable picture.
        batch: pictures that one worker takes in a row before the next one's turn.
    """

    def __init__(
        self, records: Sequence[dict[str, Any]], sampler: DrawSampler, mapper: MultiViewMapper, batch: int
    ) -> None:
        self._records = records
        self._sampler = sampler
        self._mapper = mapper
        self._batch = batch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        if worker is not None:
            # each worker is one of many: OpenCV's own threads would compete with the others'
            cv2.setNumThreads(0)
        for place, (draw, index) in enumerate(self._sampler):
            if worker is None or place // self._batch % worker.num_workers == worker.id:
                yield self._map(draw, index)

    def _map(self, draw: int, index: int) -> dict[str, Any]:
        item = self._mapper({**self._records[index], "draw": draw})
        if item is None:
            rng = np.random.default_rng([self._mapper.seed, draw])
            # ends: the mapper raises after too many unreadable pictures in a row
            while item is None:
                item = self._mapper({**self._records[int(rng.integers(len(self._records)))], "draw": draw})
        return item


def build_train_loader(cfg: CfgNode, *, start_iter: int = 0) -> DataLoader:
    """Return the endless loader of ``DATASETS.TRAIN``: lists of what :class:`MultiViewMapper` makes.

    Only the pictures of the data sets are used, and with ``INPUT.OFFLINE_LABELS`` their annotations. With ``SEED`` at 0
    or above, the pictures of each iteration and their views are the same whatever the number of workers and processes
    and wherever the run began; a seeded draw replaces what is unreadable.

    Args:
        cfg: reads ``DATASETS.TRAIN``, ``SEED``, ``SOLVER.IMS_PER_BATCH``, ``DATALOADER``, ``INPUT`` and,
            with offline labels, ``MODEL.UNIAP``.
        start_iter: iterations already done; the stream goes on after them.

    Raises:
        ValueError: if ``DATASETS.TRAIN`` is empty or names a data set that cannot be used, the batch cannot be shared
            evenly by the processes, or annotations that are to be labels cannot.
    """
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN must name at least one data set, got ()")
    batch, processes = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    if batch < 1 or batch % processes:
        raise ValueError(f"SOLVER.IMS_PER_BATCH must be a positive multiple of {processes} processes, got {batch}")
    names = [resolve_dataset(name) for name in cfg.DATASETS.TRAIN]
    records = load_train_records(names, needs_annotations=cfg.INPUT.OFFLINE_LABELS)
    if cfg.INPUT.OFFLINE_LABELS:
        found = check_offline_records(names, records)
        logger.info(
            "Labels are the %d instance and %d semantic masks of %s, not the teacher's own",
            found["instance"],
            found["semantic"],
            ", ".join(names),
        )
    sampler = DrawSampler(len(records), seed=cfg.SEED if cfg.SEED >= 0 else None, start=start_iter * batch)
    loader = build_detection_train_loader(
        _MappedStream(records, sampler, MultiViewMapper(cfg, True), batch // processes),
        mapper=None,
        total_batch_size=batch,
        aspect_ratio_grouping=False,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        # of the workers' own generators, which nothing reads; without it, starting them would draw from the global one
        # and a resumed run's first step would see other random numbers than a straight run's
        generator=torch.Generator(),
    )
    return set_up_workers(loader, cfg)


def build_test_loader(
    cfg: CfgNode, name: str, *, indices: Sequence[int] | None = None, crop: CenterCrop | None = None
) -> DataLoader:
    """Return the loader that yields pictures of a data set once, in order, in lists of one.

    Args:
        cfg: reads ``DATALOADER`` and ``INPUT.TEST_LONGEST_PX``.
        name: of a data set, in any form that :func:`resolve_dataset` knows.
        indices: places in the data set of the pictures wanted; None is all of them, shared out to the processes.
        crop: what predictions are made on; None is the whole picture.

    Raises:
        ValueError: if the data set cannot be used.
    """
    loader = build_detection_test_loader(
        DatasetFromList(load_test_records(name), copy=False),
        mapper=InferenceMapper(longest_px=cfg.INPUT.TEST_LONGEST_PX, crop=crop),
        sampler=None if indices is None else list(indices),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    return set_up_workers(loader, cfg)


def load_test_records(name: str) -> list[dict[str, Any]]:
    """Return the records of a data set, in order.

    Raises:
        ValueError: if the data set cannot be used.
    """
    records: list[dict[str, Any]] = get_detection_dataset_dicts(
        resolve_dataset(name), filter_empty=False, check_consistency=False
    )
    return records


def check_test_files(name: str, records: Sequence[dict[str, Any]]) -> None:
    """Check that the pictures and label maps of all records are on disk; each folder is listed once.

    Raises:
        ValueError: if files are missing, with their number and the first few.
    """
    for key, what in _FILES.items():
        # what lies inside of another file was found in it when the data set was resolved
        paths = [str(record[key]) for record in records if key in record and "span" not in record]
        local = [path for path in paths if "://" not in path]
        present = {folder: set(_names_in(folder)) for folder in {os.path.dirname(path) for path in local}}
        absent = [path for path in local if os.path.basename(path) not in present[os.path.dirname(path)]]
        if absent:
            shown = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
            raise ValueError(f"{len(absent)} of {len(paths)} {what} of data set {name!r} are missing on disk: {shown}")


def _names_in(folder: str) -> list[str]:
    return os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
