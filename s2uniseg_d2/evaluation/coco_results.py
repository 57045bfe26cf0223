"""Predicted instances as COCO results, masks run-length encoded."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from detectron2.structures import BoxMode, Instances
from numpy.typing import NDArray
from pycocotools import mask as mask_coding
from torch import Tensor

Result = dict[str, Any]

_CHUNK_PIXELS = 1 << 22  # of a few masks, which stay in the processor's cache


def encode_instances(instances: Instances, image_id: Any) -> list[Result]:
    """Return one COCO result per instance: what Detectron2's ``instances_to_coco_json`` gives, sooner.

    Args:
        instances: with ``pred_boxes``, ``scores``, ``pred_classes`` and perhaps ``pred_masks`` of (n, H, W) bool, on
            any device.
        image_id: the picture's.

    Returns:
        ``image_id``, ``category_id`` (the class number as it is), ``bbox`` (XYWH), ``score`` and, where there are
        masks, ``segmentation``, in the order of the instances.

    Raises:
        ValueError: if a score is not finite.
    """
    if len(instances) == 0:
        return []
    scores = instances.scores.cpu()
    if not torch.isfinite(scores).all():
        raise ValueError(f"scores of image_id {image_id!r} must be finite, got {scores[~torch.isfinite(scores)][0]}")
    boxes = BoxMode.convert(instances.pred_boxes.tensor.cpu().numpy(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
    columns = zip(instances.pred_classes.tolist(), boxes, scores.tolist(), strict=True)
    results: list[Result] = [
        {"image_id": image_id, "category_id": label, "bbox": box, "score": score} for label, box, score in columns
    ]
    if instances.has("pred_masks"):
        for result, code in zip(results, encode_masks(instances.pred_masks), strict=True):
            result["segmentation"] = code
    return results


def encode_masks(masks: Tensor) -> list[dict[str, Any]]:
    """Return the run lengths of ``(n, H, W)`` bool masks on any device, ``counts`` as text that JSON can hold.

    The same codes as ``pycocotools.mask.encode``, which reads every mask down its columns, some times sooner for masks
    of few runs: a mask is read in its box alone, and only where it begins or ends is put in the columns' order. Memory
    for a few masks beside the argument.
    """
    codes: list[dict[str, Any]] = []
    if masks.numel() == 0:
        return codes
    height, width = masks.shape[1:]
    pixels = height * width
    for part in masks.split(max(1, _CHUNK_PIXELS // pixels)):
        for mask in part.bool().cpu().numpy():
            counts = np.diff(_starts_of_runs(mask), prepend=0, append=pixels).tolist()
            codes.append(mask_coding.frPyObjects({"size": [height, width], "counts": counts}, height, width))
    for code in codes:
        code["counts"] = code["counts"].decode()
    return codes


def _starts_of_runs(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Where an ``(H, W)`` mask, read down its columns, differs from the cell before; the first follows on False."""
    height, width = mask.shape
    left, top, columns, rows = cv2.boundingRect(np.ascontiguousarray(mask).view(np.uint8))
    box = mask[top : top + rows, left : left + columns]
    changes = np.zeros((rows + 1, columns), dtype=np.bool_)  # from the cell above, or from False outside of the box
    changes[:-1] = box
    changes[1:] ^= box
    row, column = np.divmod(np.flatnonzero(changes), max(columns, 1))
    starts = np.sort((column + left) * height + row + top)
    if rows == height:
        # what ends with a column and goes on in the next is one run; what ends with the last one ends there anyway
        is_new = np.diff(starts, prepend=-1) != 0
        starts = starts[is_new & np.append(is_new[1:], True)]
    return starts[starts < height * width]
