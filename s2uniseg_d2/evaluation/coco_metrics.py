"""AP and AR of COCO-format predictions, through pycocotools or faster-coco-eval."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_coding
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

logger = logging.getLogger(__name__)

BACKENDS = ("pycocotools", "faster_coco_eval")
REFERENCE_MAX_DETS = 100  # the limit that COCO's plain "AP" means
AREAS = ("", "s", "m", "l")  # suffixes, in the order of COCOeval's area ranges: all, small, medium, large


class _LogStream(io.TextIOBase):
    """A text stream whose lines become debug messages."""

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if line.strip():
                logger.debug(line.rstrip())
        return len(text)


@contextlib.contextmanager
def stdout_in_log() -> Iterator[None]:
    """Send what a library prints to the log, at debug level."""
    with contextlib.redirect_stdout(_LogStream()):
        yield


def check_max_dets(max_dets: Sequence[int]) -> tuple[int, ...]:
    """Return the limits on detections per picture as a tuple.

    Raises:
        ValueError: if they are not increasing positive integers with 100 among them.
    """
    limits = tuple(max_dets)
    increasing = all(low < high for low, high in itertools.pairwise(limits))
    if not increasing or any(limit < 1 for limit in limits) or REFERENCE_MAX_DETS not in limits:
        raise ValueError(f"max_dets must increase strictly, be positive and contain {REFERENCE_MAX_DETS}, got {limits}")
    return limits


def evaluate_coco(
    truth: COCO,
    predictions: Sequence[dict[str, Any]],
    iou_type: str,
    *,
    max_dets: Sequence[int] = (1, 10, 100),
    backend: str = "pycocotools",
) -> Any:
    """Return an accumulated ``COCOeval`` of either library, with ``eval["precision"]`` and ``eval["recall"]``.

    All limits of ``max_dets`` come from one matching pass. Ties in the score keep the order of ``predictions``.

    Args:
        truth: the annotations.
        predictions: COCO results with ``image_id``, ``category_id``, ``score`` and ``segmentation`` or ``bbox``; left
            as they are. May be empty: recall and precision are then 0 where there is truth.
        iou_type: "segm" or "bbox".
        max_dets: increasing limits on detections per picture and class, 100 among them.
        backend: "pycocotools", or "faster_coco_eval" for the same figures sooner.

    Raises:
        ValueError: if ``iou_type``, ``max_dets`` or ``backend`` is unknown.
    """
    if iou_type not in ("segm", "bbox"):
        raise ValueError(f"iou_type must be 'segm' or 'bbox', got {iou_type!r}")
    geometry = "segmentation" if iou_type == "segm" else "bbox"
    # a result with both would have its area, hence small/medium/large, taken from the box
    results = [{key: entry[key] for key in ("image_id", "category_id", "score", geometry)} for entry in predictions]
    limits = list(check_max_dets(max_dets))
    with stdout_in_log():
        evaluation = _evaluator(backend)(truth, _load_results(truth, results), iou_type)
        evaluation.params.maxDets = limits
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def coco_figures(evaluation: Any) -> dict[str, float]:
    """Return AP, AP50, AP75, APs/m/l, AR@n for every limit n, and ARs/m/l@100, in percent, of an accumulated COCOeval.

    The AP columns stand at 100 detections, COCO's and CutLER's limit; a limit above 100 adds them again as ``AP@n``,
    ``AP50@n``, ... (UnSAM's protocol is n = 1000). nan where there is no truth in the area range.
    """
    figures: dict[str, float] = {}
    limits = list(evaluation.params.maxDets)
    precision, recall = np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])
    for index, limit in enumerate(limits):
        if limit < REFERENCE_MAX_DETS:
            continue
        suffix = "" if limit == REFERENCE_MAX_DETS else f"@{limit}"
        for name, iou in (("AP", None), ("AP50", 0.5), ("AP75", 0.75)):
            rows = slice(None) if iou is None else np.isclose(evaluation.params.iouThrs, iou)
            figures[name + suffix] = _percent(precision[rows][..., 0, index])
        for area, letter in list(enumerate(AREAS))[1:]:
            figures[f"AP{letter}{suffix}"] = _percent(precision[..., area, index])
    for index, limit in enumerate(limits):
        for area, letter in enumerate(AREAS):
            if area == 0 or limit >= REFERENCE_MAX_DETS:
                figures[f"AR{letter}@{limit}"] = _percent(recall[..., area, index])
    return figures


def class_figures(evaluation: Any) -> list[float]:
    """Return the AP at 100 detections of every class in percent, in the order of ``evaluation.params.catIds``."""
    index = list(evaluation.params.maxDets).index(REFERENCE_MAX_DETS)
    precision = np.asarray(evaluation.eval["precision"])
    return [_percent(precision[:, :, k, 0, index]) for k in range(precision.shape[2])]


def complete_truth(truth: COCO, iou_types: Sequence[str], source: str) -> None:
    """Fill in, in memory, what COCOeval needs and hand-made files leave out: ``iscrowd`` 0, ``area`` of mask or box.

    Annotation ids that are repeated or 0 are numbered anew: COCOeval reads id 0 as "not matched".

    Raises:
        ValueError: if an annotation has no mask (or no box) although ``iou_types`` asks for it, or names a picture or
            category that the file does not list.
    """
    annotations = truth.dataset.get("annotations", [])
    categories = {category["id"] for category in truth.dataset.get("categories", [])}
    sizes = {image["id"] for image in truth.dataset.get("images", []) if "height" in image and "width" in image}
    for entry in annotations:
        name = f"annotation {entry['id']} of {source}"
        for iou_type, key in (("segm", "segmentation"), ("bbox", "bbox")):
            if iou_type in iou_types and not entry.get(key):
                raise ValueError(f"{name} has no {key}, which {iou_type} evaluation needs")
        if entry.get("category_id") not in categories:
            raise ValueError(f"{name} has category_id {entry.get('category_id')}, which the file does not list")
        if entry.get("image_id") not in sizes:
            raise ValueError(f"{name} has image_id {entry.get('image_id')}, which the file does not list with its size")
        entry.setdefault("iscrowd", 0)
        if "area" not in entry:
            has_mask = bool(entry.get("segmentation"))
            entry["area"] = (
                float(mask_coding.area(truth.annToRLE(entry))) if has_mask else entry["bbox"][2] * entry["bbox"][3]
            )
    ids = [entry["id"] for entry in annotations]
    if 0 in ids or len(set(ids)) != len(ids):
        logger.warning("%s has annotation ids that are repeated or 0; they were numbered anew", source)
        for number, entry in enumerate(annotations, start=1):
            entry["id"] = number
    with stdout_in_log():
        truth.createIndex()


def _evaluator(backend: str) -> Any:
    if backend == "pycocotools":
        return COCOeval
    if backend == "faster_coco_eval":
        try:
            from faster_coco_eval import COCOeval_faster
        except ImportError as error:
            raise ValueError("backend 'faster_coco_eval' needs the package faster-coco-eval") from error
        return COCOeval_faster
    raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")


def _load_results(truth: COCO, results: list[dict[str, Any]]) -> COCO:
    if results:
        return truth.loadRes(results)
    # loadRes reads the first result to learn the type, so no results need a table of their own
    empty = COCO()
    empty.dataset = {key: truth.dataset.get(key, []) for key in ("images", "categories")} | {"annotations": []}
    empty.createIndex()
    return empty


def _percent(values: NDArray[np.floating]) -> float:
    """Mean in percent without COCOeval's -1, which stands where there is no truth; nan if nothing is left."""
    defined = values[values > -1]
    return 100.0 * float(np.mean(defined)) if defined.size else float("nan")
