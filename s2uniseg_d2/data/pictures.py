"""Reading pictures of any usual format as 8-bit RGB."""

from __future__ import annotations

import functools
import io
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

# OpenCV reads this once, when it is imported first; its own limit lets a header take 12 GB
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(Image.MAX_IMAGE_PIXELS))

import cv2

Picture = NDArray[np.uint8]

# EXIF tag 0x0112: how the stored rows and columns must be turned to stand upright
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_SIDE = {_UPRIGHT[orientation] for orientation in (5, 6, 7, 8)}
# Formats that Pillow hands to other programs: a page description is a program of its own, which Ghostscript would run.
_FOREIGN_FORMATS = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "FITS", "MPEG", "IPTC"}
# What Pillow's decoders raise on damaged files, beside OSError.
_DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    MemoryError,
)


@functools.cache
def picture_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read: all that it decodes itself, whatever a file's name ends in."""
    Image.init()
    return tuple(name for name in Image.ID if name not in _FOREIGN_FORMATS)


class Span(NamedTuple):
    """A part of a file, such as a member of a tar file.

    Attributes:
        file: its path.
        offset: the first byte.
        size: bytes.
    """

    file: str
    offset: int
    size: int


class PictureError(ValueError):
    """A picture cannot be used; its text is one sentence.

    A data loader's worker process sends its errors to the main process with the worker's traceback around them, by
    calling the class on one string; here the sentence is taken out again.
    """

    def __str__(self) -> str:
        """The sentence, without a worker's traceback."""
        text = super().__str__()
        if "Original Traceback" not in text:
            return text
        return text.strip().rpartition(f"{type(self).__name__}: ")[2]


class UnreadablePictureError(PictureError):
    """A file is no picture, or a damaged one; the message names the path and the reason."""


def read_picture(path: str | Path, span: Span | None = None) -> Picture:
    """Read a file, or the ``span`` of one, as ``(H, W, 3)`` uint8 RGB, standing upright.

    Pillow reads what it knows, OpenCV the rest. The EXIF orientation is applied. CMYK, grey and palette pictures become
    RGB; 16-bit samples are scaled to 8 bits (65535 becomes 255); floating-point grey is taken as [0, 1] if no sample
    exceeds 1 and as [0, 255] otherwise. Transparent pictures are laid over white, as a browser's page shows them.
    Of several frames the first is read. A 1 x 1 picture is a picture.

    Args:
        path: the file; with a span, the picture's name in messages.
        span: where the picture's bytes lie, if inside of another file.

    Raises:
        UnreadablePictureError: if the file is missing, empty, truncated, of no known format, or has more pixels than
            Pillow's limit against decompression bombs (``PIL.Image.MAX_IMAGE_PIXELS``).
    """
    return StoredPicture(path, span).read()


class StoredPicture:
    """A picture whose size is known and whose pixels are not decoded yet; see :func:`read_picture` for what is read.

    Args:
        path: the file; with a span, the picture's name in messages.
        span: where the picture's bytes lie, if inside of another file.

    Raises:
        UnreadablePictureError: as :func:`read_picture`, for what the header tells.

    Attributes:
        height: rows of the upright picture.
        width: columns of it.
        reductions: by which factors :meth:`read` can reduce it; a JPEG's are 8, 4, 2 and 1.
    """

    def __init__(self, path: str | Path, span: Span | None = None) -> None:
        self._path = path
        self._image: Image.Image | None = None
        self._pixels: Picture | None = None
        data = _read_bytes(path, span)
        with naming_faults(path):
            try:
                self._image = Image.open(io.BytesIO(data), formats=picture_formats())
            except UnidentifiedImageError:
                self._pixels = _read_with_opencv(path, data)
        self.reductions: tuple[int, ...] = (1,)
        if self._image is None:
            assert self._pixels is not None
            self.height, self.width = self._pixels.shape[:2]
            return
        with naming_faults(path):
            self._turn = _UPRIGHT.get(_orientation(self._image))
        lies_on_side = self._turn in _ON_SIDE
        self.height, self.width = self._image.size if lies_on_side else self._image.size[::-1]
        if self._image.format == "JPEG":
            self.reductions = (8, 4, 2, 1)

    def read(self, reduction: int = 1) -> Picture:
        """Return the pixels, ``(H, W, 3)`` uint8 RGB with the sides divided by ``reduction`` and rounded up.

        A JPEG that is reduced is averaged in blocks of ``reduction`` x ``reduction`` pixels while it is decoded, which
        takes less time than decoding all of it. To be called once.

        Raises:
            UnreadablePictureError: as :func:`read_picture`.
            ValueError: if the reduction is not among ``reductions``.
        """
        if reduction not in self.reductions:
            raise ValueError(f"reduction must be one of {self.reductions} for {self._path}, got {reduction}")
        if self._image is None:
            assert self._pixels is not None
            return self._pixels
        with naming_faults(self._path), self._image as image:
            if reduction > 1:
                image.draft(None, (max(1, image.width // reduction), max(1, image.height // reduction)))
            image.load()
            return _to_rgb(image if self._turn is None else image.transpose(self._turn))


@contextmanager
def naming_faults(path: str | Path) -> Iterator[None]:
    """Turn what Pillow raises on files that are no sound pictures into errors with the path and the reason."""
    with warnings.catch_warnings():
        # odd metadata is not worth a warning per picture; a bomb between once and twice the limit is worth an error
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except UnreadablePictureError:
            raise
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise UnreadablePictureError(
                f"cannot read picture {path}: it has more than {Image.MAX_IMAGE_PIXELS} pixels, Pillow's limit"
            ) from error
        except _DECODER_ERRORS as error:
            raise UnreadablePictureError(f"cannot read picture {path}: {str(error) or type(error).__name__}") from error


def _read_bytes(path: str | Path, span: Span | None) -> bytes:
    try:
        if span is None:
            data = Path(path).read_bytes()
        else:
            with open(span.file, "rb") as file:
                file.seek(span.offset)
                data = file.read(span.size)
    except OSError as error:
        raise UnreadablePictureError(f"cannot read picture {path}: {error.strerror or error}") from error
    if not data:
        raise UnreadablePictureError(f"cannot read picture {path}: the file is empty (0 bytes)")
    return data


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except _DECODER_ERRORS:
        return 1  # damaged EXIF beside sound pixels is common on the web


def _to_rgb(image: Image.Image) -> Picture:
    if image.mode == "F" or image.mode.startswith("I"):
        return _deep_grey_to_rgb(np.asarray(image))
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _deep_grey_to_rgb(samples: NDArray[np.generic]) -> Picture:
    values = np.nan_to_num(samples.astype(np.float64))
    if samples.dtype.kind != "f":
        values /= 257  # 65535 / 255
    elif values.size and values.max() <= 1:
        values *= 255
    grey = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _read_with_opencv(path: str | Path, data: bytes) -> Picture:
    try:
        bgr = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise UnreadablePictureError(f"cannot read picture {path}: {error.err}") from error
    if bgr is None:
        raise UnreadablePictureError(
            f"cannot read picture {path}: neither Pillow nor OpenCV knows its format, or its header is damaged"
        )
    return np.ascontiguousarray(bgr[:, :, ::-1], dtype=np.uint8)
