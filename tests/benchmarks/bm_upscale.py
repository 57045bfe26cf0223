"""How well each way back from the token grid follows the borders of real objects; one JSON line per case.

    python -m tests.benchmarks.bm_upscale --folder ../shared/data/coco64

Each true mask is averaged down to the grid of a picture with a longest side of 512 pixels, kept where more than half of
a cell, brought back by each method and compared with itself: IoU, and boundary IoU (Cheng et al. 2021) at 2 % of the
diagonal and at 3 pixels. Masks below 5 cells are left out, as UniAP leaves them out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import torch

from s2uniseg_d2.core.ops.upscale import UPSCALE_METHODS, masks_to_pixels
from s2uniseg_d2.data.pictures import read_picture
from s2uniseg_d2.data.segmentation import decode_segmentation

MIN_CELLS = 5
LONGEST_PX = 512


def read_truth(folder):
    """Pairs of picture and ``(n, H, W)`` bool truth of a COCO data set, crowds left out."""
    content = json.loads((folder / "instances.json").read_text())
    masks = defaultdict(list)
    for entry in content["annotations"]:
        if not entry["iscrowd"]:
            masks[entry["image_id"]].append(entry["segmentation"])
    for image in content["images"]:
        size = image["height"], image["width"]
        found = [decode_segmentation(segmentation, *size) for segmentation in masks[image["id"]]]
        if found:
            yield read_picture(folder / "images" / image["file_name"]), np.stack(found)


def to_grid(truth, stride):
    """Cells more than half covered, ``(n, h, w)`` bool, and the valid rows and columns."""
    height, width = truth.shape[1:]
    scale = LONGEST_PX / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    grid = tuple(-(-side // stride) for side in size)
    cover = np.zeros((len(truth), grid[0] * stride, grid[1] * stride), np.float32)
    for plane, mask in zip(cover, truth, strict=True):
        plane[: size[0], : size[1]] = cv2.resize(mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA)
    inside = np.zeros(cover.shape[1:], np.float32)
    inside[: size[0], : size[1]] = 1
    blocks = (grid[0], stride, grid[1], stride)
    share = cover.reshape(-1, *blocks).sum(axis=(2, 4)) / inside.reshape(blocks).sum(axis=(1, 3))
    return torch.from_numpy(share > 0.5), (size[0] / stride, size[1] / stride)


def boundary(mask, distance_px):
    """The pixels of a mask within a distance of its border; the picture's rim is a border too."""
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance_px)[1:-1, 1:-1]
    return mask & (inner == 0)


def iou(a, b):
    return float((a & b).sum() / max((a | b).sum(), 1))


def measure(pictures, stride, methods=UPSCALE_METHODS):
    """Mean figures of each method over all masks, and seconds."""
    figures, seconds = {method: [] for method in methods}, dict.fromkeys(methods, 0.0)
    for picture, truth in pictures:
        cells, valid = to_grid(truth, stride)
        large = cells.flatten(1).sum(dim=1) >= MIN_CELLS
        truth = truth[large.numpy()]
        distances = round(0.02 * float(np.hypot(*truth.shape[1:]))), 3
        for method in methods:
            start = time.perf_counter()
            masks = masks_to_pixels(cells[large], valid, truth.shape[1:], method, picture).numpy()
            seconds[method] += time.perf_counter() - start
            for mask, true in zip(masks, truth, strict=True):
                near = [iou(boundary(mask, d), boundary(true, d)) for d in distances]
                figures[method].append((iou(mask, true), *near))
    return {
        method: {
            "method": method,
            "stride": stride,
            "masks": len(rows),
            **{
                name: round(statistics.fmean(values), 4)
                for name, values in zip(
                    ("IoU", "boundary_IoU", "boundary_IoU_3px"), zip(*rows, strict=True), strict=True
                )
            },
            "ms_per_mask": round(1e3 * seconds[method] / len(rows), 2),
        }
        for method, rows in figures.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="with instances.json and images/")
    parser.add_argument("--strides", type=int, nargs="+", default=[4, 8, 16])
    arguments = parser.parse_args()
    for stride in arguments.strides:
        for row in measure(read_truth(arguments.folder), stride).values():
            print(json.dumps(row))


if __name__ == "__main__":
    main()
