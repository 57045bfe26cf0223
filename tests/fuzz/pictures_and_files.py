"""Targets: pictures, archives and lists of them."""

from __future__ import annotations

import functools
import io
import tarfile
import warnings
from pathlib import Path

import cv2
import numpy as np
from hypothesis import strategies as st
from PIL import Image

from s2uniseg_d2.data import resolve_dataset
from s2uniseg_d2.data.datasets import load_train_records
from s2uniseg_d2.data.pictures import StoredPicture, read_picture
from s2uniseg_d2.evaluation.png_maps import read_ids
from s2uniseg_d2.evaluation.semantic import load_label_map
from tests.fuzz.harness import Target, is_ours
from tests.fuzz.mutations import mutated_bytes

PILLOW = {
    "JPEG": {}, "PNG": {}, "GIF": {}, "BMP": {}, "DIB": {}, "TIFF": {"compression": "tiff_lzw"}, "PPM": {}, "TGA": {},
    "WEBP": {}, "AVIF": {}, "JPEG2000": {}, "PCX": {}, "SGI": {}, "ICO": {}, "IM": {}, "MSP": {}, "DDS": {}, "QOI": {},
    "SPIDER": {}, "XBM": {}, "BLP": {}, "ICNS": {}, "MPO": {},
}  # fmt: skip
OPENCV = (".hdr", ".jp2", ".pbm", ".pgm", ".ppm", ".pxm", ".pam", ".ras", ".sr", ".pfm", ".exr", ".tiff", ".webp")
MODES = ("RGB", "L", "P", "RGBA", "1", "I;16", "F", "CMYK", "LA", "I")
EXIF = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"


@functools.cache
def sound_pictures() -> tuple[bytes, ...]:
    """A picture in every format and mode that can be written here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of formats that Pillow will leave out one day
        return tuple(dict.fromkeys(_write_pictures()))


def _write_pictures() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    found = []
    for name, options in PILLOW.items():
        for mode in MODES:
            try:
                out = io.BytesIO()
                Image.fromarray(pixels).convert("L" if mode == "I;16" else mode).convert(mode).save(
                    out, name, **options
                )
                found.append(out.getvalue())
            except (OSError, ValueError, KeyError, SystemError):
                continue  # this format cannot hold this mode, or is not built in
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", exif=EXIF, progressive=True)
    found.append(out.getvalue())
    for suffix in OPENCV:
        for array in (pixels, pixels[:, :, 0], pixels.astype(np.float32)):
            try:
                done, data = cv2.imencode(suffix, array)
            except cv2.error:
                continue
            if done and isinstance(data, np.ndarray):
                found.append(data.tobytes())
    return found


def pictures() -> st.SearchStrategy[bytes]:
    return mutated_bytes(
        st.one_of(st.sampled_from(sound_pictures()), st.sampled_from(sound_pictures()), st.binary(max_size=64))
    )


@functools.cache
def sound_maps() -> tuple[bytes, ...]:
    """Label maps and id maps, as evaluation reads them."""
    numbers = np.arange(108, dtype=np.uint16).reshape(9, 12)
    found = []
    for array in (numbers, numbers.astype(np.uint8), numbers > 50, np.dstack([numbers.astype(np.uint8)] * 3)):
        for name in ("PNG", "TIFF"):
            out = io.BytesIO()
            Image.fromarray(array).save(out, name)
            found.append(out.getvalue())
    return tuple(found)


def run_picture(case: object, folder: Path) -> object:
    data, reduction = case
    (folder / "a.jpg").write_bytes(data)
    stored = StoredPicture(folder / "a.jpg")
    picture = stored.read(stored.reductions[reduction % len(stored.reductions)])
    assert picture.ndim == 3
    assert picture.shape[2] == 3
    assert picture.dtype == np.uint8
    assert min(picture.shape) >= 1
    return read_picture(folder / "a.jpg")


def run_label_map(case: bytes, folder: Path) -> object:
    (folder / "a.png").write_bytes(case)
    try:
        ids = read_ids(folder / "a.png")
    except ValueError as error:
        if not is_ours(error):
            raise
    else:
        assert ids.ndim == 2
    return load_label_map(str(folder / "a.png"))


@functools.cache
def sound_archives() -> tuple[bytes, ...]:
    found = []
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=kind) as tar:
            for number, data in enumerate(sound_pictures()[:3]):
                member = tarfile.TarInfo(f"{'é' * 60}/{number}.png" if number else "0.png")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        found.append(out.getvalue())
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.png"))
    return (*found, out.getvalue())


def run_archive(case: object, folder: Path) -> object:
    data, index = case
    (folder / "a.tar").write_bytes(data)
    if index is not None:
        (folder / ".a.tar.index.npz").write_bytes(index)
    records = load_train_records([resolve_dataset(f"tar:{folder}/a.tar")], needs_annotations=False)
    for place in range(len(records)):
        StoredPicture(records[place]["file_name"], records[place]["span"])
    return records


LINES = st.one_of(
    st.sampled_from(
        ["a.png", "b/c.png", "./a.png", "# x", "", "../a.png", "/etc", "b/../a.png", "b//c.png", "b", "a.png/", "/"]
    ),
    st.text(max_size=12),
)


def run_list(case: object, folder: Path) -> object:
    (folder / "b").mkdir()
    for name in ("a.png", "b/c.png"):
        (folder / name).write_bytes(b"x")
    (folder / "l.txt").write_bytes(case if isinstance(case, bytes) else case.encode("utf-8", "surrogatepass"))
    records = load_train_records([resolve_dataset(f"list:{folder}/l.txt")], needs_annotations=False)
    return [records[place]["file_name"] for place in range(len(records))]


TARGETS = [
    Target("pictures", st.tuples(pictures(), st.integers(0, 3)), run_picture, 250),
    Target("label maps", mutated_bytes(st.sampled_from(sound_maps())) | pictures(), run_label_map, 80),
    Target(
        "tar shards",
        st.tuples(mutated_bytes(st.sampled_from(sound_archives())), st.none() | st.binary(max_size=99)),
        run_archive,
        70,
    ),
    Target("list files", st.lists(LINES, max_size=5).map("\n".join) | st.binary(max_size=30), run_list, 60),
]
