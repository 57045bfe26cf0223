"""The evaluators that a data set's truth allows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from s2uniseg_d2.data.benchmarks import AGNOSTIC_CATEGORIES
from s2uniseg_d2.data.center_crop import CenterCrop

from .class_mapping import DEFAULT_STRATEGIES
from .coco_metrics import DEFAULT_BACKEND
from .instances import AgnosticCOCOEvaluator, MappedCOCOEvaluator
from .panoptic import MappedPanopticEvaluator
from .semantic import MappedSemSegEvaluator

logger = logging.getLogger(__name__)

TASKS = ("agnostic", "instance", "semantic", "panoptic")
_TRUTH = {
    "agnostic": "json_file",
    "instance": "json_file with classes",
    "semantic": "stuff_classes and a sem_seg_file_name in every record",
    "panoptic": "panoptic_json and panoptic_root",
}


def evaluator_settings(cfg: CfgNode) -> dict[str, Any]:
    """Return the settings of :func:`build_evaluators` that a config holds in ``TEST`` and ``MODEL``."""
    test = cfg.TEST
    return {
        "num_clusters": cfg.MODEL.QUERY_SD.NUM_PROTOTYPES,
        "tasks": tuple(test.TASKS),
        "strategies": tuple(test.STRATEGIES),
        "match_score": test.MATCH_SCORE,
        "match_iou": test.MATCH_IOU,
        "match_by": test.MATCH_BY,
        "geometry": tuple(test.GEOMETRY),
        "max_dets": tuple(test.MAX_DETS),
        "backend": test.BACKEND,
        "semantic_vote": test.SEMANTIC_VOTE,
        "panoptic_vote": test.PANOPTIC_VOTE,
        "thing_iou": test.THING_IOU,
        "stuff_iou": test.STUFF_IOU,
        "crop": CenterCrop(test.SHORT_SIDE_PX, test.CENTER_CROP_PX) if test.CENTER_CROP_PX else None,
    }


def build_evaluators(
    dataset_name: str,
    *,
    num_clusters: int,
    output_dir: str | None = None,
    tasks: Sequence[str] = TASKS,
    strategies: Sequence[str] = DEFAULT_STRATEGIES,
    mappings: Mapping[str, Sequence[Any]] | None = None,
    match_score: float = 0.0,
    match_iou: float = 0.5,
    match_by: str = "segm",
    geometry: Sequence[str] = ("segm",),
    max_dets: Sequence[int] = (1, 10, 100),
    backend: str = DEFAULT_BACKEND,
    semantic_vote: str = "pixels",
    panoptic_vote: str = "pixels",
    thing_iou: float = 0.5,
    stuff_iou: float = 0.15,
    crop: CenterCrop | None = None,
    write_maps: bool = False,
    distributed: bool = True,
) -> dict[str, DatasetEvaluator]:
    """Return one evaluator for each of ``tasks`` that the data set has truth for, by task.

    Args:
        dataset_name: a registered data set.
        num_clusters: K, how many pseudo-classes the model predicts.
        output_dir: where predictions and mappings go, each task in a folder of its own; None writes nothing.
        tasks: those asked for; see :func:`choose_tasks`.
        strategies: of mapping, each of which names its result keys.
        mappings: by task, fitted elsewhere; a task without an entry fits its own on this data set.
        match_score: see :class:`MappedCOCOEvaluator`.
        match_iou: see :class:`MappedCOCOEvaluator`.
        match_by: see :class:`MappedCOCOEvaluator`.
        geometry: "segm", "bbox" or both, what AP is measured on.
        max_dets: limits on detections per picture; ``(1, 10, 100, 1000)`` adds UnSAM's figures.
        backend: "faster_coco_eval" or "pycocotools".
        semantic_vote: ``vote`` of :class:`MappedSemSegEvaluator`.
        panoptic_vote: ``vote`` of :class:`MappedPanopticEvaluator`.
        thing_iou: see :class:`MappedPanopticEvaluator`.
        stuff_iou: the same for stuff, and ``vote_iou`` of :class:`MappedSemSegEvaluator`.
        crop: what predictions are made on; applies as :func:`crop_for` says.
        write_maps: write semantic label maps too, where there is an ``output_dir``.
        distributed: gather from all processes.

    Raises:
        ValueError: if a task is unknown, or an evaluator refuses its arguments or truth.
    """
    chosen = choose_tasks(dataset_name, tasks)
    fitted = mappings or {}
    folder = {task: str(Path(output_dir) / task) if output_dir else None for task in TASKS}
    mapped: dict[str, dict[str, Any]] = {
        task: {"num_clusters": num_clusters, "strategies": strategies, "mappings": fitted.get(task)} for task in TASKS
    }
    instances: dict[str, Any] = {"tasks": geometry, "max_dets": max_dets, "backend": backend}
    matching: dict[str, Any] = {"match_score": match_score, "match_iou": match_iou, "match_by": match_by}
    builders: dict[str, Callable[[], DatasetEvaluator]] = {
        "agnostic": lambda: AgnosticCOCOEvaluator(dataset_name, distributed, folder["agnostic"], **instances),
        "instance": lambda: MappedCOCOEvaluator(
            dataset_name, distributed, folder["instance"], **mapped["instance"], **matching, **instances
        ),
        "semantic": lambda: MappedSemSegEvaluator(
            dataset_name,
            distributed,
            folder["semantic"],
            truth_geometry=crop_for(chosen, crop),
            vote=semantic_vote,
            vote_iou=stuff_iou,
            write_maps=write_maps and output_dir is not None,
            **mapped["semantic"],
        ),
        "panoptic": lambda: MappedPanopticEvaluator(
            dataset_name,
            folder["panoptic"],
            distributed=distributed,
            vote=panoptic_vote,
            thing_iou=thing_iou,
            stuff_iou=stuff_iou,
            **mapped["panoptic"],
        ),
    }
    return {task: builders[task]() for task in chosen}


def build_evaluator(dataset_name: str, **settings: Any) -> DatasetEvaluators:
    """Return the evaluators of :func:`build_evaluators` as one.

    A data set without truth, or of ``evaluator_type`` "none", gets one without parts, whose result is empty.

    Raises:
        ValueError: as :func:`build_evaluators` does.
    """
    return DatasetEvaluators(list(build_evaluators(dataset_name, **settings).values()))


def crop_for(tasks: Sequence[str], crop: CenterCrop | None) -> CenterCrop | None:
    """Return the crop if semantic labels are all that is measured.

    The other truths are of whole pictures; the log says so when a crop is left out.
    """
    if crop is not None and tuple(tasks) != ("semantic",):
        logger.warning("pictures are not cropped: tasks %s have truth for whole pictures", tuple(tasks))
        return None
    return crop


def choose_tasks(dataset_name: str, tasks: Sequence[str]) -> tuple[str, ...]:
    """Return those of ``tasks`` that a data set has truth for, in the order of :data:`TASKS`; the log names the rest.

    Raises:
        ValueError: if a task is unknown.
    """
    if unknown := [task for task in tasks if task not in TASKS]:
        raise ValueError(f"tasks must be among {TASKS}, got {unknown}")
    available = available_tasks(dataset_name)
    chosen = tuple(task for task in TASKS if task in tasks and task in available)
    if not chosen:
        logger.warning("%s has no truth for any of %s: it is not evaluated", dataset_name, tuple(tasks))
    elif len(chosen) < len(set(tasks)):
        logger.info("%s has truth for %s only, of %s", dataset_name, chosen, tuple(tasks))
    return chosen


def require_truth(dataset_names: Sequence[str], tasks: Sequence[str]) -> None:
    """Check that each data set has truth for one of the tasks, and each task is measured on one of the data sets.

    Raises:
        ValueError: naming what the truth lacks and, where known, the command that makes it.
    """
    measured: set[str] = set()
    for name in dataset_names:
        available = set(available_tasks(name)) & set(tasks)
        measured |= available
        if not available:
            lacks = "; ".join(f"{_TRUTH[task]} for {task!r}" for task in tasks)
            command = MetadataCatalog.get(name).get("made_by")
            remedy = f"; 'python {command}' makes its truth" if command else ""
            raise ValueError(f"{name} has no truth for TEST.TASKS {tuple(tasks)}: its metadata lacks {lacks}{remedy}")
    if missing := [task for task in tasks if task not in measured]:
        lacks = "; ".join(f"{_TRUTH[task]} for {task!r}" for task in missing)
        raise ValueError(f"no data set of DATASETS.TEST {tuple(dataset_names)} has {lacks}")


def available_tasks(dataset_name: str) -> tuple[str, ...]:
    """Return the tasks that a registered data set has truth for.

    ``json_file`` in the metadata allows "agnostic" and, unless its one class is that of the class-agnostic benchmarks,
    "instance"; ``stuff_classes`` with a ``sem_seg_file_name`` in every record allows "semantic"; ``panoptic_json`` with
    ``panoptic_root`` allows "panoptic". ``evaluator_type`` "none" allows nothing.
    """
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("evaluator_type") == "none":
        return ()
    available = []
    if metadata.get("json_file"):
        available.append("agnostic")
        if metadata.get("thing_classes") != [category["name"] for category in AGNOSTIC_CATEGORIES]:
            available.append("instance")
    if _has_semantic_truth(dataset_name, metadata):
        available.append("semantic")
    if metadata.get("panoptic_json") and metadata.get("panoptic_root"):
        available.append("panoptic")
    return tuple(available)


def _has_semantic_truth(dataset_name: str, metadata: Metadata) -> bool:
    if not metadata.get("stuff_classes"):
        return False
    records = DatasetCatalog.get(dataset_name)
    return bool(records) and all("sem_seg_file_name" in record for record in records)
