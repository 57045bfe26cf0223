"""Panoptic quality by the rules of panopticapi, from id maps or from tables of overlaps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

VOID = 0
_ID_LIMIT = 1 << 31  # two ids make one int64 key


class Overlaps(NamedTuple):
    """Which segment of the truth meets which of the prediction, and on how many pixels; parallel ``(n,)`` vectors.

    Attributes:
        truth: segment ids, 0 = void.
        predicted: segment ids, 0 = void.
        pixels: how many pixels carry both, at least 1. Every pixel of the picture is counted once.
    """

    truth: NDArray[np.int64]
    predicted: NDArray[np.int64]
    pixels: NDArray[np.int64]


def measure_overlaps(predicted_map: NDArray[np.integer], truth_map: NDArray[np.integer]) -> Overlaps:
    """Return the overlaps of two ``(H, W)`` maps of segment ids in [0, 2^31).

    Raises:
        ValueError: if the sizes differ or an id is out of range.
    """
    if predicted_map.shape != truth_map.shape:
        raise ValueError(f"predicted_map must have the truth's size {truth_map.shape}, got {predicted_map.shape}")
    for name, ids in (("predicted_map", predicted_map), ("truth_map", truth_map)):
        if ids.size and not (ids.min() >= 0 and ids.max() < _ID_LIMIT):
            raise ValueError(f"{name} must hold ids in [0, 2^31), got {ids.min()} to {ids.max()}")
    keys = truth_map.astype(np.int64) * _ID_LIMIT + predicted_map.astype(np.int64)
    pairs, pixels = np.unique(keys, return_counts=True)
    return Overlaps(pairs // _ID_LIMIT, pairs % _ID_LIMIT, pixels.astype(np.int64))


@dataclass
class CategoryCounts:
    """What the pictures so far add up to for one category: matched pairs, their summed IoU, misses of both kinds."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    iou: float = 0.0

    @property
    def pq(self) -> float:
        """Panoptic quality in [0, 1], 0 if nothing was counted."""
        return self.iou / self._weight if self._weight else 0.0

    @property
    def sq(self) -> float:
        """Mean IoU of the matched pairs in [0, 1], 0 if there is none."""
        return self.iou / self.tp if self.tp else 0.0

    @property
    def rq(self) -> float:
        """F1 score of the matching in [0, 1], 0 if nothing was counted."""
        return self.tp / self._weight if self._weight else 0.0

    @property
    def _weight(self) -> float:
        return self.tp + 0.5 * self.fp + 0.5 * self.fn


class QualitySummary(NamedTuple):
    """Means over the categories that were counted, in [0, 1]; nan if ``categories``, their number, is 0."""

    pq: float
    sq: float
    rq: float
    categories: int


@dataclass
class PanopticStats:
    """Counts per category id, added up over pictures."""

    counts: dict[int, CategoryCounts] = field(default_factory=dict)

    def of(self, category: int) -> CategoryCounts:
        """Return the counts of a category to add to."""
        return self.counts.setdefault(category, CategoryCounts())

    def add(self, other: PanopticStats) -> None:
        """Add another picture's or process's counts."""
        for category, more in other.counts.items():
            mine = self.of(category)
            mine.tp, mine.fp, mine.fn = mine.tp + more.tp, mine.fp + more.fp, mine.fn + more.fn
            mine.iou += more.iou

    def summary(self, categories: Iterable[int] | None = None) -> QualitySummary:
        """Return the means over those of ``categories`` (all by default) with TP + FP + FN > 0."""
        chosen = self.counts if categories is None else set(categories)
        counted = [c for name, c in sorted(self.counts.items()) if name in chosen and c.tp + c.fp + c.fn]
        n = len(counted)
        if n == 0:
            return QualitySummary(float("nan"), float("nan"), float("nan"), 0)
        return QualitySummary(
            pq=sum(c.pq for c in counted) / n,
            sq=sum(c.sq for c in counted) / n,
            rq=sum(c.rq for c in counted) / n,
            categories=n,
        )


def panoptic_quality(
    predicted_map: NDArray[np.integer],
    predicted_segments: Sequence[Mapping[str, Any]],
    truth_map: NDArray[np.integer],
    truth_segments: Sequence[Mapping[str, Any]],
    categories: Iterable[int],
) -> PanopticStats:
    """Return the counts of one picture.

    Kirillov et al. 2019 (arXiv 1801.00868) with the rules of panopticapi: a pair of one category matches if its IoU is
    above 0.5, where pixels of the prediction on void do not count to the union; crowd segments are neither matched nor
    missed; a prediction that is unmatched is no mistake if more than half of it lies on void or on the crowd segment
    of its category (the last one listed, should there be several). Void in the prediction is part of no segment and
    has no such favour.

    Args:
        predicted_map: ``(H, W)`` segment ids, 0 = void.
        predicted_segments: ``id`` and ``category_id`` of every id in the map.
        truth_map: ``(H, W)`` segment ids, 0 = void; an id that is not listed is neither void nor a segment.
        truth_segments: ``id``, ``category_id`` and perhaps ``iscrowd`` (0) and ``area`` (the map's pixels) of each.
        categories: all category ids there are.

    Raises:
        ValueError: if sizes differ, an id of the prediction is not listed or listed without a pixel, an id is listed
            twice or is 0, or a category is unknown.
    """
    return quality_of_overlaps(
        measure_overlaps(predicted_map, truth_map), predicted_segments, truth_segments, categories
    )


def quality_of_overlaps(
    overlaps: Overlaps,
    predicted_segments: Sequence[Mapping[str, Any]],
    truth_segments: Sequence[Mapping[str, Any]],
    categories: Iterable[int],
) -> PanopticStats:
    """Return the same as :func:`panoptic_quality` from the overlaps of the maps."""
    tables = _Tables.of(overlaps)
    known = set(categories)
    predicted = _index_segments(predicted_segments, known, "predicted_segments")
    truth = _index_segments(truth_segments, known, "truth_segments")
    if unlisted := tables.predicted_area.keys() - predicted.keys() - {VOID}:
        raise ValueError(f"predicted_segments must list every id of the map, got none for {sorted(unlisted)}")
    if absent := predicted.keys() - tables.predicted_area.keys():
        raise ValueError(f"predicted_segments must have pixels in the map, got none for {sorted(absent)}")

    stats = PanopticStats()
    found, hits = _match(tables, predicted, truth, stats)
    crowd_of: dict[int, int] = {}
    for t, segment in truth.items():
        if segment.get("iscrowd", 0):
            crowd_of[segment["category_id"]] = t
        elif t not in found:
            stats.of(segment["category_id"]).fn += 1
    for p in predicted.keys() - hits:
        category = predicted[p]["category_id"]
        excused = tables.shared.get((VOID, p), 0)
        if category in crowd_of:
            excused += tables.shared.get((crowd_of[category], p), 0)
        if excused / tables.predicted_area[p] <= 0.5:
            stats.of(category).fp += 1
    return stats


class _Tables(NamedTuple):
    """Overlaps by (truth, predicted) id and areas by id, in pixels."""

    shared: dict[tuple[int, int], int]
    truth_area: dict[int, int]
    predicted_area: dict[int, int]

    @classmethod
    def of(cls, overlaps: Overlaps) -> _Tables:
        tables = cls({}, {}, {})
        # ids may repeat: segments that were merged share one
        for t, p, pixels in zip(*(column.tolist() for column in overlaps), strict=True):
            tables.shared[t, p] = tables.shared.get((t, p), 0) + pixels
            tables.truth_area[t] = tables.truth_area.get(t, 0) + pixels
            tables.predicted_area[p] = tables.predicted_area.get(p, 0) + pixels
        return tables


def _match(
    tables: _Tables,
    predicted: dict[int, Mapping[str, Any]],
    truth: dict[int, Mapping[str, Any]],
    stats: PanopticStats,
) -> tuple[set[int], set[int]]:
    """Count the true positives into ``stats``; return the matched ids of truth and prediction, each in one pair."""
    found: set[int] = set()
    hits: set[int] = set()
    for (t, p), pixels in tables.shared.items():
        if t not in truth or p not in predicted or truth[t].get("iscrowd", 0):
            continue
        category = truth[t]["category_id"]
        if category != predicted[p]["category_id"]:
            continue
        area = truth[t].get("area") or tables.truth_area[t]
        iou = pixels / (tables.predicted_area[p] - tables.shared.get((VOID, p), 0) + area - pixels)
        if iou > 0.5:
            found.add(t)
            hits.add(p)
            counts = stats.of(category)
            counts.tp += 1
            counts.iou += iou
    return found, hits


def _index_segments(
    segments: Sequence[Mapping[str, Any]], categories: set[int], name: str
) -> dict[int, Mapping[str, Any]]:
    indexed = {int(segment["id"]): segment for segment in segments}
    if len(indexed) != len(segments) or VOID in indexed:
        raise ValueError(f"{name} must have different ids other than 0, got {[s['id'] for s in segments]}")
    if unknown := {segment["category_id"] for segment in segments} - categories:
        raise ValueError(f"{name} must be of known categories, got {sorted(unknown)}")
    return indexed
