"""Segmenting many pictures: one thread reads ahead, this one predicts, one writes behind."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from s2uniseg_d2.segmenter import Segmenter

from .frames import Frame, Frames
from .page import KINDS, PageFacts
from .results import ResultFiles, check_output

_BEHIND = 2  # pictures that may wait to be written
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {remaining} left, {rate_noinv_fmt}]"


@dataclass(frozen=True)
class GalleryOptions:
    """What a run writes.

    Attributes:
        output: the folder.
        kinds: of instance, semantic and panoptic.
        overwrite: take the place of an earlier run in the folder.
    """

    output: Path
    kinds: tuple[str, ...] = KINDS
    overwrite: bool = False

    def check(self) -> None:
        """Refuse an output that cannot be used, before a model is loaded.

        Raises:
            ValueError: if it is a file, or holds an earlier run and ``overwrite`` is not set.
        """
        check_output(self.output, overwrite=self.overwrite)


class Outcome(NamedTuple):
    """What a run has done.

    Attributes:
        pictures: that were segmented and written.
        masks: of all kinds.
        skipped: name and reason of what could not be read.
        seconds: from the first picture to the last file.
        model_seconds: of these in the model.
        is_interrupted: whether Ctrl-C ended it.
    """

    pictures: int
    masks: int
    skipped: list[tuple[str, str]]
    seconds: float
    model_seconds: float
    is_interrupted: bool


def make_gallery(segmenter: Segmenter, frames: Frames, options: GalleryOptions) -> Outcome:
    """Segment all frames into a folder; Ctrl-C ends the run early, and what is done by then is written.

    Raises:
        ValueError: if the output cannot be used.
        FloatingPointError: if the model's results are not finite.
        OSError: if a file cannot be written.
    """
    options.check()
    files = ResultFiles(options.output, options.kinds, segmenter.num_clusters)
    start, model_seconds, is_interrupted = time.perf_counter(), 0.0, False
    with (
        tqdm(
            total=frames.total,
            unit=" pictures",
            mininterval=0.2 if sys.stderr.isatty() else 30,
            bar_format=None if frames.total is None else _BAR,
        ) as bar,
        ThreadPoolExecutor(1) as reader,
        ThreadPoolExecutor(1) as writer,
    ):
        written: deque[Future[None]] = deque()
        try:
            for frame in _read_ahead(reader, frames):
                if frame.picture is None:
                    files.skip(frame.name, frame.reason)
                    bar.update()
                    continue
                begin = time.perf_counter()
                found = segmenter.segment(frame.picture)
                seconds = time.perf_counter() - begin
                model_seconds += seconds
                written.append(writer.submit(files.add, frame.name, frame.picture, found, seconds))
                while written and (len(written) > _BEHIND or written[0].done()):
                    written.popleft().result()
                    bar.update()
        except KeyboardInterrupt:
            is_interrupted = True
        while written:
            written.popleft().result()
            bar.update()
    info = {"source": segmenter.source, "score_threshold": segmenter.score_threshold}
    files.finish(info, _describe(files, segmenter, time.perf_counter() - start, is_interrupted=is_interrupted))
    seconds = time.perf_counter() - start
    return Outcome(len(files.cards), files.masks, files.skipped, seconds, model_seconds, is_interrupted)


def _read_ahead(pool: ThreadPoolExecutor, frames: Frames) -> Iterator[Frame]:
    source = iter(frames)
    waiting = pool.submit(next, source, None)
    while (frame := waiting.result()) is not None:
        waiting = pool.submit(next, source, None)
        yield frame


def _describe(files: ResultFiles, segmenter: Segmenter, seconds: float, *, is_interrupted: bool) -> PageFacts:
    count = len(files.cards)
    sentences = [f"{count} pictures, {files.masks:,} masks, {seconds:.1f} s ({count / seconds:.2f} pictures/s)."]
    sentences.append(segmenter.source)
    if is_interrupted:
        sentences.append("The run was interrupted: these are the pictures that were done.")
    return PageFacts("S2-UniSeg masks", sentences, segmenter.score_threshold, files.skipped)
