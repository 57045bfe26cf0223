"""A webcam in place of OpenCV's, and videos that are cut off."""

from __future__ import annotations

import re

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


def cut_video(path, target, keep):
    """Copy an AVI file of Motion JPEG up to the end of so many frames; its header still promises all."""
    data = path.read_bytes()
    start = data.index(b"movi")
    frames = [match.start() for match in re.finditer(b"00dc", data) if start < match.start() < data.rindex(b"idx1")]
    target.write_bytes(data[: frames[keep]])
