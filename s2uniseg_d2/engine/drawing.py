"""Masks, label maps, boxes and titled grids drawn on RGB pictures with numpy and OpenCV.

Axes: n masks or boxes, h and w (H and W) rows and columns. Pictures are uint8 ``(H, W, 3)`` in RGB order. No function
changes its input, and none draws random numbers: the same input gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Image = NDArray[np.uint8]
Masks = Tensor | NDArray[np.bool_]
_Cell = TypeVar("_Cell", bound=np.generic)

FONT = cv2.FONT_HERSHEY_SIMPLEX
PAPER = 255  # grey value of a grid's background
INK = (45, 45, 45)
BACKDROP = 40  # grey value of a label map's unpainted pixels where no picture lies below
LUMA = np.array([0.299, 0.587, 0.114])  # BT.601
OUTLINE_ALPHA = 0.75  # of white: light on every picture, and many small masks still show their colour
_STRIP_PIXELS = 1 << 16  # painted at a time, which stay in the processor's cache
TITLE_PX = 24  # height of a strip of text
LARGEST_SCALE, SMALLEST_SCALE = 0.5, 0.34  # of the font; below the latter it cannot be read
GOLDEN_ANGLE_DEG = 137.50776405


def palette(labels: ArrayLike) -> Image:
    """The colour of every label: ``(n, 3)`` RGB, the same for a label in every picture and every run.

    Hues step by the golden angle in Ottosson's Oklch space (https://bottosson.github.io/posts/oklab/), so that any
    first few labels lie far apart; five lightnesses take turns and part labels whose hues come close.

    Raises:
        ValueError: if a label is negative.
    """
    label = np.asarray(labels, dtype=np.int64).reshape(-1)
    if (label < 0).any():
        raise ValueError(f"labels must not be negative, got {int(label.min())}")
    hue = np.deg2rad((25.0 + label * GOLDEN_ANGLE_DEG) % 360.0)
    lightness = np.array([0.72, 0.56, 0.86, 0.64, 0.79])[label % 5]
    chroma = np.array([0.17, 0.18, 0.13, 0.20, 0.15])[label % 5]
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    cones = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ],
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ],
    )
    linear = np.clip(to_rgb @ cones**3, 0.0, 1.0).T
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(255 * srgb), dtype=np.uint8)


def draw_masks(
    image: Image,
    masks: Masks,
    *,
    labels: Sequence[int] | None = None,
    alpha: float = 0.55,
    outline: bool = True,
) -> Image:
    """The picture with coloured masks, big ones below and small ones on top.

    Args:
        image: ``(H, W, 3)``.
        masks: ``(n, H, W)`` bool; no masks give a copy of the picture, and of equal masks the later one is on top.
        labels: one non-negative number per mask that chooses its colour; the masks' order when None.
        alpha: opacity of the colour, in [0, 1].
        outline: whether a light line, one pixel wide, runs around what is visible of each mask.

    Raises:
        ValueError: if shapes, types or ranges are not as said.
    """
    array = masks_on(image, masks)
    chosen = range(len(array)) if labels is None else labels
    if len(chosen) != len(array):
        raise ValueError(f"labels must hold one number per mask ({len(array)}), got {len(chosen)}")
    area = array.sum(axis=(1, 2))
    index = np.full(image.shape[:2], -1, dtype=np.int64)
    for mask in np.argsort(-area, kind="stable"):
        index[array[mask]] = mask
    return paint_index(image, index, palette(chosen), alpha, outline)


def draw_label_map(
    image: Image | None,
    labels: Tensor | NDArray[np.integer],
    *,
    void: int = -1,
    alpha: float = 0.55,
    outline: bool = True,
) -> Image:
    """The picture with every pixel tinted in the colour of its label.

    Args:
        image: ``(H, W, 3)``; None paints full colours on dark grey, and ``alpha`` plays no part.
        labels: ``(H, W)`` integers; pixels that are negative or equal to ``void`` stay as they are.
        void: one more label that is not painted, for instance 0 of a panoptic map or 255 of a ground truth.
        alpha: opacity of the colour, in [0, 1].
        outline: whether a light line parts regions of different labels.

    Raises:
        ValueError: if shapes, types or ranges are not as said.
    """
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"labels must be integers of shape (H, W), got {array.dtype} of shape {array.shape}")
    if image is None:
        image, alpha = np.full((*array.shape, 3), BACKDROP, dtype=np.uint8), 1.0
    check_image(image)
    if array.shape != image.shape[:2]:
        raise ValueError(f"labels must have the image's size {image.shape[:2]}, got {array.shape}")
    array = array.astype(np.int64)
    painted = (array >= 0) & (array != void)
    present, index = np.unique(array[painted], return_inverse=True)
    full = np.full(array.shape, -1, dtype=np.int64)
    full[painted] = index.reshape(-1)
    return paint_index(image, full, palette(present), alpha, outline)


def draw_boxes(image: Image, boxes: ArrayLike, *, labels: Sequence[int] | None = None, width_px: int = 2) -> Image:
    """The picture with box frames in the colours of their labels, each on a dark edge that parts it from the picture.

    Args:
        image: ``(H, W, 3)``.
        boxes: ``(n, 4)`` XYXY in pixels; parts outside of the picture are clipped.
        labels: one non-negative number per box; the boxes' order when None.
        width_px: width of the coloured line.

    Raises:
        ValueError: if shapes, types or ranges are not as said.
    """
    check_image(image)
    corners = np.asarray(boxes, dtype=np.float64)
    if corners.size == 0:
        return image.copy()
    if corners.ndim != 2 or corners.shape[1] != 4 or not np.isfinite(corners).all():
        raise ValueError(f"boxes must be finite numbers of shape (n, 4), got shape {corners.shape}")
    chosen = range(len(corners)) if labels is None else labels
    if len(chosen) != len(corners):
        raise ValueError(f"labels must hold one number per box ({len(corners)}), got {len(chosen)}")
    height, width = image.shape[:2]
    pixels = np.rint(corners).astype(int)
    pixels[:, :2] = np.clip(pixels[:, :2], 0, (width - 1, height - 1))
    pixels[:, 2:] = np.clip(pixels[:, 2:] - 1, 0, (width - 1, height - 1))
    canvas = image.copy()
    for (x0, y0, x1, y1), colour in zip(pixels.tolist(), palette(chosen).tolist(), strict=True):
        cv2.rectangle(canvas, (x0, y0), (x1, y1), (20, 20, 20), width_px + 2)
        cv2.rectangle(canvas, (x0, y0), (x1, y1), colour, width_px)
    return canvas


def paint_index(image: Image, index: NDArray[np.signedinteger], colours: Image, alpha: float, outline: bool) -> Image:
    """Blend ``colours[index]`` over the picture; -1 leaves a pixel alone.

    What lies below a colour loses its own colour as far as it is covered, so that a label looks alike everywhere. It is
    rounded to whole numbers in between: the result may lie one level beside the exact blend.

    Args:
        image: ``(H, W, 3)``.
        index: ``(H, W)``, places in ``colours`` or -1.
        colours: ``(n, 3)`` RGB.
        alpha: opacity of the colour, in [0, 1].
        outline: whether a light line, one pixel wide, runs along every change of index.

    Raises:
        ValueError: if alpha lies outside of its range.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    canvas = image.copy()
    if len(colours) == 0:
        return canvas
    fade = (1 - alpha) * np.eye(3) + alpha * LUMA  # towards the pixel's own grey
    rows = max(1, _STRIP_PIXELS // index.shape[1])
    for strip in (slice(top, top + rows) for top in range(0, len(index), rows)):
        tint = colours.take(index[strip], axis=0, mode="clip")
        blend = cv2.addWeighted(cv2.transform(canvas[strip], fade), 1 - alpha, tint, alpha, 0)
        cv2.copyTo(blend, (index[strip] >= 0).view(np.uint8), canvas[strip])
    if outline:
        edge = _borders(index)
        canvas[edge] = np.rint((1 - OUTLINE_ALPHA) * canvas[edge] + OUTLINE_ALPHA * 255.0)
    return canvas


def _borders(index: NDArray[np.signedinteger]) -> NDArray[np.bool_]:
    """Pixels on one side of every change of index, so that lines stay one pixel wide; never on unpainted pixels."""
    edge = np.zeros(index.shape, dtype=bool)
    for axis in (0, 1):
        before, after = np.moveaxis(index, axis, 0)[:-1], np.moveaxis(index, axis, 0)[1:]
        lines = np.moveaxis(edge, axis, 0)
        change = before != after
        lines[:-1] |= change & (before >= 0)
        lines[1:] |= change & (before < 0)
    return edge


def resize_to(image: Image, size: tuple[int, int]) -> Image:
    """The picture at ``size`` = (rows, columns): averaged where it shrinks, cubic where it grows.

    Raises:
        ValueError: if the picture is none or a side is below 1.
    """
    check_image(image)
    height, width = _check_size(size)
    if (height, width) == image.shape[:2]:
        return image.copy()
    shrinks = height * width < image.shape[0] * image.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (width, height), interpolation=how), dtype=np.uint8)


def upsample_masks(masks: Masks, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The masks at ``size`` = (rows, columns), ``(n, rows, columns)`` bool: each pixel takes the cell it lies in.

    Raises:
        ValueError: if the masks are not ``(n, h, w)`` bool or a side is below 1.
    """
    array = as_masks(masks)
    rows, columns = _nearest_cells(array.shape[1:], size)
    result = np.zeros((len(array), len(rows), len(columns)), dtype=np.bool_)
    for mask, own in zip(array, result, strict=True):
        left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
        y0, y1 = np.searchsorted(rows, (top, top + height))
        x0, x1 = np.searchsorted(columns, (left, left + width))
        own[y0:y1, x0:x1] = _take_cells(mask, rows[y0:y1], columns[x0:x1])
    return result


def upsample_labels(labels: NDArray[np.integer], size: tuple[int, int]) -> NDArray[np.integer]:
    """One ``(h, w)`` map at ``size`` = (rows, columns): each pixel takes the cell that its centre lies in.

    Raises:
        ValueError: if the map is not two-dimensional, or a side is below 1.
    """
    if labels.ndim != 2:
        raise ValueError(f"labels must have shape (h, w), got {labels.shape}")
    rows, columns = _nearest_cells(labels.shape, size)
    return _take_cells(labels, rows, columns)


def _take_cells(cells: NDArray[_Cell], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[_Cell]:
    """``cells[rows[:, None], columns]``, by whole rows, which are sooner copied than single cells."""
    if len(rows) < len(cells):
        return cells[rows].take(columns, axis=1)
    return cells.take(columns, axis=1)[rows]


def _nearest_cells(cells: tuple[int, ...], size: tuple[int, int]) -> list[NDArray[np.int64]]:
    if 0 in cells:
        raise ValueError(f"a grid to resize must have at least one cell, got shape {cells}")
    pixels = _check_size(size)
    return [(2 * np.arange(n) + 1) * m // (2 * n) for n, m in zip(pixels, cells, strict=True)]


def caption(image: Image, text: str) -> Image:
    """The picture with a strip of text above it, ``(H + TITLE_PX, W, 3)``.

    Text that is too wide is set smaller, then cut and ended with two dots; characters outside of ASCII, which
    OpenCV's fonts may lack, become "?".

    Raises:
        ValueError: if the picture is not uint8 of shape (H, W, 3).
    """
    check_image(image)
    return np.concatenate([_strip(text, image.shape[1]), image])


def grid(
    rows: Sequence[Sequence[Image]],
    titles: Sequence[str] | None = None,
    gap_px: int = 6,
    *,
    height_px: int | None = None,
) -> Image:
    """One picture with all cells in rows and columns, parted by white gaps.

    Every cell keeps its shape and gets the common height; a column is as wide as its widest cell, and narrower cells
    stand in its middle. Short rows end in white.

    Args:
        rows: pictures of any size, at least one.
        titles: one per column, above the first row; None leaves the space out.
        gap_px: white pixels between cells and around them all, not negative.
        height_px: of every cell; the tallest cell's when None.

    Raises:
        ValueError: if there is no picture, or the arguments are not as said.
    """
    cells = [cell for row in rows for cell in row]
    if not cells:
        raise ValueError("rows must hold at least one image, got none")
    if gap_px < 0:
        raise ValueError(f"gap_px must not be negative, got {gap_px}")
    if height_px is not None and height_px < 1:
        raise ValueError(f"height_px must be at least 1, got {height_px}")
    for cell in cells:
        check_image(cell)
    columns = max(len(row) for row in rows)
    if titles is not None and len(titles) != columns:
        raise ValueError(f"titles must hold one text per column ({columns}), got {len(titles)}")
    height = height_px or max(cell.shape[0] for cell in cells)
    scaled = [[_at_height(cell, height) for cell in row] for row in rows]
    widths = [max(row[column].shape[1] for row in scaled if column < len(row)) for column in range(columns)]
    top = 0 if titles is None else TITLE_PX
    lefts = [gap_px + sum(widths[:column]) + gap_px * column for column in range(columns)]
    page_height = top + gap_px + len(rows) * (height + gap_px)
    page = np.full((page_height, sum(widths) + gap_px * (columns + 1), 3), PAPER, dtype=np.uint8)
    for text, left, width in zip(titles or (), lefts, widths, strict=False):
        page[gap_px : gap_px + top, left : left + width] = _strip(text, width)
    for number, row in enumerate(scaled):
        y = top + gap_px + number * (height + gap_px)
        for cell, left, width in zip(row, lefts, widths, strict=False):
            x = left + (width - cell.shape[1]) // 2
            page[y : y + height, x : x + cell.shape[1]] = cell
    return page


def _at_height(image: Image, height: int) -> Image:
    return resize_to(image, (height, max(1, round(image.shape[1] * height / image.shape[0]))))


def _strip(text: str, width: int) -> Image:
    """One line of text on white, ``(TITLE_PX, width, 3)``."""
    strip = np.full((TITLE_PX, width, 3), PAPER, dtype=np.uint8)
    text = text.encode("ascii", "replace").decode()
    scale = LARGEST_SCALE
    while scale > SMALLEST_SCALE and _text_width(text, scale) > width:
        scale -= 0.02
    short = text
    while short and _text_width(text, scale) > width:
        short = short[:-1]
        text = short.rstrip() + ".."
    cv2.putText(strip, text if short else "", (1, TITLE_PX - 8), FONT, scale, INK, 1, cv2.LINE_AA)
    return strip


def _text_width(text: str, scale: float) -> int:
    (width, _), _ = cv2.getTextSize(text, FONT, scale, 1)
    return int(width) + 2


def check_image(image: Image) -> None:
    """Refuse what is no picture.

    Raises:
        ValueError: if the picture is not uint8 of shape (H, W, 3) with at least one pixel.
    """
    if not isinstance(image, np.ndarray):
        raise ValueError(f"image must be a numpy array, got {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"image must be uint8 of shape (H, W, 3), got {image.dtype} of shape {image.shape}")


def as_masks(masks: Masks) -> NDArray[np.bool_]:
    """The masks as a numpy array ``(n, h, w)`` on the CPU.

    Raises:
        ValueError: if they are not bool or not three-dimensional.
    """
    array = masks.detach().cpu().numpy() if isinstance(masks, Tensor) else np.asarray(masks)
    if array.ndim != 3 or array.dtype != np.bool_:
        raise ValueError(f"masks must be bool of shape (n, H, W), got {array.dtype} of shape {array.shape}")
    return array


def masks_on(image: Image, masks: Masks) -> NDArray[np.bool_]:
    """Return masks ``(n, H, W)`` as an array, once they and the image ``(H, W, 3)`` are known to fit each other."""
    check_image(image)
    array = as_masks(masks)
    if array.shape[1:] != image.shape[:2]:
        raise ValueError(f"masks must have the image's size {image.shape[:2]}, got {array.shape[1:]}")
    return array


def _check_size(size: tuple[int, int]) -> tuple[int, int]:
    height, width = int(size[0]), int(size[1])
    if height < 1 or width < 1:
        raise ValueError(f"size must be (rows, columns), each at least 1, got {tuple(size)}")
    return height, width
