"""Pictures of what the model says beside the teacher's masks and the truth."""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import inference_context
from detectron2.structures import BitMasks, PolygonMasks
from numpy.typing import NDArray
from pycocotools import mask as mask_coding
from torch import nn

from s2uniseg_d2.core.structures import PseudoMasks

from .hooks import unwrap
from .panel import ComparisonRow


@torch.no_grad()
def comparison_rows(
    model: nn.Module,
    registered_name: str,
    loader: Iterable[list[dict[str, Any]]],
    label_loader: Iterable[list[dict[str, Any]]],
    count: int,
) -> list[ComparisonRow]:
    """One row for each of the first ``count`` pictures of a data set: picture, labels, predictions and truth.

    Args:
        model: an S2UniSeg, in any mode, which it keeps.
        registered_name: of the data set, for its truth.
        loader: of the same data set, in order, at the size that predictions are made at.
        label_loader: the same at the size that the teacher labels at in training.
        count: how many pictures.
    """
    truths = {item["file_name"]: item.get("annotations") for item in DatasetCatalog.get(registered_name)}
    network = unwrap(model)
    rows = []
    with inference_context(network):
        for batch, label_batch in itertools.islice(zip(loader, label_loader, strict=True), count):
            pictures = zip(batch, label_batch, network.predict(batch), network.label(label_batch), strict=True)
            for item, shown, result, labels in pictures:
                instances = result["instances"].to("cpu")
                rows.append(
                    ComparisonRow(
                        image=shown["image"],
                        pseudo_instances=_coarse_half(labels.instance),
                        instances=instances.pred_masks,
                        scores=instances.scores,
                        semantic=result["sem_seg_labels"].cpu(),
                        panoptic=result["panoptic_seg"][0].cpu(),
                        truth=_decode(truths.get(item["file_name"]), item["height"], item["width"]),
                    )
                )
    return rows


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
