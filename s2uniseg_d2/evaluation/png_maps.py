"""Label maps and panoptic id maps as PNG files, written whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from s2uniseg_d2.data.pictures import UnreadablePictureError, naming_faults

from .whole_files import replacing

ID_LIMIT = 1 << 24  # three bytes of colour
_FORMATS = ("PNG", "TIFF", "BMP", "PPM", "GIF")
_RADIX = np.asarray([1, 256, 256 * 256])


def check_names(file_names: Sequence[str]) -> dict[str, str]:
    """Return the name of every picture's PNG file, the picture's own with another ending.

    Raises:
        ValueError: if two pictures, of different folders, would share one.
    """
    names = {name: f"{PurePath(name).stem}.png" for name in file_names}
    if len(set(names.values())) != len(names):
        twice = next(name for name in names if list(names.values()).count(names[name]) > 1)
        raise ValueError(f"pictures must have names of their own to be written as PNG, got {twice} and another")
    return names


def write_labels(path: Path, labels: NDArray[np.integer], none: int) -> None:
    """Write ``(H, W)`` labels >= -1 as 16 bits, with ``none`` for -1."""
    samples = labels.astype(np.uint16)
    np.copyto(samples, none, where=labels < 0, casting="unsafe")
    _save(path, Image.fromarray(samples))


def read_labels(path: Path, none: int) -> NDArray[np.int64]:
    """Return what :func:`write_labels` wrote."""
    labels = read_map(path).astype(np.int64)
    return np.where(labels == none, -1, labels)


def write_ids(path: Path, ids: NDArray[np.integer]) -> None:
    """Write ``(H, W)`` segment ids as panopticapi reads them, red + 256 green + 256^2 blue.

    Raises:
        ValueError: if an id lies outside [0, 2^24).
    """
    if ids.size and not (ids.min() >= 0 and ids.max() < ID_LIMIT):
        raise ValueError(f"segment ids must lie in [0, 2^24) to be written, got {ids.min()} to {ids.max()}")
    # the bytes of a number, the lowest first, are the channels; the fourth is 0
    channels = np.ascontiguousarray(ids, dtype="<u4").view(np.uint8).reshape(*ids.shape, 4)
    _save(path, Image.fromarray(cv2.cvtColor(channels, cv2.COLOR_RGBA2RGB)))


def read_map(path: str | Path) -> NDArray[np.generic]:
    """Return the ``(H, W)`` numbers in a one-channel picture; palettes give their indices.

    Raises:
        ValueError: if the file is no picture of a usual format, is damaged, or has other channels or values.
    """
    with naming_faults(path), Image.open(path, formats=_FORMATS) as image:
        numbers = np.asarray(image)
    if numbers.ndim != 2 or numbers.dtype.kind not in "biu":
        raise ValueError(f"map {path} must have one channel of whole numbers, got {numbers.dtype} {numbers.shape}")
    return numbers


def read_ids(path: str | Path) -> NDArray[np.int64]:
    """Return the ``(H, W)`` segment ids of a panoptic PNG.

    Raises:
        ValueError: if the file is missing or no picture.
    """
    try:
        with naming_faults(path), Image.open(path, formats=_FORMATS) as image:
            return np.asarray(image.convert("RGB"), dtype=np.int64) @ _RADIX
    except UnreadablePictureError as error:
        raise ValueError(f"cannot read the panoptic map {path}: {cause_of(error)}") from error


def cause_of(error: BaseException) -> str:
    """The reader's own words."""
    cause = error.__cause__
    return str(getattr(cause, "strerror", None) or cause or error)


def _save(path: Path, image: Image.Image) -> None:
    with replacing(path) as partial:
        image.save(partial, format="PNG", compress_level=1)
