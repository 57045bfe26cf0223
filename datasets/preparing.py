"""What the tools that prepare data sets share: looking for files, checking them, writing without halves."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from s2uniseg_d2.data.benchmarks import default_root
from s2uniseg_d2.data.coco_json import check_files
from s2uniseg_d2.evaluation.whole_files import replacing
from s2uniseg_d2.exit_status import DONE, ERROR, HELP

SAMPLE = 5  # how many pictures are opened to compare their sizes
SECONDS_BETWEEN_LINES = 5
Item = TypeVar("Item")
Work = Callable[[argparse.Namespace], str]


class Source(NamedTuple):
    """A file or folder that the owners of a data set publish.

    Attributes:
        path: where it must lie.
        what: which of the owners' files it is or comes out of.
        page: where they publish it.
    """

    path: Path
    what: str
    page: str


def make_parser(description: str | None, targets: Sequence[str]) -> argparse.ArgumentParser:
    """Return a parser with what all tools have: ``--root``, ``--partial`` and, where there are several, the targets."""
    parser = argparse.ArgumentParser(
        description=description, epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--root",
        type=Path,
        metavar="FOLDER",
        default=default_root(),
        help="folder of all data sets (default: DETECTRON2_DATASETS, else datasets; now %(default)s)",
    )
    parser.add_argument(
        "--partial", action="store_true", help="accept other numbers of pictures than the published ones"
    )
    if len(targets) > 1:

        def target(name: str) -> str:
            if name not in targets:
                raise argparse.ArgumentTypeError(f"unknown target {name!r}, known are {', '.join(targets)}")
            return name

        known = " and ".join(targets)
        parser.add_argument("targets", nargs="*", type=target, metavar="TARGET", help=f"{known} (default: all)")
    return parser


def run_targets(tool: str, targets: Mapping[str, Work], args: argparse.Namespace) -> int:
    """Make each chosen target, say what became of it, and go on after one that fails.

    Returns:
        The exit status: 0, or 1 when a target could not be made; the reason is then on stderr, one line each.
    """
    status = DONE
    for name in getattr(args, "targets", None) or targets:
        try:
            print(f"{name}: {targets[name](args)}", flush=True)
        except (ValueError, OSError) as error:
            sys.stderr.write(f"{tool}: {name}: {error}\n")
            status = ERROR
    return status


def require(*sources: Source) -> None:
    """Check that everything is on disk.

    Raises:
        ValueError: that names all that is missing, and where its owners publish it.
    """
    missing = [source for source in sources if not source.path.exists()]
    if missing:
        listed = "; ".join(f"{source.path} is missing ({source.what}, {source.page})" for source in missing)
        raise ValueError(listed)


def check_count(what: str, number: int, published: int, *, partial: bool) -> None:
    """Check a number against the one that the owners state.

    Raises:
        ValueError: if they differ and that was not asked for.
    """
    if number != published and not partial:
        raise ValueError(f"expected the {published} {what} that are published, got {number}; --partial accepts others")


def check_pictures(source: Path, folder: Path, images: Sequence[dict[str, Any]]) -> None:
    """Check that all pictures are there, and that a few spread over the list have the sizes that ``images`` states.

    Raises:
        ValueError: for files that are missing, are no pictures, or have another size.
    """
    check_files(source, "images", [image["file_name"] for image in images], folder)
    for image in spread(images):
        size = picture_size(folder / image["file_name"])
        if size != (image["height"], image["width"]):
            raise ValueError(
                f"{folder / image['file_name']} must be of height and width {(image['height'], image['width'])} "
                f"as {source} states, got {size}"
            )


def spread(items: Sequence[Item]) -> list[Item]:
    """Return a few items, evenly spread, the first and the last among them."""
    places = np.linspace(0, len(items) - 1, min(SAMPLE, len(items))).round().astype(int)
    return [items[place] for place in places]


def picture_size(path: Path) -> tuple[int, int]:
    """Return height and width from a picture's header.

    Raises:
        ValueError: if the file is no picture.
    """
    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error


def read_labels(path: Path) -> NDArray[np.int64]:
    """Return the ``(H, W)`` numbers in a one-channel PNG of 8 or 16 bits; palettes give their indices.

    Raises:
        ValueError: if the file is damaged or has several channels.
    """
    try:
        with Image.open(path) as picture:
            labels = np.asarray(picture).astype(np.int64)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error
    if labels.ndim != 2:
        raise ValueError(f"{path} must have one channel of labels, got {labels.shape[2]} channels")
    return labels


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, for the record of what a truth was made from."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def write_bytes(path: Path, data: bytes) -> bool:
    """Write a file whole or not at all; returns whether it had to change."""
    if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
        return False
    with replacing(path) as partial:
        partial.write_bytes(data)
    return True


def write_json(path: Path, content: dict[str, Any]) -> str:
    """Write JSON whole or not at all; returns a clause that says what happened."""
    return describe(path, changed=write_bytes(path, json.dumps(content).encode()))


def write_png(path: Path, pixels: NDArray[np.uint8]) -> bool:
    """Write ``(H, W)`` labels or ``(H, W, 3)`` colours as PNG, like :func:`write_bytes`."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, format="PNG")
    return write_bytes(path, data.getvalue())


def write_list(path: Path, heading: str, pictures: Sequence[str]) -> str:
    """Write a picture list for ``list:FILE`` whole or not at all: paths below or beside it, the heading as a comment.

    Paths outside the list's folder are written absolute, so that the list can be moved with what lies below it.
    """
    folder = path.parent.expanduser().absolute()
    names = [
        os.path.relpath(picture, folder) if Path(picture).is_relative_to(folder) else picture for picture in pictures
    ]
    text = "".join(f"{line}\n" for line in (f"# {heading}", *names))
    return describe(path, changed=write_bytes(path, text.encode()))


def describe(path: Path, *, changed: bool) -> str:
    """Return the clause for a file that was written, or needed not be."""
    return f"written to {path}" if changed else f"already in {path}"


def progress(items: Sequence[Item], what: str) -> Iterator[Item]:
    """Yield the items, with a line on the screen every few seconds."""
    shown = time.monotonic()
    for number, item in enumerate(items):
        yield item
        if time.monotonic() - shown > SECONDS_BETWEEN_LINES:
            shown = time.monotonic()
            print(f"{number + 1} of {len(items)} {what}", flush=True)
