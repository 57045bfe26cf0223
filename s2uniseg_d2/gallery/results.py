"""The files of a run: overlays, COCO instances, panoptic and semantic maps, and the page."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from s2uniseg_d2 import __version__
from s2uniseg_d2.data.pictures import Picture
from s2uniseg_d2.evaluation.coco_results import encode_instances
from s2uniseg_d2.evaluation.png_maps import write_ids, write_labels
from s2uniseg_d2.evaluation.whole_files import replacing, write_json
from s2uniseg_d2.exit_status import one_line
from s2uniseg_d2.segmenter import Segmentation

from .overlay import draw_index, index_type, mask_areas, stack_masks
from .page import KINDS, Card, PageFacts, count_clusters, make_card, shown_name, write_page

NO_CLUSTER = 65535  # in a semantic PNG
OVERLAY_QUALITY = 92
LONGEST_PX = 65_500  # that the JPEG coder takes
LONGEST_NAME = 180  # bytes of a part of a file's name: systems take 255, and a file that is being written has more
Index = NDArray[np.signedinteger]
Drawn = tuple[Index, list[int]]  # the mask that is seen at each pixel, -1 for none, and every mask's cluster
PAGE = "index.html"
FOLDERS = ("overlays", "panoptic", "semantic")
_OWN = (PAGE, "instances.json", "panoptic.json", *FOLDERS)


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder for results that cannot be one.

    Raises:
        ValueError: if it is a file, or holds an earlier run, or a part of one, and ``overwrite`` is not set.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output must be a folder, got the file {folder}")
    found = [name for name in _OWN if (folder / name).exists()]
    if found and not overwrite:
        what = "a gallery" if PAGE in found else f"a part of a gallery ({', '.join(found)})"
        raise ValueError(f"output {folder} already holds {what}: add --overwrite, or name another folder")


class ResultFiles:
    """Writes the results of one picture after the other; what describes them all comes at the end.

    Below ``folder``: ``overlays/KIND/NAME.jpg`` for every kind, ``instances.json`` (COCO), ``panoptic.json`` and
    ``panoptic/NAME.png`` (COCO panoptic), ``semantic/NAME.png`` (16 bits, 65535 where there is no cluster),
    ``skipped.txt`` and ``index.html``. A cluster k is category k; stuff in ``panoptic.json`` is K + k, because COCO
    says of a category whether it is a thing, and a cluster may hold both.

    Args:
        folder: made if it does not exist.
        kinds: of instance, semantic and panoptic, those that are written.
        clusters: K, how many there are.
        page_limit: pictures that the page holds, the first ones: a browser has to take all of it in.

    Raises:
        ValueError: if a kind is unknown, or there are more clusters than a semantic map can tell apart.

    Attributes:
        skipped: name and reason of what is in none of the files.
        cards: of the pictures that are in the page.
        masks: how many all pictures have together, of all kinds.
    """

    def __init__(self, folder: Path, kinds: Sequence[str], clusters: int, page_limit: int = 500) -> None:
        if unknown := [kind for kind in kinds if kind not in KINDS]:
            raise ValueError(f"kinds must be among {', '.join(KINDS)}, got {', '.join(unknown)}")
        if "semantic" in kinds and clusters > NO_CLUSTER:
            raise ValueError(f"clusters must be at most {NO_CLUSTER} for maps of 16 bits, got {clusters}")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.kinds, self.clusters = folder, tuple(kinds), clusters
        self.skipped: list[tuple[str, str]] = []
        self.cards: list[Card] = []
        self.masks = 0
        self._page_limit = page_limit
        self._images: list[dict[str, Any]] = []
        self._instances: list[list[dict[str, Any]]] = []
        self._panoptic: list[dict[str, Any]] = []
        self._taken: set[str] = set()
        # where pictures are written, and the endings of their names
        self._roots = [(folder / "overlays" / kind, ".jpg") for kind in kinds]
        self._roots += [(folder / kind, ".png") for kind in ("panoptic", "semantic") if kind in kinds]

    @property
    def pictures(self) -> int:
        """How many pictures were added."""
        return len(self._images)

    def skip(self, name: str, reason: str) -> None:
        """Note a picture that could not be read or is no picture for these files."""
        self.skipped.append((name, reason))

    def add(self, name: str, picture: Picture, found: Segmentation, seconds: float) -> None:
        """Write what belongs to one picture.

        Raises:
            OSError: if a file cannot be written.
        """
        number, stem = len(self._images) + 1, self._free_stem(name)
        height, width = picture.shape[:2]
        image = {"id": number, "file_name": shown_name(name), "height": height, "width": width}
        instances = self._encode_instances(found, number) if "instance" in self.kinds else []
        drawn = {kind: _draw_order(kind, found) for kind in self.kinds}
        panoptic = self._encode_panoptic(found, number, stem, drawn) if "panoptic" in self.kinds else {}
        if "panoptic" in self.kinds:
            write_ids(self.folder / "panoptic" / f"{stem}.png", found.panoptic.numpy())
        if "semantic" in self.kinds:
            write_labels(self.folder / "semantic" / f"{stem}.png", found.semantic.numpy(), NO_CLUSTER)
        for kind in self.kinds:
            self._write_overlay(self.folder / "overlays" / kind / f"{stem}.jpg", picture, *drawn[kind])
        if len(self.cards) < self._page_limit:
            self.cards.append(make_card(name, picture, found, self.kinds, seconds))
        self.masks += sum(len(clusters) for _, clusters in drawn.values())
        # only now, so that a picture is in all of the lists or in none
        self._images.append(image)
        self._instances.append(instances)
        self._panoptic.append(panoptic)

    def finish(self, info: dict[str, Any], facts: PageFacts) -> None:
        """Write what describes all pictures that were added, if there are any, and the list of those skipped.

        Raises:
            OSError: if a file cannot be written.
        """
        skipped = self.folder / "skipped.txt"
        skipped.unlink(missing_ok=True)
        if self.skipped:
            lines = "".join(f"{one_line(name)}\t{one_line(reason)}\n" for name, reason in self.skipped)
            with replacing(skipped) as partial:
                partial.write_text(lines, encoding="utf-8")
        if not self._images:
            return
        self._remove_earlier()
        head = {"info": {"version": __version__, **info}, "images": self._images}
        things = [{"id": k, "name": f"cluster {k}", "supercategory": "thing"} for k in range(self.clusters)]
        if "instance" in self.kinds:
            every = [item for items in self._instances for item in items]
            annotations = [{"id": number, **item} for number, item in enumerate(every, start=1)]
            write_json(self.folder / "instances.json", {**head, "categories": things, "annotations": annotations})
        if "panoptic" in self.kinds:
            stuff = [
                {"id": self.clusters + k, "name": f"stuff cluster {k}", "supercategory": "stuff", "isthing": 0}
                for k in range(self.clusters)
            ]
            categories = [{**category, "isthing": 1} for category in things] + stuff
            content = {**head, "categories": categories, "annotations": self._panoptic}
            write_json(self.folder / "panoptic.json", content)
        write_page(self.folder / PAGE, self.cards, facts)

    def _remove_earlier(self) -> None:
        """Remove what an earlier run has left in the folder and this one has not written anew."""
        for kind, name in (("instance", "instances.json"), ("panoptic", "panoptic.json")):
            if kind not in self.kinds:
                (self.folder / name).unlink(missing_ok=True)
        for name in FOLDERS:
            root = self.folder / name
            for path in [*root.rglob("*.jpg"), *root.rglob("*.png")]:
                if not path.is_file():
                    continue  # a folder may be called so
                below = path.relative_to(root)
                kind = below.parts[0] if name == "overlays" else name
                stem = PurePosixPath(*below.parts[1:]) if name == "overlays" else below
                if kind not in self.kinds or str(stem)[: -len(path.suffix)] not in self._taken:
                    path.unlink()

    def _free_stem(self, name: str) -> str:
        """The name of a picture's files: its own without its ending, unless a picture or a folder has that one."""
        *folders, last = map(_shorten, PurePosixPath(shown_name(name)).parts)
        parent = PurePosixPath()
        for part in folders:
            while any((root / parent / part).is_file() for root, _ in self._roots):
                part += "_"
            parent /= part
        path = parent / last
        stem = str(path.with_suffix(""))
        if not self._is_free(stem):
            stem = str(path)
        while not self._is_free(stem):
            stem += "_"
        self._taken.add(stem)
        return stem

    def _is_free(self, stem: str) -> bool:
        return stem not in self._taken and not any((root / f"{stem}{end}").is_dir() for root, end in self._roots)

    def _encode_instances(self, found: Segmentation, number: int) -> list[dict[str, Any]]:
        results = encode_instances(found.instances, number)
        areas = mask_areas(found.instances.pred_masks).tolist()
        levels = found.instances.levels.tolist() if found.instances.has("levels") else None
        for place, (result, area) in enumerate(zip(results, areas, strict=True)):
            result |= {"area": area, "iscrowd": 0}
            if levels is not None:
                result["level"] = levels[place]
        return results

    def _encode_panoptic(self, found: Segmentation, number: int, stem: str, drawn: dict[str, Drawn]) -> dict[str, Any]:
        boxes = find_objects(drawn["panoptic"][0] + 1, len(found.segments))
        segments = [
            {
                "id": segment["id"],
                "category_id": segment["category_id"] + (0 if segment["isthing"] else self.clusters),
                "area": segment["area"],
                "bbox": _to_xywh(box),
                "iscrowd": 0,
                "score": segment["score"],
            }
            for segment, box in zip(found.segments, boxes, strict=True)
        ]
        return {"image_id": number, "file_name": f"{stem}.png", "segments_info": segments}

    def _write_overlay(self, path: Path, picture: Picture, index: Index, clusters: Sequence[int]) -> None:
        bgr = cv2.cvtColor(draw_index(picture, index, clusters), cv2.COLOR_RGB2BGR)
        is_coded, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, OVERLAY_QUALITY])
        if not is_coded:
            raise OSError(f"{path} could not be written: a JPEG holds no picture of {picture.shape[1::-1]} pixels")
        with replacing(path) as partial:
            partial.write_bytes(np.asarray(data).tobytes())


def _shorten(part: str) -> str:
    """A part of a file's name with its ending, short enough for every system; cut ones end in a digest of the whole."""
    if len(part.encode()) <= LONGEST_NAME:
        return part
    suffix = PurePosixPath(part).suffix
    ending = f"-{hashlib.sha256(part.encode()).hexdigest()[:8]}{suffix if len(suffix.encode()) < 20 else ''}"
    return part.encode()[: LONGEST_NAME - len(ending.encode())].decode(errors="ignore") + ending


def _draw_order(kind: str, found: Segmentation) -> Drawn:
    if kind == "semantic":
        labels = count_clusters(found.semantic)[0].tolist()
        return _places(found.semantic.numpy(), labels, none=-1), labels
    if kind == "panoptic":
        ids = [segment["id"] for segment in found.segments]
        clusters = [segment["category_id"] for segment in found.segments]
        return _places(found.panoptic.numpy(), ids, none=0), clusters
    instances = found.instances
    # UniAP's levels are a tree of regions: with the small ones on top nobody would see another level than the first
    order = instances.levels.argsort(stable=True).tolist() if instances.has("levels") else None
    return stack_masks(instances.pred_masks.numpy(), order), instances.pred_classes.tolist()


def _places(labels: NDArray[np.integer], known: Sequence[int], none: int) -> Index:
    """The place of every pixel's label among those that are ``known``, -1 for ``none``."""
    places = np.full(max(known, default=0) + 2, -1, dtype=index_type(len(known)))
    places[list(known)] = np.arange(len(known))
    places[none] = -1  # the last one stands for a label of -1
    return places[labels]


def _to_xywh(box: tuple[slice, slice] | None) -> list[float]:
    if box is None:
        return [0.0] * 4
    rows, columns = box
    return [float(value) for value in (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)]
