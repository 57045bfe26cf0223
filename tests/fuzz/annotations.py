"""Targets: annotation files, label files, and what the label command wrote before."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as mask_coding

from s2uniseg_d2.data import resolve_dataset
from s2uniseg_d2.data.datasets import load_train_records
from s2uniseg_d2.data.loaders import load_test_records
from s2uniseg_d2.data.offline_labels import OfflineLabelReader, check_offline_records
from s2uniseg_d2.data.panoptic_json import load_panoptic, panoptic_classes, read_panoptic_json
from s2uniseg_d2.data.segmentation import decode_segmentation
from s2uniseg_d2.evaluation.class_mapping import load_mappings
from s2uniseg_d2.labeling.journal import Journal, Tally
from s2uniseg_d2.labeling.merge import merge_shards
from tests.fuzz.harness import Target
from tests.fuzz.mutations import mutated_bytes, mutated_tree

SIDE = 8
RUNS = {"size": [SIDE, SIDE], "counts": [10, 4, 4, 4, 42]}
PACKED = {"size": [SIDE, SIDE], "counts": mask_coding.frPyObjects(RUNS, SIDE, SIDE)["counts"].decode()}
POLYGON = [[1.0, 1.0, 6.0, 1.0, 6.0, 6.0, 1.0, 6.0]]


def annotation(number, segmentation, **more):
    box = {"area": 16, "bbox": [1, 1, 5, 5], "iscrowd": 0, "category_id": 1, "image_id": 1 + number % 2}
    return {"id": number, "segmentation": segmentation, **box, **more}


COCO = {
    "images": [{"id": i, "file_name": f"{i}.png", "height": SIDE, "width": SIDE} for i in (1, 2)],
    "annotations": [
        annotation(1, POLYGON),
        annotation(2, RUNS, iscrowd=1),
        annotation(3, PACKED, kind="semantic", level=1),
        annotation(4, POLYGON, kind="instance", level=0),
    ],
    "categories": [{"id": 1, "name": "thing"}, {"id": 7, "name": "other"}],
}
PANOPTIC = {
    "images": COCO["images"],
    "annotations": [
        {
            "image_id": i,
            "file_name": f"{i}.png",
            "segments_info": [{"id": 5, "category_id": 1, "area": 4, "iscrowd": 0}],
        }
        for i in (1, 2)
    ],
    "categories": [{"id": 1, "name": "thing", "isthing": 1}, {"id": 7, "name": "stuff", "isthing": 0}],
}
CLASSES = panoptic_classes(PANOPTIC["categories"])
MAPPINGS = {
    "classes": ["a", "b"],
    "mappings": [{"name": "hungarian", "fitted_on": "x", "votes": 3, "assignment": [0, 1, -1]}],
}


def write(folder: Path, name: str, case: object) -> Path:
    text = case if isinstance(case, bytes) else json.dumps(case).encode()
    (folder / name).write_bytes(text)
    for number in (1, 2):
        Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(folder / f"{number}.png")
    return folder / name


def files_of(tree: object) -> st.SearchStrategy:
    """Trees with changed values, and the bytes of the sound one with changed bits."""
    trees = mutated_tree(st.just(tree))
    return st.one_of(trees, trees, trees, mutated_bytes(st.just(json.dumps(tree).encode())))


def run_coco(case: object, folder: Path) -> object:
    """Read it for training and for evaluation, and decode all masks."""
    name = resolve_dataset(f"coco:{write(folder, 'a.json', case)}:{folder}")
    for record in load_test_records(name):
        for entry in record["annotations"]:
            mask = decode_segmentation(entry["segmentation"], record["height"], record["width"])
            assert mask.shape == (record["height"], record["width"])
    return load_train_records([name], needs_annotations=False)


def run_offline(case: object, folder: Path) -> object:
    """Read it as labels of a training run, and bring its masks to the teacher's grid."""
    name = resolve_dataset(f"coco:{write(folder, 'a.json', case)}:{folder}")
    records = load_train_records([name], needs_annotations=True)
    check_offline_records([name], records)
    reader = OfflineLabelReader(min_tokens=1)
    for place in range(len(records)):
        labels = reader(records[place], (SIDE, SIDE), (16, 16)).labels
        assert labels.instance.masks.shape[1:] == (4, 4)
    return records


def run_panoptic(case: object, folder: Path) -> object:
    path = write(folder, "p.json", case)
    read_panoptic_json(path)
    return load_panoptic(path, folder, folder, CLASSES)


def run_mappings(case: object, folder: Path) -> object:
    return load_mappings(write(folder, "m.json", case))


SETTINGS = {"kinds": ["instance", "semantic"], "embeddings": "", "embedding_dim": 4, "image_size": 64}


def label_file(part: int) -> bytes:
    """What the label command writes of one of two shards."""
    info = {
        "description": "x", "root": "x", "settings": {**SETTINGS, "shard": f"{part}/2"}, "labelled": 1,
        "skipped": [{"id": part + 2, "file_name": "b.png", "reason": "bad"}], "annotations": 1, "vanished": 0,
        "embeddings": None,
    }  # fmt: skip
    image = json.dumps({"id": part, "file_name": f"{part}.png", "height": SIDE, "width": SIDE})
    item = json.dumps(
        {"id": 1, "image_id": part, "segmentation": PACKED, "category_id": 1, "kind": "instance", "level": 0}
    )
    head = f'{{"info": {json.dumps(info)},\n"categories": [],\n"images": [\n{image}\n],\n'
    return f'{head}"annotations": [\n{item}\n]}}\n'.encode()


@st.composite
def label_files(draw: st.DrawFn) -> list[bytes]:
    files = [label_file(1), label_file(2)]
    if draw(st.booleans()):
        files[1] = draw(mutated_bytes(st.just(files[1])))
    else:
        first, rest = files[1].split(b",\n", 1)
        info = draw(mutated_tree(st.just(json.loads(first.removeprefix(b'{"info": ')))))
        files[1] = b'{"info": ' + json.dumps(info).encode() + b",\n" + rest
    return files


def run_merge(case: list[bytes], folder: Path) -> object:
    paths = [folder / f"{number}.json" for number in range(len(case))]
    for path, data in zip(paths, case, strict=True):
        path.write_bytes(data)
    return merge_shards(paths, folder / "out.json")


def journal_bytes(folder: Path) -> bytes:
    journal = Journal(folder / "sound.journal", {"a": 1})
    for batch in range(3):
        journal.append(batch, Tally(1, 0, 2, 0), b'{"images": []}')
    journal.close()
    return (folder / "sound.journal").read_bytes()


def run_journal(case: object, folder: Path) -> object:
    """Go on from a journal whose bytes were changed by ``case``, a function."""
    data, place = bytearray(journal_bytes(folder)), case[0]
    where = place % len(data)
    changed = {"flip": data[:where] + bytes([data[where] ^ case[2]]) + data[where + 1 :], "cut": data[:where]}
    (folder / "j").write_bytes(bytes(changed.get(case[1], data[:where] + case[3] + data[where:])))
    journal = Journal(folder / "j", {"a": 1})
    try:
        assert len(list(journal.contents())) == journal.batches <= 4
        journal.append(journal.batches, Tally(1), b"{}")
    finally:
        journal.close()
    return journal


TARGETS = [
    Target("COCO files", files_of(COCO), run_coco, 120),
    Target("labels for training", files_of(COCO), run_offline, 120),
    Target("panoptic files", files_of(PANOPTIC), run_panoptic, 90),
    Target("class mappings", files_of(MAPPINGS), run_mappings, 40),
    Target("merged label files", label_files(), run_merge, 50),
    Target(
        "journals",
        st.tuples(
            st.integers(0, 300), st.sampled_from(["flip", "cut", "put_in"]), st.integers(1, 255), st.binary(max_size=9)
        ),
        run_journal,
        30,
    ),
]
