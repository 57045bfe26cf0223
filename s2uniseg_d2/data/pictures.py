"""Reading pictures of any usual format as 8-bit RGB."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

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
# What Pillow's decoders raise on damaged files, beside OSError.
_DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    IndexError,
    KeyError,
    TypeError,
    MemoryError,
)


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
    data = _read_bytes(path, span)
    try:
        picture = _read_with_pillow(data)
    except UnidentifiedImageError:
        picture = _read_with_opencv(path, data)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UnreadablePictureError(
            f"cannot read picture {path}: it has more than {Image.MAX_IMAGE_PIXELS} pixels, Pillow's limit"
        ) from error
    except _DECODER_ERRORS as error:
        raise UnreadablePictureError(f"cannot read picture {path}: {str(error) or type(error).__name__}") from error
    return picture


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


def _read_with_pillow(data: bytes) -> Picture:
    with warnings.catch_warnings():
        # odd metadata is not worth a warning per picture; a bomb between once and twice the limit is worth an error
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            turn = _UPRIGHT.get(_orientation(image))
            return _to_rgb(image if turn is None else image.transpose(turn))


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
    return np.array(image.convert("RGB"))


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
