"""AP and AR of COCO-format predictions, through pycocotools or faster-coco-eval."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_coding
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

logger = logging.getLogger(__name__)

BACKENDS = ("faster_coco_eval", "pycocotools")
DEFAULT_BACKEND = "faster_coco_eval"
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
    backend: str = DEFAULT_BACKEND,
    category_ids: Sequence[int] | None = None,
) -> Any:
    """Return an accumulated ``COCOeval`` of either library, with ``eval["precision"]`` and ``eval["recall"]``.

    All limits of ``max_dets`` come from one matching pass. Ties in the score keep the order of ``predictions``.

    Args:
        truth: the annotations, as :func:`complete_truth` leaves them.
        predictions: COCO results with ``image_id``, ``category_id``, ``score`` and ``segmentation`` or ``bbox``; left
            as they are. May be empty: recall and precision are then 0 where there is truth.
        iou_type: "segm" or "bbox".
        max_dets: increasing limits on detections per picture and class, 100 among them.
        backend: "faster_coco_eval", or "pycocotools" for the same figures (to 1e-12) later.
        category_ids: the categories that count; None is all.

    Raises:
        ValueError: if ``iou_type``, ``max_dets`` or ``backend`` is unknown, or a prediction names a picture or category
            that the truth does not list.
    """
    if iou_type not in ("segm", "bbox"):
        raise ValueError(f"iou_type must be 'segm' or 'bbox', got {iou_type!r}")
    limits = list(check_max_dets(max_dets))
    evaluator = _evaluator(backend)
    for name, known in (("image_id", truth.imgs), ("category_id", truth.cats)):
        if unknown := {entry[name] for entry in predictions} - known.keys():
            raise ValueError(f"predictions must be of the truth's pictures and categories, got {name} {min(unknown)!r}")
    with stdout_in_log():
        evaluation = evaluator(truth, _index_results(truth, predictions, iou_type), iou_type)
        evaluation.params.maxDets = limits
        if category_ids is not None:
            evaluation.params.catIds = sorted(category_ids)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def coco_figures(evaluation: Any) -> dict[str, float]:
    """Return AP, AP50, AP75, APs/m/l, AR@n for every limit n, and ARs/m/l@100, in percent, of an accumulated COCOeval.

    The AP columns stand at 100 detections, COCO's and CutLER's limit. Where a limit above 100 makes a second reading
    (UnSAM's protocol is n = 1000), all of them are given again under the name of their limit, ``AP@100`` and
    ``AP@1000``, and so on. nan where there is no truth in the area range.
    """
    figures: dict[str, float] = {}
    limits = list(evaluation.params.maxDets)
    precision, recall = np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])
    readings = [(limits.index(REFERENCE_MAX_DETS), "")]
    if limits[-1] > REFERENCE_MAX_DETS:
        readings += [(index, f"@{limit}") for index, limit in enumerate(limits) if limit >= REFERENCE_MAX_DETS]
    for index, suffix in readings:
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


def class_figures(evaluation: Any) -> list[dict[str, float]]:
    """Return AP and AR@100 of every class in percent, in the order of ``evaluation.params.catIds``."""
    index = list(evaluation.params.maxDets).index(REFERENCE_MAX_DETS)
    precision, recall = np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])
    return [
        {
            "AP": _percent(precision[:, :, k, 0, index]),
            f"AR@{REFERENCE_MAX_DETS}": _percent(recall[:, k, 0, index]),
        }
        for k in range(precision.shape[2])
    ]


def picture_overlaps(evaluation: Any) -> dict[int, float]:
    """Return for every picture the mean, over its objects, of the best IoU that a prediction of the class has with it.

    In [0, 1]. Crowd regions are no objects; a picture without an object is left out. Of more predictions than the last
    limit on detections, those of the highest score count.
    """
    flags: dict[tuple[int, int], list[bool]] = defaultdict(list)
    counted = set(evaluation.params.catIds)
    for entry in evaluation.cocoGt.dataset.get("annotations", []):
        if entry["category_id"] in counted:
            flags[entry["image_id"], entry["category_id"]].append(not entry["iscrowd"])
    best: dict[int, list[float]] = defaultdict(list)
    for (image_id, category_id), is_object in flags.items():
        overlaps = np.asarray(evaluation.ious[image_id, category_id], dtype=np.float64)
        highest = overlaps.max(axis=0) if overlaps.size else np.zeros(len(is_object))
        best[image_id].extend(highest[np.asarray(is_object)].tolist())
    return {image_id: float(np.mean(values)) for image_id, values in sorted(best.items()) if values}


def complete_truth(truth: COCO, iou_types: Sequence[str], source: str) -> None:
    """Fill in, in memory, what COCOeval needs and hand-made files leave out: ``iscrowd`` 0, ``area`` of mask or box.

    The annotations' own ``area`` decides between small, medium and large, as in COCO. Annotation ids that are
    repeated or 0 are numbered anew: COCOeval reads id 0 as "not matched".

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


def _index_results(truth: COCO, predictions: Sequence[dict[str, Any]], iou_type: str) -> COCO:
    """What ``truth.loadRes`` returns, also for no predictions at all, and with all areas measured in few calls."""
    # of a result with mask and box, loadRes would take the area, hence small/medium/large, from the box
    geometry = "segmentation" if iou_type == "segm" else "bbox"
    shapes = [entry[geometry] for entry in predictions]
    if iou_type == "segm":
        # pycocotools 2.0.11 counts the masks of one call in a uint8
        parts = (shapes[start : start + 255] for start in range(0, len(shapes), 255))
        areas = [area for part in parts for area in mask_coding.area(part).tolist()]
    else:
        areas = [width * height for _, _, width, height in shapes]
    results = COCO()
    results.dataset = {key: truth.dataset.get(key, []) for key in ("images", "categories")}
    results.dataset["annotations"] = [
        {
            "id": number,
            "image_id": entry["image_id"],
            "category_id": entry["category_id"],
            "score": entry["score"],
            geometry: shape,
            "area": area,
            "iscrowd": 0,
        }
        for number, (entry, shape, area) in enumerate(zip(predictions, shapes, areas, strict=True), start=1)
    ]
    results.createIndex()
    return results


def _percent(values: NDArray[np.floating]) -> float:
    """Mean in percent without COCOeval's -1, which stands where there is no truth; nan if nothing is left."""
    defined = values[values > -1]
    return 100.0 * float(np.mean(defined)) if defined.size else float("nan")
