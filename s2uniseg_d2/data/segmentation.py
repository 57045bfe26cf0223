"""COCO's ways to write a mask, as pixels."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_coding


def decode_segmentation(segmentation: Any, height: int, width: int) -> NDArray[np.bool_]:
    """The mask of a COCO annotation.

    Args:
        segmentation: polygons, or run lengths, compressed or not.
        height: rows of the picture.
        width: columns of the picture.

    Returns:
        ``(height, width)`` bool, column by column in memory as run lengths are.

    Raises:
        ValueError: if run lengths are of another size than the picture.
    """
    if isinstance(segmentation, list):
        segmentation = mask_coding.merge(mask_coding.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = mask_coding.frPyObjects(segmentation, height, width)
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"segmentation must be of the picture's size {[height, width]}, got {segmentation['size']}")
    with warnings.catch_warnings():
        # pycocotools 2.0.11 asks for an array in a way that numpy 2 deprecates
        warnings.simplefilter("ignore", DeprecationWarning)
        return np.asarray(mask_coding.decode(segmentation)).view(bool)
