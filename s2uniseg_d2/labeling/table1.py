"""Pseudo-masks against a data set's truth, in the layout of the paper's Table 1."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from numpy.typing import NDArray
from pycocotools.coco import COCO
from tabulate import tabulate
from tqdm import tqdm

from s2uniseg_d2.core.structures import PseudoMasks
from s2uniseg_d2.data.datasets import resolve_dataset
from s2uniseg_d2.data.loaders import check_test_files, load_test_records
from s2uniseg_d2.data.pictures import Picture, PictureError, read_picture
from s2uniseg_d2.data.segmentation import decode_segmentation
from s2uniseg_d2.evaluation.coco_metrics import coco_figures, complete_truth, evaluate_coco, stdout_in_log
from s2uniseg_d2.evaluation.published import PROTOCOLS, published_rows
from s2uniseg_d2.evaluation.semantic import load_label_map
from s2uniseg_d2.evaluation.whole_files import replacing, write_json
from s2uniseg_d2.exit_status import counted

from .maker import GridLabels, PseudoMaskMaker
from .records import Selection, record_picture
from .semantic_score import SemanticScore

MAX_DETS = (1, 10, 100, 1000)
_CHUNK_MASKS = 16  # masks laid out in pixels at a time
_YES, _NO = "yes", "no"
# what the paper's table says of each method, beside its figures: universal, multi-granular
_ABILITIES = {
    "Divide-and-Conquer": (_NO, _YES),
    "TokenCut": (_NO, _NO),
    "MaskCut": (_NO, _NO),
    "MaskCut + STEGO": (_YES, _NO),
    "UniAP": (_YES, _YES),
}

Value = TypeVar("Value")


class _Times(NamedTuple):
    encoder: list[float]
    labeler: list[float]


def evaluate_labels(
    maker: PseudoMaskMaker,
    dataset_name: str,
    output_dir: str | Path | None = None,
    limit: int | None = None,
    *,
    weights: str = "",
    num_clusters: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Label the pictures of a data set one by one and compare the masks with its truth.

    Figures in percent, each group only where the data set has its truth:

    * ``segm_agnostic``: class-agnostic AP and AR of the instance masks that :mod:`s2uniseg_d2.pseudo_masks` would
      write, at 100 detections per picture (CutLER's limit) and 1000 (UnSAM's).
    * ``sem_seg_clustered``: see :class:`SemanticScore`. The truth is the data set's semantic maps; where there are
      none, the classes of its instances, the smaller lying over the larger, and pixels outside all objects have no
      truth: stuff counts nowhere then. A data set of one class has no semantic truth.
    * ``seconds``: mean per picture of ``encoder`` and ``labeler`` (UniAP, scores, and the way to the CPU) and their sum
      ``picture``; reading, resizing and going to pixels are not in it.
    * ``about``: the data set, the number of pictures, masks per picture, where the semantic truth comes from.

    Args:
        maker: makes the masks.
        dataset_name: in any form that :func:`resolve_dataset` knows.
        output_dir: gets ``table1.json`` and ``table1.txt``, if named.
        limit: first pictures that are taken; None takes all.
        weights: of the encoder, in words, for the table.
        num_clusters: see :class:`SemanticScore`.
        seed: of the clustering.

    Raises:
        ValueError: if an argument is out of range, the data set cannot be used or has neither truth, a picture cannot
            be read or has another size than its truth.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    name = resolve_dataset(dataset_name)
    metadata = MetadataCatalog.get(name)
    records = load_test_records(name)[:limit]
    check_test_files(name, records)
    json_file, classified = metadata.get("json_file"), _find_semantic_truth(metadata, records)
    if not json_file and classified is None:
        raise ValueError(f"data set {name!r} has neither instances nor semantic maps: there is nothing to compare with")
    truth = _agnostic_truth(json_file, {record["image_id"] for record in records}) if json_file else None
    settings: dict[str, Any] = {"num_clusters": num_clusters, "seed": seed, "device": maker.device}
    score = SemanticScore(classified.classes, **settings) if classified is not None else None
    times, results = _Times([], []), []
    counts = {"instance": 0.0, "semantic": 0.0}
    for record, picture in _read(records):
        grid = _label(maker, picture, times)
        for kind in counts:
            counts[kind] += len(getattr(grid.labels, kind).level) / len(records)
        if truth is not None:
            chosen = Selection(kinds=("instance",), max_masks=MAX_DETS[-1])
            results += record_picture(maker, grid, record["image_id"], chosen, picture).annotations
        if score is not None and classified is not None:
            semantic = grid.labels.semantic
            score.add(
                _iterate_masks(maker, grid, semantic, picture),
                semantic.level.numpy(),
                semantic.embeddings,
                classified.read(record, (picture.shape[0], picture.shape[1])),
            )
    summary: dict[str, Any] = {}
    if score is not None:
        summary["sem_seg_clustered"] = score.figures(name)
    if truth is not None:
        summary["segm_agnostic"] = coco_figures(evaluate_coco(truth, results, "segm", max_dets=MAX_DETS))
    seconds = {kind: float(np.mean(values)) for kind, values in times._asdict().items()}
    summary["seconds"] = {**seconds, "picture": sum(seconds.values())}
    summary["about"] = {
        "data_set": name,
        "pictures": len(records),
        "weights": weights,
        "device": str(maker.device),
        "image_size": maker.image_size,
        "upscale": maker.upscale,
        "semantic_truth": "none" if classified is None else classified.source,
        "num_clusters": 0 if score is None else score.num_clusters,
        **{f"{kind}_masks": count for kind, count in counts.items()},
    }
    if output_dir is not None:
        _write(Path(output_dir), summary)
    return summary


def format_table1(results: Mapping[str, Any]) -> str:
    """The paper's Table 1 with a row of our own at its end.

    Args:
        results: of :func:`evaluate_labels`.

    Returns:
        A table in columns, and lines below that say what may be compared with what.
    """
    about, seconds = results["about"], results["seconds"]
    rows = []
    for method, abilities in _ABILITIES.items():
        figures: dict[str, float] = {}
        for group in ("segm_agnostic", "sem_seg_mapped"):
            for row in published_rows("pseudo_masks", group):
                if row.method == method:
                    figures |= row.figures
        cells = [figures.get(key) for key in ("AP", "AR@100", "AR@1000", "mIoU")]
        rows.append(
            [f"{method} (the paper's figures)", f"{figures['s/picture']:g}", *map(_cell, cells), "-", *abilities]
        )
    instances, semantic = results.get("segm_agnostic", {}), results.get("sem_seg_clustered", {})
    cells = [instances.get(key) for key in ("AP", "AR@100", "AR@1000")]
    cells += [semantic.get(key) for key in ("mIoU_hungarian", "mIoU_majority")]
    rows.append(["UniAP (this run)", f"{seconds['picture']:.3g}", *map(_cell, cells), *_ABILITIES["UniAP"]])
    headers = [
        "Method",
        "Time (s)",
        "AP",
        "AR@100",
        "AR@1000",
        "mIoU",
        "mIoU many-to-one",
        "Universal",
        "Multi-Granular",
    ]
    text = tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True, colalign=["left"] + ["right"] * 8)
    comparable = about["data_set"] in PROTOCOLS["pseudo_masks"]
    lines = [
        f"This run: {about['data_set']}, {counted(about['pictures'], 'picture')}, "
        f"{about['weights'] or 'weights not named'}, "
        f"{about['image_size']} px, {about['device']}; {about['instance_masks']:.0f} instance and "
        f"{about['semantic_masks']:.0f} semantic masks per picture.",
        f"Its time: encoder {seconds['encoder']:.3g} s, labeler {seconds['labeler']:.3g} s; the paper does not say "
        "what is in its own.",
        f"Its mIoU: {about['num_clusters']} clusters of mask embeddings mapped one-to-one on this data set; truth: "
        f"{about['semantic_truth']}; with the embeddings shuffled among the masks it would be "
        f"{_cell(semantic.get('mIoU_hungarian_shuffled'))}. The paper does not say how it maps.",
        "The paper's figures: COCO val2017, DINO ViT-B/8."
        + ("" if comparable else " Other pictures: this run's row is not comparable with them."),
    ]
    return "\n".join([text, "", *lines])


def _write(folder: Path, summary: Mapping[str, Any]) -> None:
    # JSON knows no nan, which stands where there is no truth
    content = {
        group: {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in part.items()}
        for group, part in summary.items()
    }
    write_json(folder / "table1.json", content, indent=1)
    with replacing(folder / "table1.txt") as part:
        part.write_text(format_table1(summary) + "\n", encoding="utf-8")


def _read(records: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Picture]]:
    for record in tqdm(records, desc="evaluate", unit="picture", file=sys.stderr, disable=None):
        picture = read_picture(record["file_name"])
        expected = (record.get("height", picture.shape[0]), record.get("width", picture.shape[1]))
        if expected != picture.shape[:2]:
            raise PictureError(
                f"picture {record['file_name']} is {picture.shape[1]} x {picture.shape[0]} (EXIF rotation applied), "
                f"but its truth is made for {expected[1]} x {expected[0]}"
            )
        yield record, picture


def _label(maker: PseudoMaskMaker, picture: Picture, times: _Times) -> GridLabels:
    resized = maker.resize(picture)
    padded = (-(-resized.shape[0] // 32) * 32, -(-resized.shape[1] // 32) * 32)
    shape, size = (resized.shape[0], resized.shape[1]), (picture.shape[0], picture.shape[1])
    if not times.encoder:
        # the first call also pays for what is made once
        maker.pool(maker.encode([resized], padded), [shape], [size])
    features = _timed(times.encoder, maker.device, lambda: maker.encode([resized], padded))
    return _timed(times.labeler, maker.device, lambda: maker.pool(features, [shape], [size]))[0]


def _timed(seconds: list[float], device: torch.device, work: Callable[[], Value]) -> Value:
    _wait(device)
    start = time.perf_counter()
    value = work()
    _wait(device)
    seconds.append(time.perf_counter() - start)
    return value


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _iterate_masks(
    maker: PseudoMaskMaker, grid: GridLabels, found: PseudoMasks, picture: Picture
) -> Iterator[NDArray[np.bool_]]:
    for part in found.masks.split(_CHUNK_MASKS):
        yield from maker.masks_to_pixels(part, grid, picture)


def _agnostic_truth(json_file: str, image_ids: set[Any]) -> COCO:
    """The objects of some pictures, all of one class; crowd regions stay crowd."""
    content = json.loads(Path(json_file).read_bytes())
    truth = COCO()
    truth.dataset = {
        "images": [image for image in content["images"] if image["id"] in image_ids],
        "categories": [{"id": 1, "name": "object"}],
        "annotations": [
            {**entry, "category_id": 1} for entry in content["annotations"] if entry["image_id"] in image_ids
        ],
    }
    with stdout_in_log():
        truth.createIndex()
    complete_truth(truth, ("segm",), json_file)
    return truth


class _SemanticTruth(NamedTuple):
    """Where the classes of pixels come from.

    Attributes:
        source: in words.
        classes: their names.
        read: gives the ``(H, W)`` int64 labels of a record whose picture has a size, C where there is no truth.
    """

    source: str
    classes: tuple[str, ...]
    read: Callable[[Mapping[str, Any], tuple[int, int]], NDArray[np.int64]]


def _find_semantic_truth(metadata: Any, records: list[dict[str, Any]]) -> _SemanticTruth | None:
    stuff, things = metadata.get("stuff_classes") or (), metadata.get("thing_classes") or ()
    if len(stuff) > 1 and all("sem_seg_file_name" in record for record in records):
        ignored = 255 if metadata.get("ignore_label") is None else metadata.ignore_label
        read = partial(_read_map, num_classes=len(stuff), ignored=ignored)
        return _SemanticTruth(f"semantic maps, {len(stuff)} classes", tuple(stuff), read)
    if len(things) > 1 and all("annotations" in record for record in records):
        read = partial(_paint_objects, num_classes=len(things))
        return _SemanticTruth(f"{len(things)} classes of instances, nothing outside them", tuple(things), read)
    return None


def _read_map(record: Mapping[str, Any], size: tuple[int, int], *, num_classes: int, ignored: int) -> NDArray[np.int64]:
    path = record["sem_seg_file_name"]
    labels = load_label_map(path)
    wrong = labels[(labels != ignored) & ((labels < 0) | (labels >= num_classes))]
    if labels.shape != size or wrong.size:
        got = f"label {wrong[0]}" if wrong.size else f"{labels.shape}"
        raise ValueError(
            f"{path} must be of its picture's size {size}, with labels below {num_classes} or {ignored}, got {got}"
        )
    return np.where(labels == ignored, num_classes, labels)


def _paint_objects(record: Mapping[str, Any], size: tuple[int, int], *, num_classes: int) -> NDArray[np.int64]:
    labels = np.full(size, num_classes, dtype=np.int64)
    objects = [(entry, decode_segmentation(entry["segmentation"], *size)) for entry in record["annotations"]]
    # crowd regions lie under everything, and of two objects the smaller one is in front
    for entry, mask in sorted(objects, key=lambda pair: (not pair[0].get("iscrowd", 0), -int(pair[1].sum()))):
        labels[mask] = entry["category_id"]
    return labels


def _cell(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.1f}"
