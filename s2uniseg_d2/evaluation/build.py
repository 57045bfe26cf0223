"""The evaluators that a data set's truth allows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from .class_mapping import DEFAULT_STRATEGIES
from .instances import AgnosticCOCOEvaluator, MappedCOCOEvaluator
from .panoptic import MappedPanopticEvaluator
from .semantic import MappedSemSegEvaluator

logger = logging.getLogger(__name__)

TASKS = ("agnostic", "instance", "semantic", "panoptic")


def build_evaluator(
    dataset_name: str,
    *,
    num_clusters: int,
    output_dir: str | None = None,
    tasks: Sequence[str] = TASKS,
    strategies: Sequence[str] = DEFAULT_STRATEGIES,
    match_score: float = 0.0,
    match_iou: float = 0.5,
    match_by: str = "segm",
    geometry: Sequence[str] = ("segm",),
    max_dets: Sequence[int] = (1, 10, 100),
    backend: str = "pycocotools",
    distributed: bool = True,
) -> DatasetEvaluators:
    """Return one evaluator for those of ``tasks`` that the data set has truth for.

    ``json_file`` in the metadata allows "agnostic" and "instance"; ``stuff_classes`` with a ``sem_seg_file_name`` in
    every record allows "semantic"; ``panoptic_json`` with ``panoptic_root`` allows "panoptic". A data set without any
    of these, or of ``evaluator_type`` "none", gets an evaluator without parts, whose result is empty; the log says so.

    Args:
        dataset_name: a registered data set.
        num_clusters: K, how many pseudo-classes the model predicts.
        output_dir: where predictions and mappings go, each task in a folder of its own; None writes nothing.
        tasks: those asked for.
        strategies: "hungarian", "majority" or both; each names its result keys.
        match_score: see :class:`MappedCOCOEvaluator`.
        match_iou: see :class:`MappedCOCOEvaluator`.
        match_by: see :class:`MappedCOCOEvaluator`.
        geometry: "segm", "bbox" or both, what AP is measured on.
        max_dets: limits on detections per picture; ``(1, 10, 100, 1000)`` adds UnSAM's figures.
        backend: "pycocotools" or "faster_coco_eval".
        distributed: gather from all processes.

    Raises:
        ValueError: if a task is unknown, or an evaluator refuses its arguments or truth.
    """
    if unknown := [task for task in tasks if task not in TASKS]:
        raise ValueError(f"tasks must be among {TASKS}, got {unknown}")
    available = available_tasks(dataset_name)
    chosen = [task for task in TASKS if task in tasks and task in available]
    if not chosen:
        logger.warning("%s has no truth for any of %s: it is not evaluated", dataset_name, tuple(tasks))
    elif len(chosen) < len(set(tasks)):
        logger.info("%s has truth for %s only, of %s", dataset_name, chosen, tuple(tasks))
    folder = {task: str(Path(output_dir) / task) if output_dir else None for task in TASKS}
    mapped: dict[str, Any] = {"num_clusters": num_clusters, "strategies": strategies}
    instances: dict[str, Any] = {"tasks": geometry, "max_dets": max_dets, "backend": backend}
    matching: dict[str, Any] = {"match_score": match_score, "match_iou": match_iou, "match_by": match_by}
    evaluators: list[DatasetEvaluator] = []
    if "agnostic" in chosen:
        evaluators.append(AgnosticCOCOEvaluator(dataset_name, distributed, folder["agnostic"], **instances))
    if "instance" in chosen:
        evaluators.append(
            MappedCOCOEvaluator(dataset_name, distributed, folder["instance"], **mapped, **matching, **instances)
        )
    if "semantic" in chosen:
        evaluators.append(MappedSemSegEvaluator(dataset_name, distributed, folder["semantic"], **mapped))
    if "panoptic" in chosen:
        evaluators.append(MappedPanopticEvaluator(dataset_name, folder["panoptic"], distributed=distributed, **mapped))
    return DatasetEvaluators(evaluators)


def available_tasks(dataset_name: str) -> tuple[str, ...]:
    """Return the tasks that a registered data set has truth for."""
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("evaluator_type") == "none":
        return ()
    available = []
    if metadata.get("json_file"):
        available += ["agnostic", "instance"]
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
