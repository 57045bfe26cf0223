"""COCO's ways to write a mask, as pixels."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_coding

_LETTERS = frozenset(map(chr, range(48, 112)))  # of compressed run lengths


def segmentation_fault(segmentation: Any, height: int, width: int) -> str | None:
    """What keeps a segmentation from being a mask of a picture; None if nothing does.

    pycocotools counts in C without looking: a polygon that runs far out of the picture would take all memory.
    """
    if isinstance(segmentation, list):
        return next((fault for polygon in segmentation if (fault := _polygon_fault(polygon, height, width))), None)
    if not isinstance(segmentation, dict) or "counts" not in segmentation:
        return "neither polygons nor run lengths"
    size, counts = segmentation.get("size"), segmentation["counts"]
    if not isinstance(size, (list, tuple)) or list(size) != [height, width]:
        return f"{str(size)[:60]}"
    if isinstance(counts, list):
        is_counted = all(isinstance(run, int) and run >= 0 for run in counts) and sum(counts) == height * width
        return None if is_counted else "run lengths that are not whole numbers for each pixel of the picture"
    text = counts.decode("latin1") if isinstance(counts, bytes) else counts
    return None if isinstance(text, str) and _LETTERS.issuperset(text) else "run lengths with foreign letters"


def _covers(counts: str | bytes, pixels: int) -> bool:
    """Whether compressed run lengths are of so many pixels; pycocotools leaves those that are missing unset."""
    data = counts.encode() if isinstance(counts, str) else counts
    codes = np.frombuffer(data, dtype=np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((codes & 32) == 0)  # of each number's letters, five bits each, the lowest first
    if not len(ends) or ends[-1] != len(codes) - 1:
        return False
    lengths = np.diff(ends, prepend=-1)
    if lengths.max() > 8:
        return False
    starts = ends - lengths + 1
    place = np.arange(len(codes)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 31) << 5 * place, starts)
    runs -= np.where(codes[ends] & 16, 1 << 5 * lengths, 0)
    # from the fourth on a number is the difference to the last but one
    runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])
    return bool((runs >= 0).all() and runs.sum() == pixels)


def _polygon_fault(polygon: Any, height: int, width: int) -> str | None:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        return "a polygon without at least 3 points"
    try:
        numbers = np.array(polygon)
    except ValueError:  # lists in it
        return "a polygon that is not of numbers"
    if numbers.dtype.kind not in "iuf" or numbers.ndim != 1:
        return "a polygon that is not of numbers"
    reach = max(height, width)
    return None if np.all(np.abs(numbers) <= 2.0 * reach) else f"a polygon beyond {2 * reach} pixels"


def decode_segmentation(segmentation: Any, height: int, width: int) -> NDArray[np.bool_]:
    """The mask of a COCO annotation.

    Args:
        segmentation: polygons, or run lengths, compressed or not.
        height: rows of the picture.
        width: columns of the picture.

    Returns:
        ``(height, width)`` bool, column by column in memory as run lengths are.

    Raises:
        ValueError: if run lengths are of another size than the picture, or there is no mask in it.
    """
    if fault := segmentation_fault(segmentation, height, width):
        raise ValueError(f"segmentation must be of the picture's size {[height, width]}, got {fault}")
    if isinstance(segmentation, list):
        segmentation = mask_coding.merge(mask_coding.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = mask_coding.frPyObjects(segmentation, height, width)
    if not _covers(segmentation["counts"], height * width):
        raise ValueError(f"segmentation must hold runs for each pixel of {[height, width]}, got others")
    with warnings.catch_warnings():
        # pycocotools 2.0.11 asks for an array in a way that numpy 2 deprecates
        warnings.simplefilter("ignore", DeprecationWarning)
        return np.asarray(mask_coding.decode(segmentation)).view(bool)
