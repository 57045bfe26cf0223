"""COCO's compressed run lengths, straight from the token grid.

Axes: n masks, h and w rows and columns of cells, H and W those of the picture in pixels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_coding

Integers = NDArray[np.int64]

_CHUNK_CELLS = 2**24  # bool cells held at a time
_LETTER_BITS = 5  # a letter holds five bits of a run and one that says whether more follow


class RunLengths(NamedTuple):
    """Masks as COCO writes them.

    Attributes:
        counts: one text per mask; empty masks have one too.
        areas: ``(n,)`` int64 pixels.
        boxes: ``(n, 4)`` int64 x, y, width, height in pixels; zeros for an empty mask.
    """

    counts: list[str]
    areas: Integers
    boxes: Integers

    def segmentation(self, index: int, size: tuple[int, int]) -> dict[str, Any]:
        """The ``segmentation`` of one mask of a picture of ``size`` = (rows, columns)."""
        return {"size": list(size), "counts": self.counts[index]}


def encode_cells(masks: NDArray[np.bool_], rows: Integers, columns: Integers) -> RunLengths:
    """The run lengths of masks whose pixel (y, x) has the value of cell (``rows[y]``, ``columns[x]``).

    The masks are never laid out in pixels: a run begins where the cells along a column of pixels change. Equal to
    pycocotools' ``encode`` of the pixels, letter by letter.

    Args:
        masks: ``(n, h, w)`` bool.
        rows: ``(H,)`` cell of every row of pixels, not decreasing.
        columns: ``(W,)`` the same for columns.
    """
    row_cells, tops = np.unique(rows, return_index=True)
    column_cells, lefts = np.unique(columns, return_index=True)
    heights = np.diff(tops, append=len(rows))
    widths = np.diff(lefts, append=len(columns))
    # COCO counts down the columns
    upright = masks[:, row_cells[:, None], column_cells].transpose(0, 2, 1)
    counts: list[str] = []
    step = max(1, _CHUNK_CELLS // (len(row_cells) * len(columns)))
    for start in range(0, len(masks), step):
        counts += _encode_columns(np.repeat(upright[start : start + step], widths, axis=1), tops, len(rows))
    areas = (upright @ heights.astype(np.float64)) @ widths.astype(np.float64)
    y, bottom = _extent(upright, 1, tops, tops + heights)
    x, right = _extent(upright, 2, lefts, lefts + widths)
    return RunLengths(counts, areas.astype(np.int64), np.stack([x, y, right - x, bottom - y], axis=1))


def encode_pixels(masks: NDArray[np.bool_]) -> RunLengths:
    """The run lengths of masks ``(n, H, W)`` bool at the picture's size."""
    upright = np.ascontiguousarray(masks.transpose(0, 2, 1)).view(np.uint8)
    coded = mask_coding.encode(upright.transpose(2, 1, 0))
    return RunLengths(
        [item["counts"].decode("ascii") for item in coded],
        masks.sum(axis=(1, 2), dtype=np.int64),
        mask_coding.toBbox(coded).astype(np.int64).reshape(-1, 4),
    )


def _encode_columns(cells: NDArray[np.bool_], tops: Integers, height: int) -> list[str]:
    """Texts of ``(n, W, h)`` columns whose cell i begins at pixel ``tops[i]`` of ``height``."""
    n, width, rows = cells.shape
    line = np.zeros((n, width * rows + 1), dtype=bool)  # COCO begins with a run of zeros
    line[:, 1:] = cells.reshape(n, -1)
    # a step from one mask to the next, at the place before its first cell, is none
    flat = line.reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    mask, place = np.divmod(changes, width * rows + 1)
    mask, place = mask[place > 0], place[place > 0] - 1
    place = place // rows * height + tops[place % rows]
    runs_of_mask = np.bincount(mask, minlength=n) + 1
    last = np.cumsum(runs_of_mask) - 1
    is_last = np.zeros(last[-1] + 1, dtype=bool)
    is_last[last] = True
    ends = np.empty(len(is_last), dtype=np.int64)
    ends[~is_last], ends[is_last] = place, width * height
    runs = np.diff(ends, prepend=0)
    first = last - runs_of_mask + 1
    runs[first] = ends[first]
    # from its fourth run on, COCO writes how much longer a run is than the last one of its value
    number = np.arange(len(runs)) - np.repeat(first, runs_of_mask)
    values = runs.copy()
    values[2:][number[2:] > 2] -= runs[:-2][number[2:] > 2]
    return _spell(values, last)


def _spell(values: Integers, last: Integers) -> list[str]:
    """Signed numbers in letters, lowest five bits first; ``last`` is the place of each text's final number."""
    letters, used = [], []
    rest, going = values, np.ones(len(values), dtype=bool)
    while going.any():
        low, rest = rest & (2**_LETTER_BITS - 1), rest >> _LETTER_BITS
        more = going & (rest != np.where(low & 2 ** (_LETTER_BITS - 1), -1, 0))
        letters.append((low + 2**_LETTER_BITS * more + ord("0")).astype(np.uint8))
        used.append(going)
        going = more
    kept = np.stack(used, axis=1)
    text = np.stack(letters, axis=1)[kept].tobytes().decode("ascii")
    ends = np.cumsum(kept.sum(axis=1))[last].tolist()
    return [text[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _extent(cells: NDArray[np.bool_], axis: int, starts: Integers, ends: Integers) -> tuple[Integers, Integers]:
    """First pixel of the first cell that is not empty along ``axis`` and end of the last; zeros where all are."""
    occupied = np.asarray(cells.any(axis=axis))
    some = occupied.any(axis=1)
    first = starts[occupied.argmax(axis=1)]
    last = ends[occupied.shape[1] - 1 - occupied[:, ::-1].argmax(axis=1)]
    return first * some, last * some
