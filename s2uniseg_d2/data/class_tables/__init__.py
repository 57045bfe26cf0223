"""Class tables of the benchmarks, as data: which fine class belongs to which class that is scored."""

from .cityscapes import CITYSCAPES_LABELS, CityscapesLabel, cityscapes_labels
from .coco_panoptic95 import PANOPTIC15, PANOPTIC15_FIRST_ID, panoptic95_category_of
from .cocostuff27 import COCOSTUFF27, COCOSTUFF27_CLASSES, COCOSTUFF27_IGNORE, CoarseClass, cocostuff27_lookup

__all__ = [
    "CITYSCAPES_LABELS",
    "COCOSTUFF27",
    "COCOSTUFF27_CLASSES",
    "COCOSTUFF27_IGNORE",
    "PANOPTIC15",
    "PANOPTIC15_FIRST_ID",
    "CityscapesLabel",
    "CoarseClass",
    "cityscapes_labels",
    "cocostuff27_lookup",
    "panoptic95_category_of",
]
