"""A webcam in place of OpenCV's."""

from __future__ import annotations

import numpy as np


class Camera:
    """Endless pictures, as a webcam's."""

    def __init__(self, number):
        assert number == 5

    def isOpened(self):  # noqa: N802  (OpenCV's name)
        return True

    def grab(self):
        return True

    def retrieve(self):
        return True, np.full((4, 6, 3), (1, 2, 3), dtype=np.uint8)

    def release(self):
        pass
