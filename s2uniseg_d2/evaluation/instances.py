"""Instance AP and AR, without classes and after mapping pseudo-classes to classes."""

from __future__ import annotations

import itertools
import json
import logging
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm
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
    DEFAULT_BACKEND,
    check_max_dets,
    class_figures,
    coco_figures,
    complete_truth,
    evaluate_coco,
    picture_overlaps,
    stdout_in_log,
)
from .coco_results import Result, encode_instances
from .whole_files import write_json

logger = logging.getLogger(__name__)


class _InstanceEvaluator(COCOEvaluator):
    """What both evaluators add to Detectron2's: checked truth, several limits on detections, AR in the results.

    Attributes:
        records: one JSON-able dict per picture that this process has seen; a run that goes on extends them with those
            it had written before. A picture that comes twice counts once, as it came last.
        per_picture: after ``evaluate()``, on the main process, :func:`~.coco_metrics.picture_overlaps` of the first of
            ``tasks`` (and the first strategy), by image id.
    """

    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        tasks: Sequence[str] = ("segm",),
        max_dets: Sequence[int] = (1, 10, 100),
        backend: str = DEFAULT_BACKEND,
    ) -> None:
        """Load and check the truth.

        Args:
            dataset_name: a registered data set with ``json_file``.
            distributed: gather the predictions of all processes.
            output_dir: where predictions are written in COCO's results format, if anywhere.
            tasks: "segm", "bbox" or both.
            max_dets: increasing limits on detections per picture, 100 among them, all counted in one pass; a fourth
                one such as 1000 adds ``AP@1000`` and ``AR@1000`` and changes no other figure.
            backend: "faster_coco_eval", or "pycocotools" for the same figures later.

        Raises:
            ValueError: if an argument is unknown or the truth lacks what the tasks need.
        """
        if not tasks or any(task not in ("segm", "bbox") for task in tasks):
            raise ValueError(f"tasks must be 'segm', 'bbox' or both, got {tuple(tasks)}")
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")
        self._max_dets = check_max_dets(max_dets)
        self._backend = backend
        self.per_picture: dict[int, float] = {}
        try:
            super().__init__(dataset_name, tuple(tasks), distributed, output_dir, use_fast_impl=False)
        except OSError as error:
            path = MetadataCatalog.get(dataset_name).get("json_file")
            raise ValueError(f"cannot read the truth {path} of {dataset_name}: {error.strerror or error}") from error
        except (AssertionError, AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
            path = MetadataCatalog.get(dataset_name).get("json_file")
            raise ValueError(f"{path} of {dataset_name} is not in COCO's format: {error!r}") from error
        self._dataset_name = dataset_name
        if self._do_evaluation:
            complete_truth(self._coco_api, self._tasks, self._metadata.json_file)

        self.reset()

    @property
    def records(self) -> list[dict[str, Any]]:
        """What has been kept so far, in the order of ``process``: ``image_id`` and ``instances`` as COCO results."""
        return self._predictions

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep the predictions of a batch, masks run-length encoded.

        Raises:
            ValueError: if a picture is not one of the data set's truth, a score is not finite, or masks are missing or
                of another size than the picture.
        """
        for entry, output in zip(inputs, outputs, strict=True):
            image_id, instances = entry["image_id"], output["instances"]
            picture = self._check_picture(image_id)
            if "segm" in self._tasks and len(instances):
                if not instances.has("pred_masks"):
                    raise ValueError(f"the prediction of image_id {image_id!r} has no pred_masks, which segm needs")
                size = (picture.get("height"), picture.get("width"))
                if tuple(instances.pred_masks.shape[1:]) != size and None not in size:
                    raise ValueError(
                        f"masks of image_id {image_id!r} must have the truth's size {size}, "
                        f"got {tuple(instances.pred_masks.shape[1:])}"
                    )
            self._predictions.append({"image_id": image_id, "instances": encode_instances(instances, image_id)})

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Return the results on the main process, nothing on others; pictures without prediction count as missed."""
        self.per_picture = {}
        records = self._predictions
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(records)
            if not comm.is_main_process():
                return OrderedDict()
            records = list(itertools.chain.from_iterable(gathered))
        pictures = {self._check_picture(entry["image_id"])["id"]: entry["instances"] for entry in records}
        if missing := len(self._coco_api.imgs) - len(pictures):
            logger.warning("%d of %d pictures of the truth have no prediction", missing, len(self._coco_api.imgs))
        self._results: OrderedDict[str, dict[str, float]] = OrderedDict()
        self._evaluate_results(list(itertools.chain.from_iterable(pictures[key] for key in sorted(pictures))))
        return self._results

    def _check_picture(self, image_id: Any) -> dict[str, Any]:
        if image_id not in self._coco_api.imgs:
            raise ValueError(
                f"image_id {image_id!r} is not in the truth of {self._dataset_name}: "
                f"these predictions are of another data set"
            )
        return self._coco_api.imgs[image_id]

    def _evaluate_results(self, results: list[Result]) -> None:
        raise NotImplementedError

    def _evaluate_task(self, predictions: list[Result], task: str, category_ids: Sequence[int] | None = None) -> Any:
        settings: dict[str, Any] = {"max_dets": self._max_dets, "backend": self._backend}
        evaluation = evaluate_coco(self._coco_api, predictions, task, category_ids=category_ids, **settings)
        if task == self._tasks[0] and not self.per_picture:
            self.per_picture = picture_overlaps(evaluation)
        return evaluation

    def _write_predictions(self, predictions: list[Result], name: str) -> None:
        if self._output_dir:
            path = Path(self._output_dir) / f"coco_instances_results_{name}.json"
            write_json(path, predictions)
            logger.info("COCO results written to %s", path)


class AgnosticCOCOEvaluator(_InstanceEvaluator):
    """Class-agnostic instance AP and AR as CutLER reports them, and UnSAM's with ``max_dets=(1, 10, 100, 1000)``.

    CutLER's protocol is AP and AR at 100 detections per picture, UnSAM's both at 1000; one pass gives the two, as
    ``AP@100`` (also plain ``AP``), ``AP@1000``, ``AR@100``, ``AR@1000``. ``output_dir`` gets
    ``coco_instances_results_agnostic.json``, COCO's results format.

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

    def _evaluate_results(self, results: list[Result]) -> None:
        results = [{**entry, "category_id": 1} for entry in results]
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
    strategy behind (``AP_hungarian``, ``AR@100_majority``), AP and AR@100 of each class (``AP_hungarian-person``) and
    ``votes_hungarian-<split>``, which names the split of the fit. With the identity mapping the figures are those of
    the bare ``COCOEvaluator``. No prediction, no object and no annotations behave as there; without a single vote no
    pseudo-class has a class, so AP and AR are 0. Classes that no pseudo-class is mapped to count with 0.

    Categories of ``json_file`` that ``thing_dataset_id_to_contiguous_id`` leaves out (UVO's "other") are left out of
    votes, AP and AR; the log names them. ``output_dir`` gets ``coco_instances_results_<strategy>.json`` with the data
    set's category ids, and ``class_mapping_instance.json``.

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
        backend: str = DEFAULT_BACKEND,
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
        self._names = [self._coco_api.cats[category]["name"] for category in self._category_ids]
        self._given = None if mappings is None else check_mappings(mappings, num_clusters, self._names)
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

    def count_votes(self, results: list[Result]) -> NDArray[np.int64]:
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

    def _evaluate_results(self, results: list[Result]) -> None:
        if not self._do_evaluation:
            self._write_predictions(results, "pseudo_classes")
            logger.info("%s has no annotations: nothing to evaluate", self._dataset_name)
            return
        self.mappings = self._given or fit_mappings(
            self.count_votes(results), self._strategies, self._dataset_name, self._names
        )
        if self._output_dir:
            save_mappings(Path(self._output_dir) / "class_mapping_instance.json", self.mappings, self._names)
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

    def _task_figures(self, mapped: list[Result], task: str, mapping: ClassMapping) -> dict[str, float]:
        evaluation = self._evaluate_task(mapped, task, self._category_ids)
        figures = {f"{key}_{mapping.name}": value for key, value in coco_figures(evaluation).items()}
        for category, values in zip(evaluation.params.catIds, class_figures(evaluation), strict=True):
            label = self._coco_api.cats[category]["name"]
            figures.update({f"{key}_{mapping.name}-{label}": value for key, value in values.items()})
        return figures | mapping.provenance

    def _apply(self, mapping: ClassMapping, results: list[Result]) -> list[Result]:
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
        if not (known if contiguous is None else contiguous):
            raise ValueError(f"{self._dataset_name} has no class to map to, which class-aware evaluation needs")
        if contiguous is None:
            return known
        ordered = sorted(contiguous, key=contiguous.__getitem__)
        if missing := [category for category in ordered if category not in self._coco_api.cats]:
            raise ValueError(
                f"thing_dataset_id_to_contiguous_id of {self._dataset_name} names category ids {missing} that its "
                f"json_file does not list"
            )
        if others := [self._coco_api.cats[category]["name"] for category in known if category not in contiguous]:
            logger.info("%s: categories %s are left out of votes, AP and AR", self._dataset_name, others)
        return ordered
