"""Segmenting many pictures: one thread reads ahead, this one predicts, one writes behind."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import cv2
import torch
from tqdm import tqdm

from s2uniseg_d2.exit_status import counted
from s2uniseg_d2.segmenter import Segmenter

from .frames import Frame, Frames
from .page import KINDS, PageFacts
from .results import LONGEST_PX, ResultFiles, check_output

_BEHIND = 2  # pictures that may wait to be written
_LARGE = 1 << 28  # bytes of a picture's masks from which on none may wait: many masks of a large picture are gigabytes
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {remaining} left, {rate_noinv_fmt}]"
# what ends a run; what is done by then is written first
_FAULTS = (ValueError, ArithmeticError, OSError, RuntimeError, cv2.error)


@dataclass(frozen=True)
class GalleryOptions:
    """What a run writes.

    Attributes:
        output: the folder.
        kinds: of instance, semantic and panoptic.
        overwrite: take the place of an earlier run in the folder.
        limit: end when so many pictures are done, those that are skipped not counted; 0 takes all.
        page_limit: pictures that the page holds, the first ones.
    """

    output: Path
    kinds: tuple[str, ...] = KINDS
    overwrite: bool = False
    limit: int = 0
    page_limit: int = 500

    def check(self) -> None:
        """Refuse an output that cannot be used, before a model is loaded.

        Raises:
            ValueError: if it is a file, or holds an earlier run and ``overwrite`` is not set; if ``limit`` is
                below 0 or ``page_limit`` below 1.
        """
        if self.limit < 0:
            raise ValueError(f"limit must not be negative, got {self.limit}")
        if self.page_limit < 1:
            raise ValueError(f"page_limit must be at least 1, got {self.page_limit}")
        check_output(self.output, overwrite=self.overwrite)


class Outcome(NamedTuple):
    """What a run has done.

    Attributes:
        pictures: that were segmented and written.
        masks: of all kinds.
        skipped: name and reason of what could not be read, or was too large.
        seconds: from the first picture to the last file.
        model_seconds: of these in the model.
        stopped_by: SIGINT (Ctrl-C) or SIGTERM, if one of them ended it.
    """

    pictures: int
    masks: int
    skipped: list[tuple[str, str]]
    seconds: float
    model_seconds: float
    stopped_by: signal.Signals | None


def make_gallery(segmenter: Segmenter, frames: Frames, options: GalleryOptions) -> Outcome:
    """Segment all frames into a folder. Ctrl-C, SIGTERM and errors end the run, and what is done by then is written.

    Raises:
        ValueError: if the output cannot be used.
        FloatingPointError: if the model's results are not finite.
        OSError: if a file cannot be written.
    """
    options.check()
    files = ResultFiles(options.output, options.kinds, segmenter.num_clusters, options.page_limit)
    start, fault = time.perf_counter(), None
    total = frames.total if not options.limit else min(options.limit, frames.total or options.limit)
    with (
        _Signals() as signals,
        tqdm(
            total=total,
            unit=" pictures",
            mininterval=0.2 if sys.stderr.isatty() else 30,
            bar_format=None if total is None else _BAR,
        ) as bar,
        ThreadPoolExecutor(1) as reader,
        ThreadPoolExecutor(1) as writer,
    ):
        work = _Work(segmenter, files, bar, writer)
        try:
            for frame in _read_ahead(reader, frames):
                work.take(frame)
                if work.taken == options.limit > 0:
                    break
            work.settle()
        except KeyboardInterrupt:
            signals.received = signals.received or signal.SIGINT
        except _FAULTS as error:
            fault = error
        signals.wait = True
        with contextlib.suppress(*_FAULTS) if fault else contextlib.nullcontext():
            work.settle()
        end = str(fault) if fault else "it was interrupted" if signals.received else ""
        facts = _describe(files, segmenter, time.perf_counter() - start, end)
        with contextlib.suppress(*_FAULTS) if fault else contextlib.nullcontext():
            files.finish({"source": segmenter.source, "score_threshold": segmenter.score_threshold}, facts)
    if fault:
        done = counted(files.pictures, "picture")
        logging.getLogger(__name__).warning("%s done before an error, and written", done)
        raise fault
    seconds = time.perf_counter() - start
    return Outcome(files.pictures, files.masks, files.skipped, seconds, work.model_seconds, signals.received)


@dataclass
class _Work:
    segmenter: Segmenter
    files: ResultFiles
    bar: tqdm[None]
    writer: ThreadPoolExecutor
    model_seconds: float = 0.0
    taken: int = 0  # pictures that were segmented
    written: deque[Future[None]] = field(default_factory=deque)

    def take(self, frame: Frame) -> None:
        """Segment a frame and have it written, or note why not."""
        picture, reason = frame.picture, frame.reason
        if picture is not None and max(picture.shape) > LONGEST_PX:
            reason = f"cannot use picture {frame.name}: a side has more than {LONGEST_PX} pixels, a JPEG's limit"
        if picture is None or reason:
            self._skip(frame.name, reason)
            return
        begin = time.perf_counter()
        try:
            found = self.segmenter.segment(picture)
        except (MemoryError, torch.cuda.OutOfMemoryError):
            size = f"{picture.shape[1]} x {picture.shape[0]}"
            self._skip(frame.name, f"cannot use picture {frame.name}: too little memory for masks of {size} pixels")
            return
        seconds = time.perf_counter() - begin
        self.model_seconds += seconds
        self.taken += 1
        self.written.append(self.writer.submit(self.files.add, frame.name, picture, found, seconds))
        behind = _BEHIND if found.instances.pred_masks.numel() < _LARGE else 0
        while self.written and (len(self.written) > behind or self.written[0].done()):
            self._settle_first()

    def settle(self) -> None:
        """Wait until all is written."""
        while self.written:
            self._settle_first()

    def _settle_first(self) -> None:
        self.written.popleft().result()
        self.bar.update()

    def _skip(self, name: str, reason: str) -> None:
        self.files.skip(name, reason)
        self.bar.update()


class _Signals:
    """Ctrl-C and SIGTERM end the work once; after that, and while ``wait`` is set, they leave time to write.

    Only the main thread can have it so; elsewhere, and where a shell has switched a signal off, nothing changes.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.wait = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal gave

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if not self.wait and self.received is None:
            self.received = signal.Signals(number)
            raise KeyboardInterrupt


def _read_ahead(pool: ThreadPoolExecutor, frames: Frames) -> Iterator[Frame]:
    source = iter(frames)
    waiting = pool.submit(next, source, None)
    while (frame := waiting.result()) is not None:
        waiting = pool.submit(next, source, None)
        yield frame


def _describe(files: ResultFiles, segmenter: Segmenter, seconds: float, end: str) -> PageFacts:
    count, kinds = files.pictures, len(files.kinds)
    of_kinds = f" of {kinds} kinds" if kinds > 1 else ""
    speed = f"{seconds:.1f} s ({count / seconds:.2f} pictures/s)"
    sentences = [
        f"{counted(count, 'picture')}, {counted(files.masks, 'mask')}{of_kinds}, {speed}.",
        segmenter.source,
    ]
    if len(files.cards) < count:
        sentences.append(f"This page shows the first {len(files.cards):,}; the files beside it hold all.")
    if end:
        sentences.append(f"The run ended early ({end}): these are the pictures that were done.")
    return PageFacts("S2-UniSeg masks", sentences, segmenter.score_threshold, files.skipped)
