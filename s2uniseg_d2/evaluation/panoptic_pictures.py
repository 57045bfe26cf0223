"""What panoptic quality needs of a predicted picture whatever its pseudo-classes are mapped to, and how it votes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .class_mapping import ClassMapping, load_mappings
from .quality import VOID, Overlaps

KINDS = ("things", "stuff")


class PanopticMapping(NamedTuple):
    """One strategy's mappings of thing pseudo-classes to thing classes and of stuff pseudo-classes to stuff classes."""

    things: ClassMapping
    stuff: ClassMapping


def load_panoptic_mappings(folder: str | Path) -> tuple[PanopticMapping, ...]:
    """Return the mappings that a panoptic evaluation left in ``folder``, for the evaluation of another split.

    Raises:
        ValueError: if a file is missing or no such file, or the two are of different strategies.
    """
    things, stuff = (load_mappings(Path(folder) / f"class_mapping_panoptic_{kind}.json") for kind in KINDS)
    names = [[mapping.name for mapping in kind] for kind in (things, stuff)]
    if names[0] != names[1]:
        raise ValueError(f"mappings of things and stuff in {folder} must be of the same strategies, got {names}")
    return tuple(PanopticMapping(*pair) for pair in zip(things, stuff, strict=True))


class Segment(NamedTuple):
    """A predicted segment."""

    id: int
    is_thing: bool
    pseudo_class: int


class PanopticPicture(NamedTuple):
    """A predicted picture: its segments and how they lie on the truth's."""

    image_id: Any
    segments: list[Segment]
    overlaps: Overlaps

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> PanopticPicture:
        """Return the picture of a record that :meth:`record` wrote."""
        overlaps = Overlaps(*(np.asarray(column, dtype=np.int64) for column in record["overlaps"]))
        return cls(record["image_id"], [Segment(*segment) for segment in record["segments"]], overlaps)

    def record(self) -> dict[str, Any]:
        """Return the picture as JSON holds it."""
        columns = [column.tolist() for column in self.overlaps]
        return {
            "image_id": self.image_id,
            "segments": [list(segment) for segment in self.segments],
            "overlaps": columns,
        }

    def areas(self) -> Counter[int]:
        """Return the pixels of every predicted id."""
        areas: Counter[int] = Counter()
        for p, pixels in zip(self.overlaps.predicted.tolist(), self.overlaps.pixels.tolist(), strict=True):
            areas[p] += pixels
        return areas

    def map(
        self, mapping: PanopticMapping, thing_ids: list[int], stuff_ids: list[int]
    ) -> tuple[list[dict[str, int]], dict[int, int]]:
        """Return the segments with category ids, and the id that every predicted id ends up with.

        Stuff segments of one category become one, under the id of the first; segments without a class become void.
        """
        new_id = {VOID: VOID}
        segments: list[dict[str, int]] = []
        stuff_of: dict[int, int] = {}  # the segment that stands for a stuff category
        for segment in self.segments:
            kind, ids = (mapping.things, thing_ids) if segment.is_thing else (mapping.stuff, stuff_ids)
            label = int(kind.assignment[segment.pseudo_class])
            if label < 0:
                new_id[segment.id] = VOID
                continue
            category = ids[label]
            if not segment.is_thing and category in stuff_of:
                new_id[segment.id] = stuff_of[category]
                continue
            new_id[segment.id] = segment.id
            segments.append({"id": segment.id, "category_id": category})
            if not segment.is_thing:
                stuff_of[category] = segment.id
        return segments, new_id


def add_pixel_votes(
    counts: NDArray[np.int64], overlaps: Overlaps, row_of: Mapping[int, int], column_of: Mapping[int, int]
) -> None:
    """Add CUPS's votes of one picture to ``(K, C)`` counts, one per pixel that two segments share.

    Args:
        counts: added to in place.
        overlaps: of the picture.
        row_of: pseudo-class of the predicted ids that vote.
        column_of: class of the true ids that are voted for.
    """
    for t, p, pixels in zip(*(ids.tolist() for ids in overlaps), strict=True):
        if t in column_of and p in row_of:
            counts[row_of[p], column_of[t]] += pixels


def add_mask_votes(
    counts: NDArray[np.int64],
    overlaps: Overlaps,
    row_of: Mapping[int, int],
    column_of: Mapping[int, int],
    *,
    min_iou: float,
    whole_classes: bool,
) -> None:
    """Add one vote for every pair of masks with an IoU above ``min_iou``.

    Args:
        counts: see :func:`add_pixel_votes`.
        overlaps: of the picture.
        row_of: see :func:`add_pixel_votes`.
        column_of: see :func:`add_pixel_votes`.
        min_iou: in [0, 1).
        whole_classes: a mask is all segments of a class in the picture, not a segment.
    """
    predicted_area: Counter[tuple[int, int]] = Counter()
    true_area: Counter[tuple[int, int]] = Counter()
    shared: Counter[tuple[tuple[int, int], tuple[int, int]]] = Counter()
    for t, p, pixels in zip(*(ids.tolist() for ids in overlaps), strict=True):
        predicted = (VOID if whole_classes else p, row_of[p]) if p in row_of else None
        true = (VOID if whole_classes else t, column_of[t]) if t in column_of else None
        if predicted:
            predicted_area[predicted] += pixels
        if true:
            true_area[true] += pixels
        if predicted and true:
            shared[predicted, true] += pixels
    for (predicted, true), pixels in shared.items():
        if pixels / (predicted_area[predicted] + true_area[true] - pixels) > min_iou:
            counts[predicted[1], true[1]] += 1
