"""Processor seconds that the demo spends per picture outside of the model, by stage; one JSON line per size and count.

    python -m tests.benchmarks.bm_gallery --megapixels 0.2 3 12 --masks 12 100

Scenes are generated: a smooth picture with noise, and ellipses of all sizes as masks. "enlarge" is a part of
``Segmenter.segment``: pictures above 2,048 pixels are predicted at that size. "read" decodes the JPEG. The others are
the parts of ``ResultFiles.add``, which "add" is the sum of. "overlays" holds the JPEG's coding, "floor" that alone.
Figures are medians; seconds are the process's own, all threads together, so that a busy machine counts little.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from s2uniseg_d2.core.ops.masks import mask_boxes
from s2uniseg_d2.data.pictures import read_picture
from s2uniseg_d2.gallery import results
from s2uniseg_d2.segmenter import LARGEST_PX, Segmentation, _enlarge

CLUSTERS = 27
STAGES = {
    "instances": (results.ResultFiles, "_encode_instances"),
    "panoptic": (results.ResultFiles, "_encode_panoptic"),
    "ids": (results, "write_ids"),
    "labels": (results, "write_labels"),
    "overlays": (results.ResultFiles, "_write_overlay"),
    "card": (results, "make_card"),
}


def make_picture(size, seed=0):
    """``(H, W, 3)`` uint8: soft colours and grain, which a JPEG codes about as a photograph."""
    generator = np.random.default_rng(seed)
    soft = cv2.resize(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)
    grain = cv2.resize(generator.integers(0, 24, (size[0] // 2, size[1] // 2, 3), dtype=np.uint8), size[::-1])
    return cv2.add(soft, grain)


def make_scene(size, count, seed=0):
    """All results of a picture: ``count`` ellipses, one in four of them large; segments are what is seen of them."""
    generator = np.random.default_rng(seed)
    height, width = size
    masks = np.zeros((count, height, width), dtype=np.uint8)
    for number, mask in enumerate(masks):
        share = generator.uniform(0.1, 0.3) if number % 4 == 0 else generator.uniform(0.01, 0.08)
        centre = int(generator.integers(width)), int(generator.integers(height))
        axes = int(share * width) + 1, int(share * height * generator.uniform(0.5, 1.5)) + 1
        cv2.ellipse(mask, centre, axes, int(generator.integers(180)), 0, 360, 1, -1)
    clusters = generator.integers(CLUSTERS, size=count)
    instances = Instances(size)
    instances.pred_masks = torch.from_numpy(masks.view(bool))
    instances.pred_boxes = Boxes(mask_boxes(instances.pred_masks))
    instances.scores = torch.linspace(0.9, 0.5, count)
    instances.pred_classes = torch.from_numpy(clusters)
    panoptic, semantic = np.zeros(size, dtype=np.int32), np.full(size, -1, dtype=np.int64)
    for number, mask in enumerate(masks.view(bool)):
        panoptic[mask], semantic[mask] = number + 1, clusters[number]
    areas = np.bincount(panoptic.ravel(), minlength=count + 1)[1:].tolist()
    segments = [
        {"id": k + 1, "isthing": k % 3 > 0, "category_id": int(clusters[k]), "score": 0.75, "area": areas[k]}
        for k in range(count)
        if areas[k]
    ]
    return Segmentation(instances, torch.from_numpy(semantic), torch.from_numpy(panoptic), segments)


def timed(call, spent):
    def wrapper(*arguments, **settings):
        start = time.process_time()
        try:
            return call(*arguments, **settings)
        finally:
            spent.append(time.process_time() - start)

    return wrapper


def measure(megapixels, count, repeats, folder):
    """Median seconds of each stage."""
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    size = height, round(height * 4 / 3)
    scale = min(1.0, LARGEST_PX / max(size))
    found = make_scene(tuple(round(side * scale) for side in size), count)
    picture = make_picture(size)
    coded = folder / "picture.jpg"
    cv2.imwrite(str(coded), picture)
    jpeg = [cv2.IMWRITE_JPEG_QUALITY, results.OVERLAY_QUALITY]
    seconds = defaultdict(list)
    for _ in range(repeats):
        spent = defaultdict(list)
        timed(read_picture, spent["read"])(coded)
        timed(cv2.imencode, spent["floor"])(".jpg", picture, jpeg)
        whole = timed(_enlarge, spent["enlarge"])(found, size) if scale < 1 else found
        with ExitStack() as patches:
            for stage, (owner, name) in STAGES.items():
                stand_in = timed(getattr(owner, name), spent[stage])
                patches.enter_context(mock.patch.object(owner, name, stand_in))
            files = results.ResultFiles(folder / "out", ("instance", "semantic", "panoptic"), CLUSTERS)
            timed(files.add, spent["add"])("picture.jpg", picture, whole, 0.1)
        for stage, values in spent.items():
            seconds[stage].append(sum(values))
    return {stage: round(statistics.median(values), 4) for stage, values in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, nargs="+", default=[0.2, 3, 12])
    parser.add_argument("--masks", type=int, nargs="+", default=[12, 100])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    for megapixels in arguments.megapixels:
        for count in arguments.masks:
            with tempfile.TemporaryDirectory() as folder:
                found = measure(megapixels, count, arguments.repeats, Path(folder))
            print(json.dumps({"megapixels": megapixels, "masks": count, **found}), flush=True)


if __name__ == "__main__":
    main()
