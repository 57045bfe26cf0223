"""Masks of an annotation file as the labels of a training picture, in place of the teacher's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from s2uniseg_d2.core.labelers.region_embedding import token_shares
from s2uniseg_d2.core.ops.upscale import cells_of_pixels
from s2uniseg_d2.core.structures import PseudoLabels, PseudoMasks

from .pictures import PictureError
from .segmentation import decode_segmentation

KINDS = ("instance", "semantic")
# beside COCO's own keys: which of the two groups a mask belongs to, and the layer that made it
ANNOTATION_KEYS = ("kind", "level")
# pixels of the global view per cell of the labels
_CELL_PX = 4


class OfflineLabels(NamedTuple):
    """What an annotation file says about one picture.

    Attributes:
        labels: on the stride-4 grid of the global view, fine to coarse; their embeddings have the width 0, for only
            the teacher of the moment can tell them.
        dropped: how many masks were too small.
    """

    labels: PseudoLabels
    dropped: int


class OfflineLabelReader:
    """Brings the masks of a record to the grid on which the teacher labels.

    A cell belongs to a mask that holds at least half of its pixels, so that masks which ``masks_to_pixels`` wrote with
    "nearest" come back as they were, wherever the picture has a pixel in every cell. Crowd regions are left out, for
    they are no masks of anything; masks of fewer than ``min_tokens`` tokens are left out and counted.

    Args:
        min_tokens: smallest mask, in tokens of ``feature_stride`` pixels; at least 1.
        feature_stride: of the teacher's token grid, 4 or 16.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, *, min_tokens: int = 5, feature_stride: int = 4) -> None:
        if min_tokens < 1:
            raise ValueError(f"min_tokens must be at least 1, got {min_tokens}")
        if feature_stride not in (4, 16):
            raise ValueError(f"feature_stride must be 4 or 16, got {feature_stride}")
        self.min_tokens = min_tokens
        self.cells_per_token = feature_stride // _CELL_PX

    def __call__(self, record: Mapping[str, Any], size: tuple[int, int], view_size: tuple[int, int]) -> OfflineLabels:
        """Read the masks of one picture.

        Args:
            record: with ``annotations``, perhaps none, in Detectron2's form; ``kind`` ("instance" where absent) and
                ``level`` (0 where absent) of each are read.
            size: rows and columns of the picture.
            view_size: those of the global view.

        Raises:
            PictureError: if the picture has not the size that the record says.
        """
        expected = (record.get("height", size[0]), record.get("width", size[1]))
        if expected != size:
            raise PictureError(
                f"picture {record['file_name']} is {size[1]} x {size[0]} (EXIF rotation applied), but its labels are "
                f"made for {expected[1]} x {expected[0]}"
            )
        annotations = [entry for entry in record["annotations"] if not entry.get("iscrowd", 0)]
        # what the teacher gives is ordered fine to coarse; sorting is stable
        annotations.sort(key=lambda entry: entry.get("level", 0))
        cells = [_spans(view / _CELL_PX, side) for view, side in zip(view_size, size, strict=True)]
        dropped, kinds = 0, []
        for kind in KINDS:
            chosen = [entry for entry in annotations if entry.get("kind", KINDS[0]) == kind]
            masks = torch.zeros(len(chosen), *(len(span) for span in cells), dtype=torch.bool)
            for mask, entry in zip(masks, chosen, strict=True):
                pixels = decode_segmentation(entry["segmentation"], *size)
                mask[:] = torch.from_numpy(_fill_cells(pixels, *cells))
            level = torch.tensor([entry.get("level", 0) for entry in chosen], dtype=torch.int64)
            large = token_shares(masks, self.cells_per_token).flatten(1).sum(dim=1) >= self.min_tokens
            dropped += int((~large).sum())
            kinds.append(PseudoMasks(masks[large], torch.zeros(int(large.sum()), 0), level[large]))
        return OfflineLabels(PseudoLabels(*kinds), dropped)


def check_offline_records(names: Sequence[str], records: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """Check that records can be labels, before a run begins.

    Args:
        names: of the data sets, for messages.
        records: all of theirs.

    Returns:
        The number of masks of each kind.

    Raises:
        ValueError: if a record has no list of annotations, no record has any, or an annotation's ``kind``, ``level``
            or ``segmentation`` is not what :class:`OfflineLabelReader` takes.
    """
    where = ", ".join(names)
    without = [record["file_name"] for record in records if "annotations" not in record]
    if without:
        raise ValueError(
            f"INPUT.OFFLINE_LABELS needs data sets with annotations, such as coco:JSON:IMAGE_DIR; {len(without)} of "
            f"{len(records)} pictures of {where} have none listed: {without[0]}"
        )
    found: Counter[str] = Counter()
    for record in records:
        for entry in record["annotations"]:
            kind, level = entry.get("kind", KINDS[0]), entry.get("level", 0)
            if kind not in KINDS:
                raise ValueError(f"kind of an annotation must be one of {KINDS}, got {kind!r} in {record['file_name']}")
            if isinstance(level, bool) or not isinstance(level, int) or level < 0:
                raise ValueError(
                    f"level of an annotation must be a whole number from 0, got {level!r} in {record['file_name']}"
                )
            if not entry.get("segmentation"):
                raise ValueError(f"annotations must have a segmentation, got none in {record['file_name']}")
            found[kind] += 1
    if not found:
        raise ValueError(f"INPUT.OFFLINE_LABELS needs masks, got no annotation in {len(records)} pictures of {where}")
    return found


def _spans(valid: float, size: int) -> NDArray[np.int64]:
    """First pixel of every cell of one axis and the one after its last, ``(cells, 2)``.

    Where a picture is coarser than the grid, a cell without a pixel centre takes the pixel under its own centre.
    """
    cell = cells_of_pixels(valid, size).numpy()
    numbers = np.arange(int(np.ceil(valid)))
    spans = np.stack([np.searchsorted(cell, numbers), np.searchsorted(cell, numbers, side="right")], axis=1)
    bare = spans[:, 0] == spans[:, 1]
    under = np.minimum((numbers[bare] + 0.5) * size / valid, size - 1).astype(np.int64)
    spans[bare] = np.stack([under, under + 1], axis=1)
    return spans


def _fill_cells(pixels: NDArray[np.bool_], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which cells a mask holds at least half of."""
    # masks lie in memory column by column
    total = cv2.integral(pixels.T.view(np.uint8)).T
    covered = np.diff(np.diff(total[rows][..., columns], axis=-1)[..., 0], axis=1)[:, 0]
    whole = np.diff(rows) * np.diff(columns).T
    return np.asarray(2 * covered >= whole)
