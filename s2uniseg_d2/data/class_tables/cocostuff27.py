"""COCO-Stuff's 182 classes in the 27 coarse ones on which unsupervised semantic segmentation is scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NUM_FINE = 182
COCOSTUFF27_IGNORE = 255


class CoarseClass(NamedTuple):
    """One of the 27 classes.

    Attributes:
        name: unique; "food" and "furniture" exist as things and as stuff, so those four say which.
        supercategory: what COCO's annotation files call it.
        is_thing: whether its members are countable objects.
        fine_ids: COCO-Stuff's ids of its members, from 1. The eleven thing ids that COCO gave up are among them.
    """

    name: str
    supercategory: str
    is_thing: bool
    fine_ids: tuple[int, ...]


def _things(name: str, first: int, last: int, supercategory: str | None = None) -> CoarseClass:
    return CoarseClass(name, supercategory or name, True, tuple(range(first, last + 1)))


def _stuff(name: str, *fine_ids: int) -> CoarseClass:
    return CoarseClass(name, name, False, fine_ids)


# In the order of STEGO's class numbers (src/data.py, Coco), which PiCIE and IIC share; the members are those of
# COCO-Stuff's label hierarchy (https://github.com/nightrome/cocostuff).
COCOSTUFF27: tuple[CoarseClass, ...] = (
    _things("electronic", 72, 77),
    _things("appliance", 78, 83),
    _things("food-thing", 52, 61, "food"),
    _things("furniture-thing", 62, 71, "furniture"),
    _things("indoor", 84, 91),
    _things("kitchen", 44, 51),
    _things("accessory", 26, 33),
    _things("animal", 16, 25),
    _things("outdoor", 10, 15),
    _things("person", 1, 1),
    _things("sports", 34, 43),
    _things("vehicle", 2, 9),
    _stuff("ceiling", 102, 103),
    _stuff("floor", 101, 114, 115, 116, 117, 118),
    _stuff("food-stuff", 121, 122, 153, 170),
    _stuff("furniture-stuff", 98, 107, 108, 110, 112, 123, 130, 133, 156, 161, 165),
    _stuff("raw-material", 100, 132, 139, 143),
    _stuff("textile", 92, 93, 104, 105, 109, 131, 137, 141, 152, 167, 168),
    _stuff("wall", 171, 172, 173, 174, 175, 176, 177),
    _stuff("window", 180, 181),
    _stuff("building", 95, 96, 128, 151, 158, 166),
    _stuff("ground", 111, 125, 126, 136, 140, 144, 145, 147, 149, 154, 159),
    _stuff("plant", 94, 97, 119, 124, 129, 134, 142, 163, 169),
    _stuff("sky", 106, 157),
    _stuff("solid", 127, 135, 150, 160, 162, 182),
    _stuff("structural", 99, 113, 138, 146, 164),
    _stuff("water", 120, 148, 155, 178, 179),
)
COCOSTUFF27_CLASSES: tuple[str, ...] = tuple(coarse.name for coarse in COCOSTUFF27)


def cocostuff27_lookup(classes: Sequence[CoarseClass] = COCOSTUFF27) -> NDArray[np.uint8]:
    """Return the ``(256,)`` table from a value in ``stuffthingmaps`` to a class number, 255 where there is none.

    Those PNGs hold COCO-Stuff's id minus 1, and 255 for pixels without a label.

    Raises:
        ValueError: unless every id from 1 to 182 is in exactly one class.
    """
    uses = Counter(fine for coarse in classes for fine in coarse.fine_ids)
    if faulty := sorted(fine for fine in {*uses, *range(1, NUM_FINE + 1)} if uses[fine] != 1 or fine > NUM_FINE):
        raise ValueError(f"each id from 1 to {NUM_FINE} must be in exactly one class, which is not so for {faulty}")
    lookup = np.full(256, COCOSTUFF27_IGNORE, dtype=np.uint8)
    for number, coarse in enumerate(classes):
        lookup[np.asarray(coarse.fine_ids) - 1] = number
    return lookup
