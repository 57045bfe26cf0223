"""Time COCO AP and AR by both backends on synthetic pictures; one JSON line per case, with the seconds of each part.

python tests/benchmarks/bm_coco_metrics.py --pictures 1000 --masks 100

"index" is making COCO objects of the predictions, "read" taking run lengths into the library, "iou" the overlaps,
"match" all else: matching and accumulating. Seconds are of the processor, on one thread. "encode" is timed apart, on
dense masks of one picture: Detectron2's coding against ours.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances
from pycocotools import mask as mask_coding
from pycocotools.coco import COCO

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from s2uniseg_d2.evaluation import coco_metrics
from s2uniseg_d2.evaluation.coco_results import encode_instances

HEIGHT, WIDTH, CLASSES = 480, 640, 80


def draw_blobs(count: int, generator: np.random.Generator) -> np.ndarray:
    """``(count, 24)`` polygons of twelve points, of sizes as in COCO: half of them small."""
    centres = generator.uniform(0, (WIDTH, HEIGHT), (count, 2))
    radius = np.exp(generator.uniform(np.log(6), np.log(160), (count, 1)))
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    radii = radius * generator.uniform(0.6, 1.4, (count, 12))
    points = centres[:, None] + radii[..., None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return points.clip(0, (WIDTH - 1, HEIGHT - 1)).reshape(count, 24)


def encode(polygons: np.ndarray) -> list[dict[str, object]]:
    codes = mask_coding.frPyObjects(polygons.tolist(), HEIGHT, WIDTH)
    for code in codes:
        code["counts"] = code["counts"].decode()
    return codes


def make_case(
    pictures: int, masks: int, objects: int, classes: int
) -> tuple[dict[str, object], list[dict[str, object]]]:
    """A COCO file and results: half the predictions lie on an object, shifted by a few pixels."""
    generator = np.random.default_rng(0)
    annotations, results = [], []
    for image_id in range(1, pictures + 1):
        truth = draw_blobs(objects, generator)
        labels = generator.integers(1, classes + 1, objects)
        for code, label in zip(encode(truth), labels.tolist(), strict=True):
            entry = {"id": len(annotations) + 1, "image_id": image_id, "category_id": label, "segmentation": code}
            area = float(mask_coding.area(code))
            annotations.append({**entry, "area": area, "iscrowd": 0, "bbox": mask_coding.toBbox(code).tolist()})
        near = generator.integers(0, objects, masks // 2)
        shifted = truth[near] + generator.uniform(-8, 8, (len(near), 1))
        predicted = np.concatenate([shifted.clip(0, HEIGHT - 1), draw_blobs(masks - len(near), generator)])
        named = np.concatenate([labels[near], generator.integers(1, classes + 1, masks - len(near))])
        scores = generator.uniform(size=masks)
        for code, label, score in zip(encode(predicted), named.tolist(), scores.tolist(), strict=True):
            results.append({"image_id": image_id, "category_id": label, "segmentation": code, "score": score})
    images = [{"id": number, "height": HEIGHT, "width": WIDTH} for number in range(1, pictures + 1)]
    categories = [{"id": number, "name": str(number)} for number in range(1, classes + 1)]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def load_truth(content: dict[str, object]) -> COCO:
    truth = COCO()
    truth.dataset = copy.deepcopy(content)
    coco_metrics.complete_truth(truth, ("segm",), "benchmark")
    return truth


def time_backend(
    content: dict[str, object], results: list[dict[str, object]], backend: str
) -> tuple[dict[str, float], dict[str, float]]:
    """Figures and seconds of the parts of one evaluation; the parts are clocked inside the run."""
    seconds = {"index": 0.0, "read": 0.0, "iou": 0.0}

    def clocked(function, part):
        def call(*arguments, **keywords):
            start = time.process_time()
            try:
                return function(*arguments, **keywords)
            finally:
                seconds[part] += time.process_time() - start

        return call

    truth = load_truth(content)
    evaluator = coco_metrics._evaluator(backend)
    parts = {"_prepare": clocked(evaluator._prepare, "read"), "computeIoU": clocked(evaluator.computeIoU, "iou")}
    timed = type("Timed", (evaluator,), parts)
    original = coco_metrics._evaluator, coco_metrics._index_results
    coco_metrics._evaluator = lambda _: (
        lambda *a: timed(*a, **({"rle_iou_max_workers": 1} if "fast" in backend else {}))
    )
    coco_metrics._index_results = clocked(original[1], "index")
    start = time.process_time()
    try:
        figures = coco_metrics.coco_figures(
            coco_metrics.evaluate_coco(truth, results, "segm", max_dets=(1, 10, 100, 1000), backend=backend)
        )
    finally:
        coco_metrics._evaluator, coco_metrics._index_results = original
    seconds["total"] = time.process_time() - start
    seconds["match"] = seconds["total"] - seconds["index"] - seconds["read"] - seconds["iou"]
    return figures, {part: round(value, 3) for part, value in seconds.items()}


def time_encoding(count: int) -> dict[str, object]:
    """Seconds to turn ``count`` dense masks of one picture into results, by Detectron2 and by us."""
    codes = encode(draw_blobs(count, np.random.default_rng(1)))
    instances = Instances((HEIGHT, WIDTH))
    # row by row, as a model makes them
    instances.pred_masks = torch.as_tensor(mask_coding.decode(codes).transpose(2, 0, 1).astype(bool, order="C"))
    instances.pred_boxes = Boxes(torch.as_tensor(mask_coding.toBbox(codes), dtype=torch.float32))
    instances.scores, instances.pred_classes = torch.ones(count), torch.zeros(count, dtype=torch.int64)
    encode_instances(instances[:2], 1)  # the first call of all sets things up
    arrays = Instances((HEIGHT, WIDTH), **(instances.get_fields() | {"pred_masks": instances.pred_masks.numpy()}))
    start = time.process_time()
    theirs = instances_to_coco_json(arrays, 1)
    middle = time.process_time()
    ours = encode_instances(instances, 1)
    end = time.process_time()
    return {"detectron2": round(middle - start, 3), "ours": round(end - middle, 3), "equal": ours == theirs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--masks", type=int, default=100)
    parser.add_argument("--objects", type=int, default=20)
    parser.add_argument("--encode", type=int, nargs="+", default=[100, 1000])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for count in arguments.encode:
        print(json.dumps({"case": "encode", "masks": count, "seconds": time_encoding(count)}), flush=True)
    for name, classes in (("agnostic", 1), ("class-aware", CLASSES)):
        case = make_case(arguments.pictures, arguments.masks, arguments.objects, classes)
        line: dict[str, object] = {"case": name, **vars(arguments)}
        del line["encode"]
        figures = {}
        for backend in coco_metrics.BACKENDS:
            figures[backend], line[backend] = time_backend(*case, backend)
        fast, slow = (figures[backend] for backend in coco_metrics.BACKENDS)
        line["ratio"] = round(line["pycocotools"]["total"] / line["faster_coco_eval"]["total"], 2)
        line["largest_difference"] = max(abs(fast[key] - slow[key]) for key in slow)
        line["AP"] = fast["AP"]
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
