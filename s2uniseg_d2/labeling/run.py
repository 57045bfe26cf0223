"""Labelling many pictures: reads ahead, labels, writes behind, and goes on after a kill."""

from __future__ import annotations

import itertools
import shutil
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from s2uniseg_d2 import __version__
from s2uniseg_d2.data.pictures import Picture, UnreadablePictureError, read_picture
from s2uniseg_d2.engine.panel import write_png
from s2uniseg_d2.exit_status import counted

from .coco import (
    committing,
    dump,
    embeddings_path,
    read_info,
    write_coco,
    write_npy_header,
    write_skipped,
)
from .encoder import digest
from .journal import Journal, Tally, locked, refuse_other_settings, side_path
from .maker import GridLabels, PseudoMaskMaker
from .preview import draw_preview
from .records import Selection, record_picture
from .sources import Pictures

WIDTHS = {"float16": 2, "float32": 4}
_CODERS = 2  # threads that make run lengths
_BEHIND = 3  # batches that may wait to be written
_AHEAD = 1  # batches that are read while one is labelled


@dataclass(frozen=True)
class RunOptions:
    """How a pile of pictures is labelled.

    Attributes:
        output: the COCO file; what stands beside it has its name with another ending.
        batch_size: pictures that are labelled and recorded together, and the unit that shards share out.
        selection: which masks are kept.
        embeddings: "float16" or "float32" writes them to a side file, "" does not.
        shard: (i, n), the part of the work that this run does, 1 <= i <= n.
        preview: how many pictures of this run are drawn with their masks.
        readers: threads that read pictures.
        overwrite: begin anew whatever is there.

    Raises:
        ValueError: a value is outside its range.
    """

    output: Path
    batch_size: int = 8
    selection: Selection = field(default_factory=Selection)
    embeddings: str = ""
    shard: tuple[int, int] = (1, 1)
    preview: int = 0
    readers: int = 2
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.output.suffix.lower() != ".json":
            raise ValueError(f"output must be a file that ends in .json, got {str(self.output)!r}")
        if self.embeddings and self.embeddings not in WIDTHS:
            raise ValueError(f"embeddings must be one of {', '.join(WIDTHS)}, got {self.embeddings!r}")
        for name in ("batch_size", "readers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.preview < 0:
            raise ValueError(f"preview must not be negative, got {self.preview}")
        part, parts = self.shard
        if not 1 <= part <= parts:
            raise ValueError(f"shard must be I/N with 1 <= I <= N, got {part}/{parts}")

    def place(self, pictures: Pictures) -> list[range]:
        """The batches of this run: every n-th of all, so that each is the same however many machines there are.

        Raises:
            ValueError: if there are more shards than batches.
        """
        count, size = len(pictures.names), self.batch_size
        batches = [range(start, min(start + size, count)) for start in range(0, count, size)]
        part, parts = self.shard
        if parts > len(batches):
            raise ValueError(
                f"shard must leave every machine a batch: {counted(count, 'picture')} in batches of {size} can keep "
                f"{counted(len(batches), 'machine')} busy, got {part}/{parts}; smaller batches make more of them"
            )
        return batches[part - 1 :: parts]


class Outcome(NamedTuple):
    """What stands in the output.

    Attributes:
        tally: its counts.
        skipped: id, file name and reason of every picture that could not be read.
        resumed: pictures that an earlier run had done.
    """

    tally: Tally
    skipped: list[dict[str, Any]]
    resumed: int


class _Loaded(NamedTuple):
    number: int
    resized: Picture
    size: tuple[int, int]
    image: Picture | None


class _Skipped(NamedTuple):
    number: int
    reason: str


def label_pictures(maker: PseudoMaskMaker, pictures: Pictures, options: RunOptions) -> Outcome:
    """Label pictures into a COCO file.

    The file appears when all is done; until then a journal beside it holds what is done, and the same call goes on from
    there. A finished file under the same settings is left alone.

    Raises:
        ValueError: if the output belongs to other settings or another process, there are more shards than batches, or
            no picture could be read.
        OSError: if the output cannot be written.
    """
    batches, settings = options.place(pictures), _settings(maker, pictures, options)
    output = options.output
    output.parent.mkdir(parents=True, exist_ok=True)
    with locked(output):
        path = output.with_name(output.name + ".progress")
        if options.overwrite:
            path.unlink(missing_ok=True)
        elif output.exists() and not path.exists():
            info = read_info(output)
            refuse_other_settings(output, info["settings"], settings)
            counts = (info["labelled"], len(info["skipped"]), info["annotations"], info["vanished"])
            return Outcome(Tally(*counts), info["skipped"], sum(counts[:2]))
        if not path.exists():
            side_path(path).unlink(missing_ok=True)
        row_bytes = settings["embedding_dim"] * WIDTHS.get(options.embeddings, 0)
        journal = Journal(path, settings, row_bytes)
        try:
            resumed = journal.total.labelled + journal.total.skipped
            _Work(maker, pictures, options, journal).run(batches)
            skipped = [item for content in journal.contents() for item in content["skipped"]]
            if not journal.total.labelled and options.shard == (1, 1):
                journal.remove()
                raise ValueError(nothing_readable(skipped))
            _assemble(journal, settings, pictures.root, output, skipped)
            journal.remove()
        finally:
            journal.close()
    return Outcome(journal.total, skipped, resumed)


def nothing_readable(skipped: Sequence[dict[str, Any]]) -> str:
    """The sentence for a run without a single sound picture."""
    return f"of {counted(len(skipped), 'picture')} none could be read; the first: {skipped[0]['reason']}"


def _settings(maker: PseudoMaskMaker, pictures: Pictures, options: RunOptions) -> dict[str, Any]:
    """All that the result depends on, but for the device."""
    selection = options.selection
    return {
        "version": __version__,
        "pictures": len(pictures.names),
        "names": pictures.digest(),
        "encoder": digest(maker.encoder),
        **maker.settings(),
        "kinds": list(selection.kinds),
        "min_score": selection.min_score,
        "max_masks": selection.max_masks,
        "batch_size": options.batch_size,
        "embeddings": options.embeddings,
        "shard": "{}/{}".format(*options.shard),
    }


class _Work:
    """The pipeline: threads read, this one labels, threads make run lengths, one writes in order."""

    def __init__(self, maker: PseudoMaskMaker, pictures: Pictures, options: RunOptions, journal: Journal) -> None:
        self.maker, self.pictures, self.options, self.journal = maker, pictures, options, journal
        self.drawn: frozenset[int] = frozenset()

    def run(self, batches: Sequence[range]) -> None:
        done, total = self.journal.batches, sum(map(len, batches))
        resumed = sum(map(len, batches[:done]))
        self.drawn = frozenset(itertools.islice(itertools.chain.from_iterable(batches), self.options.preview))
        written: deque[Future[int]] = deque()
        is_watched = sys.stderr.isatty()
        with (
            tqdm(
                total=total,
                initial=resumed,
                unit=" pictures",
                mininterval=0.2 if is_watched else 30,
                bar_format="{l_bar}{bar}| {n}/{total} [{elapsed}, {remaining} left, {rate_noinv_fmt}]",
            ) as bar,
            ThreadPoolExecutor(self.options.readers) as readers,
            ThreadPoolExecutor(_CODERS) as coders,
            ThreadPoolExecutor(1) as writer,
        ):
            try:
                for number, loaded in enumerate(self._read_ahead(readers, batches[done:]), start=done):
                    sound = [item for item in loaded if isinstance(item, _Loaded)]
                    grids = self.maker.label_grids([item.resized for item in sound], [item.size for item in sound])
                    coded = coders.submit(self._code, loaded, grids)
                    written.append(writer.submit(self._write, number, coded))
                    while written and (len(written) > _BEHIND or written[0].done()):
                        bar.update(written.popleft().result())
                while written:
                    bar.update(written.popleft().result())
            finally:
                readers.shutdown(wait=False, cancel_futures=True)

    def _read_ahead(self, pool: ThreadPoolExecutor, batches: Sequence[range]) -> Iterator[list[_Loaded | _Skipped]]:
        waiting: deque[list[Future[_Loaded | _Skipped]]] = deque()
        for batch in batches:
            waiting.append([pool.submit(self._read, index) for index in batch])
            if len(waiting) > _AHEAD:
                yield [future.result() for future in waiting.popleft()]
        while waiting:
            yield [future.result() for future in waiting.popleft()]

    def _read(self, index: int) -> _Loaded | _Skipped:
        try:
            image = read_picture(self.pictures.path(index))
        except UnreadablePictureError as error:
            return _Skipped(index, str(error))
        is_kept = self.maker.reads_pictures or index in self.drawn
        height, width = image.shape[:2]
        return _Loaded(index, self.maker.resize(image), (height, width), image if is_kept else None)

    def _code(self, loaded: Sequence[_Loaded | _Skipped], grids: Sequence[GridLabels]) -> tuple[Tally, bytes, bytes]:
        content: dict[str, list[Any]] = {"images": [], "annotations": [], "skipped": []}
        rows, tally, waiting = [], Tally(), iter(grids)
        for item in loaded:
            name = {"id": item.number + 1, "file_name": self.pictures.names[item.number]}
            if isinstance(item, _Skipped):
                content["skipped"].append({**name, "reason": item.reason})
                tally += (0, 1, 0, 0)
                continue
            grid = next(waiting)
            record = record_picture(self.maker, grid, item.number + 1, self.options.selection, item.image)
            content["images"].append({**name, "height": item.size[0], "width": item.size[1]})
            content["annotations"] += record.annotations
            tally += (1, 0, len(record.annotations), record.vanished)
            if self.options.embeddings:
                rows.append(record.embeddings.astype(self.options.embeddings).tobytes())
            if item.number in self.drawn and item.image is not None:
                self._draw(item.number, draw_preview(self.maker, grid, item.image))
        return tally, dump(content).encode(), b"".join(rows)

    def _draw(self, index: int, picture: Picture) -> None:
        folder = self.options.output.with_suffix(".preview")
        write_png(folder / f"{index + 1:06d}.png", picture)

    def _write(self, number: int, coded: Future[tuple[Tally, bytes, bytes]]) -> int:
        tally, content, rows = coded.result()
        self.journal.append(number, tally, content, rows)
        return tally.labelled + tally.skipped


def _assemble(
    journal: Journal, settings: dict[str, Any], root: str, output: Path, skipped: list[dict[str, Any]]
) -> None:
    """Write the output and its side files from the journal, the COCO file last: once it is there, all is."""
    side = embeddings_path(output)
    if settings["embeddings"]:
        with committing(side, "wb") as file, side_path(journal.path).open("rb") as rows:
            write_npy_header(file, settings["embeddings"], journal.total.annotations, settings["embedding_dim"])
            shutil.copyfileobj(rows, file, 2**22)
    else:
        side.unlink(missing_ok=True)
    write_skipped(output, skipped)
    write_coco(
        output,
        describe(settings, root, journal.total, skipped),
        (item for content in journal.contents() for item in content["images"]),
        (item for content in journal.contents() for item in content["annotations"]),
    )


def describe(settings: dict[str, Any], root: str, tally: Tally, skipped: list[dict[str, Any]]) -> dict[str, Any]:
    """The ``info`` of an output."""
    side = {"dtype": settings["embeddings"], "rows": "row i belongs to the annotation with id i + 1"}
    return {
        "description": "pseudo-masks made without labels by S2-UniSeg's UniAP",
        "root": root,
        "settings": settings,
        "labelled": tally.labelled,
        "skipped": skipped,
        "annotations": tally.annotations,
        "vanished": tally.vanished,
        "embeddings": side if settings["embeddings"] else None,
    }
