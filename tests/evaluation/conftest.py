from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BitMasks, Instances
from PIL import Image
from pycocotools import mask as mask_coding

from s2uniseg_d2.evaluation import identity_mapping

THINGS = {11: "disc", 12: "bar", 13: "star"}  # dataset ids on purpose neither contiguous nor from 0
STUFF = {21: "sky", 22: "sea"}
HEIGHT, WIDTH = 48, 64


@pytest.fixture
def register():
    """Register data sets for one test."""
    names = []

    def add(name, records, **metadata):
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(**metadata)
        names.append(name)
        return name

    yield add
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def draw_scene(generator):
    """A picture's panoptic map and segments: sky over sea, six things of three classes, one crowd, a void corner."""
    panoptic = np.where(np.arange(HEIGHT)[:, None] < HEIGHT // 2, 1, 2) * np.ones((1, WIDTH), dtype=np.int64)
    segments = [{"id": 1, "category_id": 21}, {"id": 2, "category_id": 22}]
    for number in range(7):
        top, left = generator.integers(0, HEIGHT - 16), generator.integers(0, WIDTH - 16)
        rows, columns = generator.integers(6, 16, 2)
        panoptic[top : top + rows, left : left + columns] = 300 + number
        segments.append({"id": 300 + number, "category_id": 11 + number % 3, "iscrowd": int(number == 6)})
    panoptic[:5, :5] = 0
    segments = [{"iscrowd": 0, **s, "area": int((panoptic == s["id"]).sum())} for s in segments]
    return panoptic, [s for s in segments if s["area"]]


@pytest.fixture
def scenes(tmp_path, register):
    """Four generated pictures with instance, semantic and panoptic truth, registered as Detectron2 wants them."""
    generator = np.random.default_rng(7)
    folder = tmp_path / "truth"
    (folder / "panoptic").mkdir(parents=True)
    (folder / "semantic").mkdir()
    images, annotations, panoptic_annotations, records, maps = [], [], [], [], {}
    order = [*THINGS, *STUFF]
    for image_id in (101, 102, 103, 104):
        panoptic, segments = draw_scene(generator)
        maps[image_id] = (panoptic, segments)
        images.append({"id": image_id, "height": HEIGHT, "width": WIDTH, "file_name": f"{image_id}.jpg"})
        semantic = np.full(panoptic.shape, 255, dtype=np.uint8)
        for segment in segments:
            mask = panoptic == segment["id"]
            semantic[mask] = order.index(segment["category_id"])
            if segment["category_id"] in THINGS:
                rle = mask_coding.encode(np.asfortranarray(mask.astype(np.uint8)))
                box = mask_coding.toBbox(rle).tolist()
                rle["counts"] = rle["counts"].decode()
                entry = {"id": len(annotations) + 1, "image_id": image_id, "segmentation": rle, "bbox": box}
                annotations.append(entry | {key: segment[key] for key in ("category_id", "iscrowd", "area")})
        colours = np.stack([panoptic % 256, panoptic // 256, panoptic * 0], axis=-1).astype(np.uint8)
        Image.fromarray(colours).save(folder / "panoptic" / f"{image_id}.png")
        Image.fromarray(semantic).save(folder / "semantic" / f"{image_id}.png")
        listed = {"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": segments}
        panoptic_annotations.append(listed)
        record = {"file_name": f"{image_id}.jpg", "image_id": image_id, "height": HEIGHT, "width": WIDTH}
        records.append(record | {"sem_seg_file_name": str(folder / "semantic" / f"{image_id}.png")})
    things = [{"id": number, "name": name, "isthing": 1} for number, name in THINGS.items()]
    stuff = [{"id": number, "name": name, "isthing": 0} for number, name in STUFF.items()]
    instances = {"images": images, "annotations": annotations, "categories": things}
    (folder / "instances.json").write_text(json.dumps(instances))
    panoptic_truth = {"images": images, "annotations": panoptic_annotations, "categories": things + stuff}
    (folder / "panoptic.json").write_text(json.dumps(panoptic_truth))
    name = register(
        "evaluation_scenes",
        records,
        json_file=str(folder / "instances.json"),
        thing_classes=list(THINGS.values()),
        thing_dataset_id_to_contiguous_id={number: i for i, number in enumerate(THINGS)},
        stuff_classes=[*THINGS.values(), *STUFF.values()],
        ignore_label=255,
        panoptic_json=str(folder / "panoptic.json"),
        panoptic_root=str(folder / "panoptic"),
        stuff_dataset_id_to_contiguous_id={number: i for i, number in enumerate(order)},
    )
    return SimpleNamespace(name=name, folder=folder, records=records, maps=maps, instances=instances)


def make_instances(masks, scores, classes, size=(HEIGHT, WIDTH)):
    instances = Instances(size)
    instances.pred_masks = torch.as_tensor(np.asarray(masks, dtype=bool).reshape(-1, *size))
    instances.pred_boxes = BitMasks(instances.pred_masks).get_bounding_boxes()
    instances.scores = torch.as_tensor(scores, dtype=torch.float32)
    instances.pred_classes = torch.as_tensor(classes, dtype=torch.int64)
    return instances


def predict(scenes, image_id, *, seed=0, rename=None):
    """A model's output near the truth: shifted masks, some extra, with true contiguous classes through ``rename``."""
    generator = np.random.default_rng(seed + image_id)
    order = [*THINGS, *STUFF]
    rename = rename or (lambda label: label)
    panoptic, segments = scenes.maps[image_id]
    masks, scores, classes = [], [], []
    for segment in segments:
        if segment["category_id"] in THINGS:
            for _ in range(2):
                masks.append(np.roll(panoptic == segment["id"], generator.integers(0, 3, 2), axis=(0, 1)))
                scores.append(round(generator.uniform(), 1))  # rounded: ties
                classes.append(rename(order.index(segment["category_id"])))
    moved = np.roll(panoptic, 2, axis=1)
    labels = np.full(panoptic.shape, rename(0))
    infos = []
    for segment in segments:
        label = order.index(segment["category_id"])
        mask = moved == segment["id"]
        labels[mask] = rename(label)
        if mask.any():
            info = {"id": segment["id"], "isthing": label < len(THINGS), "category_id": rename(label), "score": 1.0}
            infos.append(info | {"area": int(mask.sum())})
    return {
        "instances": make_instances(masks, scores, classes),
        "sem_seg_labels": torch.as_tensor(labels),
        "panoptic_seg": (torch.as_tensor(moved.astype(np.int32)), infos),
    }


@pytest.fixture
def predictions(scenes):
    """The records and outputs of :func:`predict` for every picture, with true class numbers."""
    return scenes.records, [predict(scenes, record["image_id"]) for record in scenes.records]


def run(evaluator, inputs, outputs):
    evaluator.reset()
    for entry, output in zip(inputs, outputs, strict=True):
        evaluator.process([entry], [output])
    return evaluator.evaluate()


def identity(num_clusters, num_classes):
    """A mapping of the first pseudo-classes to the classes of their numbers, of the others to none."""
    mapping = identity_mapping(num_clusters)
    mapping.assignment[num_classes:] = -1
    return mapping
