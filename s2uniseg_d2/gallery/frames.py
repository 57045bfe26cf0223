"""The pictures of files, folders, globs, list files, videos and webcams, one after the other."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from s2uniseg_d2.data.pictures import Picture, UnreadablePictureError, read_picture
from s2uniseg_d2.exit_status import counted
from s2uniseg_d2.labeling.sources import Pictures, find_pictures

from .results import FOLDERS

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})
_WEBCAM = "webcam:"
_SILENT = 0  # OpenCV's level of logging
SHORT = 100  # one frame in so many may be missing from a sound video, or one


class Frame(NamedTuple):
    """A picture, or the reason why there is none.

    Attributes:
        name: with "/" between its parts; a video's frame has its number in it, counted from 0.
        picture: ``(H, W, 3)`` uint8 RGB; None if it could not be read.
        reason: one sentence where there is no picture, else "".
    """

    name: str
    picture: Picture | None
    reason: str = ""


class Frames:
    """All pictures that a command line names; pictures come before videos, and webcams last.

    Args:
        inputs: files, folders, globs and list files as :func:`~s2uniseg_d2.labeling.sources.find_pictures` takes them;
            video files by their ending (in a folder only pictures count); ``webcam:N`` for camera N of this machine,
            which never ends by itself.
        every: of a video or a webcam, take the first frame of every so many.
        results: a folder of results, whose own pictures are left out; None where there is none.

    Raises:
        ValueError: if an input names nothing, a webcam cannot be opened, or a number is out of its range.

    Attributes:
        total: how many pictures there are, as far as headers tell; None with a webcam.
        repeated: how many pictures were named again, and count once.
        left_out: how many pictures are results.
    """

    def __init__(self, inputs: Sequence[str], *, every: int = 1, results: Path | None = None) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        if not inputs:
            raise ValueError("input must name pictures, a video or webcam:N, got nothing")
        self._every = every
        self._webcams = [_webcam_number(item) for item in inputs if item.startswith(_WEBCAM)]
        rest = [item for item in inputs if not item.startswith(_WEBCAM)]
        paths = dict.fromkeys(os.path.abspath(os.path.expanduser(item)) for item in rest if _is_video(item))
        self._videos = _name_videos(list(paths))
        files = [item for item in rest if not _is_video(item)]
        found = find_pictures(files) if files else Pictures("", [], 0)
        self._pictures = found._replace(names=_without_results(found, results))
        self.left_out = len(found.names) - len(self._pictures.names)
        self.repeated = self._pictures.repeated
        self.total = self._count()
        if self.total == 0:
            raise ValueError(f"input must name pictures, got {counted(self.left_out, 'result')} in {results} alone")
        for number in self._webcams:
            with _open(number) as capture:
                _check_webcam(capture, number)  # before anything is computed

    def _count(self) -> int | None:
        if self._webcams:
            return None
        return len(self._pictures.names) + sum(_count_frames(path, self._every) for path in self._videos.values())

    def __iter__(self) -> Iterator[Frame]:
        """The pictures in their order; what cannot be read comes with its reason, as does a video that ends early.

        A webcam that is unplugged ends.
        """
        for index, name in enumerate(self._pictures.names):
            try:
                yield Frame(name, read_picture(self._pictures.path(index)))
            except UnreadablePictureError as error:
                yield Frame(name, None, str(error))
        for name, path in self._videos.items():
            yield from _read_video(name, path, self._every)
        for number in self._webcams:
            yield from _read_webcam(number, self._every)


def _name_videos(paths: Sequence[str]) -> dict[str, str]:
    """The videos' paths by their names: the last parts, or those below their common folder if two share one."""
    names = [os.path.basename(path) for path in paths]
    if len(set(names)) < len(names):
        root = os.path.commonpath([os.path.dirname(path) for path in paths])
        names = [os.path.relpath(path, root).replace(os.sep, "/") for path in paths]
    return dict(zip(names, paths, strict=True))


def _without_results(found: Pictures, results: Path | None) -> list[str]:
    if results is None:
        return found.names
    own = tuple(os.path.join(os.path.abspath(results.expanduser()), folder, "") for folder in FOLDERS)
    return [name for place, name in enumerate(found.names) if not found.path(place).startswith(own)]


def _is_video(item: str) -> bool:
    path = Path(item).expanduser()
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()


def _webcam_number(item: str) -> int:
    number = item.removeprefix(_WEBCAM)
    if not number.isdecimal():
        raise ValueError(f"input {item!r} must be webcam:N with N the number of a camera, such as webcam:0")
    return int(number)


@contextmanager
def _open(source: str | int) -> Iterator[cv2.VideoCapture]:
    # OpenCV tells its reasons on stderr, where they would tear the progress bar; ours follow
    levels = getattr(cv2.utils, "logging", cv2)  # OpenCV 4.8 has these functions by themselves
    before = levels.getLogLevel()
    levels.setLogLevel(_SILENT)
    capture = cv2.VideoCapture(source)
    try:
        yield capture
    finally:
        capture.release()
        levels.setLogLevel(before)


def _count_frames(path: str, every: int) -> int:
    with _open(path) as capture:
        count = _promised(capture) if capture.isOpened() else 0
    return max(1, -(-count // every))  # a video that cannot be read is one picture, skipped


def _read_video(name: str, path: str, every: int) -> Iterator[Frame]:
    with _open(path) as capture:
        read = yield from _capture(capture, name, every)
        promised = _promised(capture)
    if not read:
        yield Frame(name, None, f"cannot read video {path}: OpenCV finds no frame in it")
    elif promised - read > max(1, promised // SHORT):  # some headers hold an estimate
        few = f"{read} of the {promised} frames that its header promises could be read"
        yield Frame(name, None, f"video {path} ends early: {few}")


def _promised(capture: cv2.VideoCapture) -> int:
    """Frames by a video's header, 0 or below where it says nothing."""
    return int(capture.get(cv2.CAP_PROP_FRAME_COUNT))


def _read_webcam(number: int, every: int) -> Iterator[Frame]:
    with _open(number) as capture:
        _check_webcam(capture, number)
        yield from _capture(capture, f"webcam{number}", every)


def _check_webcam(capture: cv2.VideoCapture, number: int) -> None:
    if not capture.isOpened():
        raise ValueError(
            f"input 'webcam:{number}' cannot be opened: no such camera, it is in use, or this user may not read it"
        )


def _capture(capture: cv2.VideoCapture, name: str, every: int) -> Generator[Frame, None, int]:
    """One frame of every so many; returns how many there were."""
    number = 0
    while capture.grab():
        if number % every == 0:
            is_sound, bgr = capture.retrieve()
            frame = f"{name}/{number:06d}"
            if is_sound:
                yield Frame(frame, np.ascontiguousarray(bgr[:, :, ::-1], dtype=np.uint8))
            else:
                yield Frame(frame, None, f"cannot read frame {frame}: OpenCV does not decode it")
        number += 1
    return number
