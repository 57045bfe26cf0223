"""The guided filter: smooths a map without smearing it over the edges of a picture."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# the six entries of a symmetric 3 x 3 matrix
_PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


class GuidedFilter:
    """Filters maps by one colour picture; what depends on the picture alone is computed once.

    Source: He, Sun, Tang, "Guided Image Filtering", ECCV 2010, Eq. 14 to 16 (colour guidance). In every window the
    output is a linear function of the colours, fitted to the input by ridge regression, so it can only jump where the
    colours do. Windows are cut at the picture's rim. A map that is zero outside a rectangle may be given as that
    rectangle alone (``top``, ``left``), as long as it has ``2 * radius_px`` zeros on each side that is not the
    picture's rim: the result is the same as on the whole picture.

    Cost: eight box filters per map, whatever the radius, and 13 float32 planes of the picture's size.

    Args:
        picture: ``(H, W, 3)`` uint8.
        radius_px: half the side of a window: windows are ``2 * radius_px + 1`` pixels wide.
        eps: ridge of the regression, in squared colours from 0 to 1. Edges with a variance well below it do not count.

    Raises:
        ValueError: if the picture has another type or shape, ``radius_px`` is below 1, or ``eps`` is not positive.
    """

    def __init__(self, picture: NDArray[np.uint8], *, radius_px: int, eps: float) -> None:
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
            raise ValueError(f"picture must be uint8 (H, W, 3), got {picture.dtype} {picture.shape}")
        if radius_px < 1:
            raise ValueError(f"radius_px must be at least 1, got {radius_px}")
        if not 0 < eps < float("inf"):
            raise ValueError(f"eps must be positive and finite, got {eps}")
        self.radius_px = radius_px
        self._colours = np.ascontiguousarray(picture.transpose(2, 0, 1)).astype(np.float32) / 255
        self._counts = self._sum(np.ones(picture.shape[:2], dtype=np.float32))
        self._means = np.stack([self._sum(plane) / self._counts for plane in self._colours])
        self._inverse = _invert(*(self._covariance(i, j) + (eps if i == j else 0.0) for i, j in _PAIRS))

    def __call__(self, values: Floats, *, top: int = 0, left: int = 0) -> Floats:
        """Filter one map.

        Args:
            values: ``(h, w)`` float32, the rectangle of the picture's rows from ``top`` and columns from ``left``.
            top: first row.
            left: first column.

        Returns:
            ``(h, w)`` float32.
        """
        rows, columns = slice(top, top + values.shape[0]), slice(left, left + values.shape[1])
        colours, means = self._colours[:, rows, columns], self._means[:, rows, columns]
        counts = self._counts[rows, columns]
        mean = self._sum(values) / counts
        # the covariance of each colour with the map, then the regression's slopes and offset
        shared = [self._sum(colours[i] * values) / counts - means[i] * mean for i in range(3)]
        xx, xy, xz, yy, yz, zz = (plane[rows, columns] for plane in self._inverse)
        slopes = (
            xx * shared[0] + xy * shared[1] + xz * shared[2],
            xy * shared[0] + yy * shared[1] + yz * shared[2],
            xz * shared[0] + yz * shared[1] + zz * shared[2],
        )
        total = self._sum(mean - sum(slope * means[i] for i, slope in enumerate(slopes)))
        for i, slope in enumerate(slopes):
            total += self._sum(slope) * colours[i]
        return np.asarray(total / counts, dtype=np.float32)

    def _covariance(self, i: int, j: int) -> Floats:
        product = self._sum(self._colours[i] * self._colours[j]) / self._counts
        return np.asarray(product - self._means[i] * self._means[j], dtype=np.float32)

    def _sum(self, plane: Any) -> Floats:
        side = 2 * self.radius_px + 1
        total = cv2.boxFilter(plane, cv2.CV_32F, (side, side), normalize=False, borderType=cv2.BORDER_CONSTANT)
        return np.asarray(total, dtype=np.float32)


def _invert(xx: Floats, xy: Floats, xz: Floats, yy: Floats, yz: Floats, zz: Floats) -> tuple[Floats, ...]:
    """The inverse of a symmetric 3 x 3 matrix at every pixel, by cofactors, in the order of the arguments."""
    minors = (
        yy * zz - yz * yz,
        xz * yz - xy * zz,
        xy * yz - xz * yy,
        xx * zz - xz * xz,
        xy * xz - xx * yz,
        xx * yy - xy * xy,
    )
    determinant = xx * minors[0] + xy * minors[1] + xz * minors[2]
    return tuple(minor / determinant for minor in minors)
