"""Instance AP and AR, without classes and after mapping pseudo-classes to classes."""

from __future__ import annotations

import itertools
import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Instances
from detectron2.utils.logger import create_small_table
from numpy.typing import NDArray
from pycocotools import mask as mask_coding

from .class_mapping import (
    DEFAULT_STRATEGIES,
    ClassMapping,
    check_mappings,
    check_pseudo_classes,
    check_strategies,
    fit_mappings,
    save_mappings,
)
from .coco_metrics import (
    BACKENDS,
    check_max_dets,
    class_figures,
    coco_figures,
    complete_truth,
    evaluate_coco,
    stdout_in_log,
)

logger = logging.getLogger(__name__)

Prediction = dict[str, Any]


class _InstanceEvaluator(COCOEvaluator):
    """What both evaluators add to Detectron2's: checked truth, several limits on detections, AR in the results."""

    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        tasks: Sequence[str] = ("segm",),
        max_dets: Sequence[int] = (1, 10, 100),
        backend: str = "pycocotools",
    ) -> None:
        """Load and check the truth.

        Args:
            dataset_name: a registered data set with ``json_file``.
            distributed: gather the predictions of all processes.
            output_dir: where predictions are written in COCO's results format, if anywhere.
            tasks: "segm", "bbox" or both.
            max_dets: increasing limits on detections per picture, 100 among them; a fourth one such as 1000 adds
                ``AP@1000`` and ``AR@1000``.
            backend: "pycocotools" or "faster_coco_eval".

        Raises:
            ValueError: if an argument is unknown or the truth lacks what the tasks need.
        """
        if not tasks or any(task not in ("segm", "bbox") for task in tasks):
            raise ValueError(f"tasks must be 'segm', 'bbox' or both, got {tuple(tasks)}")
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")
        self._max_dets = check_max_dets(max_dets)
        self._backend = backend
        try:
            super().__init__(dataset_name, tuple(tasks), distributed, output_dir, use_fast_impl=False)
        except (AssertionError, AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
            path = MetadataCatalog.get(dataset_name).get("json_file")
            raise ValueError(f"{path} of {dataset_name} is not in COCO's format: {error!r}") from error
        self._dataset_name = dataset_name
        if self._do_evaluation:
            complete_truth(self._coco_api, self._tasks, self._metadata.json_file)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep the predictions of a batch, masks run-length encoded.

        Raises:
            ValueError: if a picture is not one of the data set's truth.
        """
        for entry in inputs:
            if entry["image_id"] not in self._coco_api.imgs:
                raise ValueError(
                    f"image_id {entry['image_id']!r} is not in the truth of {self._dataset_name}: "
                    f"these predictions are of another data set"
                )
        super().process(inputs, [_with_array_masks(output) for output in outputs])

    def _evaluate_task(self, predictions: list[Prediction], task: str) -> Any:
        return evaluate_coco(self._coco_api, predictions, task, max_dets=self._max_dets, backend=self._backend)

    def _write_predictions(self, predictions: list[Prediction], name: str) -> None:
        if self._output_dir:
            path = Path(self._output_dir) / f"coco_instances_results_{name}.json"
            path.write_text(json.dumps(predictions))
            logger.info("COCO results written to %s", path)


class AgnosticCOCOEvaluator(_InstanceEvaluator):
    """Class-agnostic instance AP and AR as CutLER reports them, and UnSAM's with ``max_dets=(1, 10, 100, 1000)``.

    Every object and every prediction is of one class, which is what ``useCats=0`` and CutLER's one-category file mean;
    crowd regions stay crowd. Results are under ``segm_agnostic`` (and ``bbox_agnostic``): AP, AP50, AP75, APs, APm,
    APl, AR@1, AR@10, AR@100, ARs@100, ARm@100, ARl@100, in percent. Pictures without predictions count as missed, a
    run without any prediction has AP 0, truth without any object gives nan, a file without an "annotations" list no
    result. Scores rank the predictions of a picture; ties keep the model's order.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take the arguments of Detectron2's evaluator, ``tasks``, ``max_dets`` and ``backend``; merge the classes."""
        super().__init__(*args, **kwargs)
        truth = self._coco_api
        for entry in truth.dataset.get("annotations", []):
            entry["category_id"] = 1
        truth.dataset["categories"] = [{"id": 1, "name": "object"}]
        with stdout_in_log():
            truth.createIndex()

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: list[int] | None = None) -> None:
        results = [{**entry, "category_id": 1} for entry in _flatten(predictions)]
        self._write_predictions(results, "agnostic")
        if not self._do_evaluation:
            logger.info("%s has no annotations: nothing to evaluate", self._dataset_name)
            return
        for task in self._tasks:
            figures = coco_figures(self._evaluate_task(results, task))
            self._results[f"{task}_agnostic"] = figures
            logger.info("Class-agnostic %s on %s:\n%s", task, self._dataset_name, create_small_table(figures))


class MappedCOCOEvaluator(_InstanceEvaluator):
    """Class-aware instance AP and AR after mapping pseudo-classes to classes, by every strategy in one pass.

    A prediction whose score reaches ``match_score`` votes: each true object (crowd regions too, as in U2Seg) that it
    overlaps with an IoU above ``match_iou`` gives its pseudo-class one vote for the object's class. The mapping is
    fitted on the evaluated split itself, as U2Seg does, unless fitted ``mappings`` are given. Predictions of a
    pseudo-class without a class are left out: AP averages over true classes, so a prediction of none counts for none,
    and the objects it found stay missed.

    Results are under ``segm_mapped`` (and ``bbox_mapped``): the keys of :class:`AgnosticCOCOEvaluator` with the
    strategy behind (``AP_hungarian``, ``AR@100_majority``), the AP of each class (``AP_hungarian-person``) and
    ``votes_hungarian-<split>``, which names the split of the fit. With the identity mapping the figures are those of
    the bare ``COCOEvaluator``. No prediction, no object and no annotations behave as there.

    Differs from U2Seg: its votes need a score >= 0.6 and a box IoU > 0.7; an unsupervised objectness has no fixed scale
    and this method predicts masks, so the defaults are any score and a mask IoU > 0.5. ``match_score=0.6,
    match_iou=0.7, match_by="bbox"`` is U2Seg's rule. The paper is silent on its own.
    """

    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        num_clusters: int,
        strategies: Sequence[str] = DEFAULT_STRATEGIES,
        mappings: Sequence[ClassMapping] | None = None,
        match_score: float = 0.0,
        match_iou: float = 0.5,
        match_by: str = "segm",
        tasks: Sequence[str] = ("segm",),
        max_dets: Sequence[int] = (1, 10, 100),
        backend: str = "pycocotools",
    ) -> None:
        """Load and check the truth.

        Args:
            dataset_name: a registered data set with ``json_file``; its classes are in the contiguous order of
                ``thing_dataset_id_to_contiguous_id``, or in that of the category ids where this is absent.
            distributed: gather the predictions of all processes.
            output_dir: where predictions and mappings are written, if anywhere.
            num_clusters: K, how many pseudo-classes there are.
            strategies: which mappings to fit.
            mappings: fitted elsewhere, used in place of ``strategies``.
            match_score: smallest score of a prediction that votes, in [0, 1].
            match_iou: a vote needs an IoU above this, in [0, 1).
            match_by: "segm" for mask IoU, "bbox" for box IoU.
            tasks: "segm", "bbox" or both.
            max_dets: see :class:`AgnosticCOCOEvaluator`.
            backend: "pycocotools" or "faster_coco_eval".

        Raises:
            ValueError: if an argument is out of range or the truth lacks what the tasks need.
        """
        super().__init__(dataset_name, distributed, output_dir, tasks=tasks, max_dets=max_dets, backend=backend)
        if num_clusters < 1:
            raise ValueError(f"num_clusters must be at least 1, got {num_clusters}")
        if not 0.0 <= match_score <= 1.0:
            raise ValueError(f"match_score must lie in [0, 1], got {match_score}")
        if not 0.0 <= match_iou < 1.0:
            raise ValueError(f"match_iou must lie in [0, 1), got {match_iou}")
        if match_by not in ("segm", "bbox"):
            raise ValueError(f"match_by must be 'segm' or 'bbox', got {match_by!r}")
        self._num_clusters = num_clusters
        self._category_ids = self._contiguous_category_ids()
        self._strategies = check_strategies(strategies)
        self._given = None if mappings is None else check_mappings(mappings, num_clusters, len(self._category_ids))
        self._match_score, self._match_iou, self._match_by = match_score, match_iou, match_by
        self.mappings: tuple[ClassMapping, ...] = self._given or ()  # those of the last evaluation

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep the predictions of a batch.

        Raises:
            ValueError: if a picture is not of the data set, or a pseudo-class not below ``num_clusters``.
        """
        for output in outputs:
            check_pseudo_classes(output["instances"].pred_classes.cpu().numpy(), self._num_clusters)
        super().process(inputs, outputs)

    def count_votes(self, results: list[Prediction]) -> NDArray[np.int64]:
        """Return the ``(K, C)`` votes of COCO-format results whose ``category_id`` is the pseudo-class."""
        column = {category: number for number, category in enumerate(self._category_ids)}
        counts = np.zeros((self._num_clusters, len(column)), dtype=np.int64)
        voters = defaultdict(list)
        for entry in results:
            if entry["score"] >= self._match_score:
                voters[entry["image_id"]].append(entry)
        geometry = "segmentation" if self._match_by == "segm" else "bbox"
        for image_id, predicted in voters.items():
            objects = [entry for entry in self._coco_api.imgToAnns[image_id] if entry["category_id"] in column]
            if not objects:
                continue
            shapes = [
                self._coco_api.annToRLE(entry) if geometry == "segmentation" else entry["bbox"] for entry in objects
            ]
            overlaps = mask_coding.iou([entry[geometry] for entry in predicted], shapes, [0] * len(objects))
            for p, o in zip(*np.nonzero(np.asarray(overlaps) > self._match_iou), strict=True):
                counts[predicted[p]["category_id"], column[objects[o]["category_id"]]] += 1
        return counts

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: list[int] | None = None) -> None:
        results = _flatten(predictions)
        if not self._do_evaluation:
            self._write_predictions(results, "pseudo_classes")
            logger.info("%s has no annotations: nothing to evaluate", self._dataset_name)
            return
        self.mappings = self._given or fit_mappings(self.count_votes(results), self._strategies, self._dataset_name)
        names = [self._coco_api.cats[category]["name"] for category in self._category_ids]
        if self._output_dir:
            save_mappings(Path(self._output_dir) / "class_mapping_instance.json", self.mappings, names)
        figures: dict[str, dict[str, float]] = {task: {} for task in self._tasks}
        for mapping in self.mappings:
            mapped = self._apply(mapping, results)
            self._write_predictions(mapped, mapping.name)
            for task in self._tasks:
                figures[task].update(self._task_figures(mapped, task, mapping))
        for task in self._tasks:
            self._results[f"{task}_mapped"] = figures[task]
            shown = {key: value for key, value in figures[task].items() if "-" not in key}
            logger.info("Class-aware %s on %s:\n%s", task, self._dataset_name, create_small_table(shown))

    def _task_figures(self, mapped: list[Prediction], task: str, mapping: ClassMapping) -> dict[str, float]:
        evaluation = self._evaluate_task(mapped, task)
        figures = {f"{key}_{mapping.name}": value for key, value in coco_figures(evaluation).items()}
        for category, value in zip(evaluation.params.catIds, class_figures(evaluation), strict=True):
            figures[f"AP_{mapping.name}-{self._coco_api.cats[category]['name']}"] = value
        return figures | mapping.provenance

    def _apply(self, mapping: ClassMapping, results: list[Prediction]) -> list[Prediction]:
        """Results with the data set's own category ids, without those that have no class."""
        classes = mapping(np.asarray([entry["category_id"] for entry in results], dtype=np.int64))
        return [
            {**entry, "category_id": self._category_ids[label]}
            for entry, label in zip(results, classes.tolist(), strict=True)
            if label >= 0
        ]

    def _contiguous_category_ids(self) -> list[int]:
        known = sorted(self._coco_api.cats)
        contiguous = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if contiguous is None:
            return known
        ordered = sorted(contiguous, key=contiguous.__getitem__)
        if missing := [category for category in ordered if category not in self._coco_api.cats]:
            raise ValueError(
                f"thing_dataset_id_to_contiguous_id of {self._dataset_name} names category ids {missing} that its "
                f"json_file does not list"
            )
        return ordered


def _with_array_masks(output: dict[str, Any]) -> dict[str, Any]:
    """The output with its masks as one numpy array: numpy 2 warns when Detectron2 hands it a tensor."""
    instances = output["instances"]
    fields = dict(instances.get_fields())
    if "pred_masks" in fields:
        fields["pred_masks"] = fields["pred_masks"].cpu().numpy()
    return {"instances": Instances(instances.image_size, **fields)}


def _flatten(predictions: list[dict[str, Any]]) -> list[Prediction]:
    return list(itertools.chain.from_iterable(entry["instances"] for entry in predictions))
