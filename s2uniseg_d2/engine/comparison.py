"""Pictures of what the model says beside the teacher's masks and the truth."""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import inference_context
from detectron2.structures import BitMasks, PolygonMasks
from numpy.typing import NDArray
from pycocotools import mask as mask_coding
from torch import nn

from s2uniseg_d2.core.structures import PseudoMasks
from s2uniseg_d2.data.center_crop import CenterCrop
from s2uniseg_d2.evaluation.png_maps import read_ids
from s2uniseg_d2.evaluation.semantic import load_label_map

from .hooks import unwrap
from .panel import ComparisonRow


@torch.no_grad()
def comparison_rows(
    model: nn.Module,
    registered_name: str,
    loader: Iterable[list[dict[str, Any]]],
    label_loader: Iterable[list[dict[str, Any]]] | None,
    count: int,
    *,
    predict: Callable[[Sequence[dict[str, Any]]], list[dict[str, Any]]] | None = None,
    crop: CenterCrop | None = None,
) -> list[ComparisonRow]:
    """One row for each of the first ``count`` pictures of a loader: picture, labels, predictions and truths.

    Args:
        model: an S2UniSeg, in any mode, which it keeps.
        registered_name: of the data set, for its truth.
        loader: of pictures of the data set, at the size that predictions are made at.
        label_loader: the same at the size that the teacher labels at in training; None leaves the labels out.
        count: how many pictures.
        predict: makes the predictions, by default the model itself.
        crop: what the loader cuts from the pictures; the truths are cut alike.
    """
    records = {item["file_name"]: item for item in DatasetCatalog.get(registered_name)}
    ignored = MetadataCatalog.get(registered_name).get("ignore_label", 255)
    network = unwrap(model)
    rows = []
    with inference_context(network):
        batches = (
            ((batch, None) for batch in loader) if label_loader is None else zip(loader, label_loader, strict=True)
        )
        for batch, label_batch in itertools.islice(batches, count):
            labels = [None] * len(batch) if label_batch is None else network.label(label_batch)
            results = (predict or network.predict)(batch)
            for item, shown, result, found in zip(batch, label_batch or batch, results, labels, strict=True):
                instances = result["instances"].to("cpu")
                record = records.get(item["file_name"], {})
                whole = None if crop else _decode(record.get("annotations"), item["height"], item["width"])
                rows.append(
                    ComparisonRow(
                        image=shown["image"],
                        pseudo_instances=None if found is None else _coarse_half(found.instance),
                        instances=instances.pred_masks,
                        scores=instances.scores,
                        semantic=result["sem_seg_labels"].cpu(),
                        panoptic=result["panoptic_seg"][0].cpu(),
                        truth=whole,
                        semantic_truth=_semantic_truth(record, crop, ignored),
                        panoptic_truth=None if crop else _panoptic_truth(record),
                    )
                )
    return rows


def _semantic_truth(record: dict[str, Any], crop: CenterCrop | None, ignored: int) -> NDArray[np.int64] | None:
    if "sem_seg_file_name" not in record:
        return None
    labels = load_label_map(record["sem_seg_file_name"])
    cut = labels if crop is None else crop(labels)
    return np.where(cut == ignored, -1, cut)


def _panoptic_truth(record: dict[str, Any]) -> NDArray[np.int64] | None:
    return read_ids(record["pan_seg_file_name"]) if "pan_seg_file_name" in record else None


def picture_name(dataset_name: str) -> str:
    """A file name for a data set's pictures: its kind, its last folder and a number that tells equal ones apart."""
    kind, _, rest = dataset_name.partition(":")
    words = re.findall(r"[0-9A-Za-z]+", f"{kind} {Path(rest).name}")
    return "-".join([*words, f"{zlib.crc32(dataset_name.encode()):08x}"])


def _coarse_half(masks: PseudoMasks) -> NDArray[np.bool_]:
    """The masks of the coarser layers; all layers together would hide each other."""
    level = masks.level
    kept = masks.masks[level >= level.float().median()] if len(level) else masks.masks
    return np.asarray(kept.cpu().numpy(), dtype=bool)


def _decode(annotations: list[dict[str, Any]] | None, height: int, width: int) -> NDArray[np.bool_] | None:
    if annotations is None:
        return None
    masks = [np.zeros((0, height, width), dtype=bool)]
    for annotation in annotations:
        segmentation = annotation.get("segmentation")
        if isinstance(segmentation, dict):
            coded = segmentation
            if isinstance(coded["counts"], list):
                coded = mask_coding.frPyObjects(coded, height, width)
            masks.append(mask_coding.decode(coded)[None].astype(bool))
        elif segmentation:
            polygons = PolygonMasks([segmentation])
            masks.append(BitMasks.from_polygon_masks(polygons, height, width).tensor.numpy())
    return np.concatenate(masks)
