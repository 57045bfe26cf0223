"""Cityscapes' labels: the 19 of its benchmark, and the 27 that unsupervised methods are scored on."""

from __future__ import annotations

from typing import NamedTuple


class CityscapesLabel(NamedTuple):
    """One label.

    Attributes:
        id: value in ``*_labelIds.png``; ``*_instanceIds.png`` holds 1000 times it plus a number for single objects.
        name: as in Cityscapes' own scripts.
        is_thing: whether single objects are told apart.
        is_scored: whether it is one of the benchmark's 19.
    """

    id: int
    name: str
    is_thing: bool
    is_scored: bool


_UNSCORED = frozenset({"parking", "rail track", "guard rail", "bridge", "tunnel", "polegroup", "caravan", "trailer"})
_FIRST_ID, _FIRST_THING = 7, 24  # labels below 7 (ego vehicle, static, ground, ...) are void everywhere
# fmt: off
_NAMES = (
    "road", "sidewalk", "parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel", "pole",
    "polegroup", "traffic light", "traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car", "truck",
    "bus", "caravan", "trailer", "train", "motorcycle", "bicycle",
)
# fmt: on
# https://github.com/mcordts/cityscapesScripts, cityscapesscripts/helpers/labels.py
CITYSCAPES_LABELS: tuple[CityscapesLabel, ...] = tuple(
    CityscapesLabel(number, name, number >= _FIRST_THING, name not in _UNSCORED)
    for number, name in enumerate(_NAMES, start=_FIRST_ID)
)


def cityscapes_labels(num_classes: int) -> tuple[CityscapesLabel, ...]:
    """Return the labels scored among 19 (8 things, 11 stuff) or 27 classes (10 and 17, CUPS's and STEGO's).

    Raises:
        ValueError: for another number.
    """
    if num_classes not in (19, 27):
        raise ValueError(f"num_classes must be 19 or 27, got {num_classes}")
    return tuple(label for label in CITYSCAPES_LABELS if label.is_scored or num_classes == 27)
