"""Masks that were written to a COCO file as the labels of a run."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, build_detection_train_loader
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from pycocotools import mask as mask_coding

from s2uniseg_d2.core.ops.upscale import masks_to_pixels
from s2uniseg_d2.data import MultiViewMapper, build_train_loader, resolve_dataset
from s2uniseg_d2.data.pictures import read_picture
from s2uniseg_d2.engine.hooks import LabelledLoader
from s2uniseg_d2.engine.trainer import Trainer
from s2uniseg_d2.labeling.maker import PseudoMaskMaker
from s2uniseg_d2.pseudo_masks import main
from tests.tiny import tiny_config, tiny_words, write_pictures

LAST = "3.png"


@pytest.fixture(autouse=True)
def _clean_catalogs():
    before = set(DatasetCatalog), set(MetadataCatalog)
    yield
    for catalog, names in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        for name in set(catalog) - names:
            catalog.remove(name)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures", size=(120, 82))


@pytest.fixture
def cfg(tmp_path):
    # 82 / 120 of 96 pixels: the global view ends inside a token
    return tiny_config(OUTPUT_DIR=tmp_path / "out", SOLVER__MAX_ITER=3, MODEL__UNIAP__TAUS="(0.95, 0.9, 0.8)")


@pytest.fixture
def online(cfg, pictures):
    """What the teacher of a new run says of every picture alone, by file name."""
    torch.manual_seed(0)
    model = build_model(cfg)
    cfg.DATASETS.TRAIN = (f"folder:{pictures}",)
    mapper = MultiViewMapper(cfg, True)
    items = [mapper({"file_name": str(path)}) for path in sorted(pictures.glob("*.png"))]
    return model, {item["file_name"]: (item, model.label([item])[0]) for item in items}


def write_labels(path, labelled):
    """A COCO file of the masks, each picture's nearest pixels; the last picture gets none."""
    images, annotations = [], []
    for number, (name, (item, labels)) in enumerate(labelled.items(), start=1):
        size = item["height"], item["width"]
        valid = tuple(side / 4 for side in item["image"].shape[1:])
        images.append({"id": number, "file_name": name.rpartition("/")[2], "height": size[0], "width": size[1]})
        if name.endswith(LAST):
            continue
        for kind in ("instance", "semantic"):
            found = getattr(labels, kind)
            for mask, level in zip(
                masks_to_pixels(found.masks, valid, size).numpy(), found.level.tolist(), strict=True
            ):
                coded = mask_coding.encode(np.asfortranarray(mask.astype(np.uint8)))
                more = {
                    "area": int(mask.sum()),
                    "bbox": mask_coding.toBbox(coded).tolist(),
                    "kind": kind,
                    "level": level,
                }
                coded["counts"] = coded["counts"].decode()
                common = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0}
                annotations.append({**common, "segmentation": coded, **more})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def offline_cfg(cfg, online, pictures, tmp_path):
    path = write_labels(tmp_path / "labels.json", online[1])
    cfg.DATASETS.TRAIN = (f"coco:{path}:{pictures}",)
    cfg.INPUT.OFFLINE_LABELS = True
    return cfg


def test_offline_labels_are_the_online_ones(offline_cfg, online, monkeypatch):
    model, labelled = online
    monkeypatch.setattr(model, "labeler", None)  # UniAP is not asked
    seen = set()
    with EventStorage() as storage:
        loader = LabelledLoader(build_train_loader(offline_cfg), model, None)
        for batch in itertools.islice(loader, 2):
            for item in batch:
                seen.add(item["file_name"])
                wanted = labelled[item["file_name"]][1]
                for kind, other in zip(item["pseudo"], wanted, strict=True):
                    if item["file_name"].endswith(LAST):
                        assert kind.masks.shape == (0, 24, 17)
                        assert kind.embeddings.shape == (0, 48)
                        continue
                    assert len(kind.masks) > 1
                    assert torch.equal(kind.masks, other.masks)
                    assert torch.equal(kind.level, other.level)
                    torch.testing.assert_close(kind.embeddings, other.embeddings, atol=1e-5, rtol=0)
        assert storage.latest()["labels/dropped_masks"][0] == 0
    assert len(seen) == 4
    assert (loader.num_masks, loader.num_dropped) == (
        sum(len(k.level) for n in seen for k in labelled[n][1] if LAST not in n),
        0,
    )


def test_a_run_with_offline_labels_trains_and_counts_them(offline_cfg, caplog, monkeypatch):
    offline_cfg.MODEL.UNIAP.MIN_TOKENS = 30
    trainer = Trainer(offline_cfg)
    monkeypatch.setattr(trainer.model, "labeler", None)
    trainer.resume_or_load(resume=False)
    before = [p.detach().clone() for p in trainer.model.sem_seg_head.parameters()]
    with caplog.at_level("INFO", logger="s2uniseg_d2"):
        trainer.train()
    lines = [json.loads(line) for line in Path(offline_cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()]
    losses = {key: value for line in lines for key, value in line.items() if key.startswith("loss_")}
    assert {"loss_query_sd", "loss_mask_ins", "loss_dice_sem"} <= set(losses)
    assert np.isfinite(list(losses.values())).all()
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.model.sem_seg_head.parameters(), strict=True))
    recorded = {key: value for line in lines for key, value in line.items()}
    assert recorded["labels/dropped_masks"] > 0
    assert recorded["labels/instance_masks"] > 0
    (said,) = [record for record in caplog.records if record.message.startswith("Offline labels: ")]
    assert said.args[0] > 0
    assert said.args[1] > 0
    # the loader is its own again
    assert not isinstance(trainer.data_loader, LabelledLoader)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, in Detectron2
def test_detectron2s_own_loader_reads_the_file(offline_cfg, online):
    name = resolve_dataset(offline_cfg.DATASETS.TRAIN[0])
    mapper = DatasetMapper(
        is_train=True, augmentations=[], image_format="RGB", use_instance_mask=True, instance_mask_format="bitmask"
    )
    loader = build_detection_train_loader(
        DatasetCatalog.get(name), mapper=mapper, total_batch_size=3, num_workers=0, aspect_ratio_grouping=False
    )
    for batch in itertools.islice(loader, 2):
        for item in batch:
            labels = online[1][item["file_name"]][1]
            if item["file_name"].endswith(LAST):
                assert len(item["instances"]) == 0
                continue
            assert len(item["instances"]) == sum(len(kind.level) for kind in labels)
            valid = tuple(side / 4 for side in online[1][item["file_name"]][0]["image"].shape[1:])
            wanted = masks_to_pixels(labels.instance.masks, valid, (120, 82))
            assert torch.equal(item["instances"].gt_masks.tensor[: len(wanted)], wanted)


def test_what_the_command_writes_is_what_a_run_learns_from(cfg, pictures, tmp_path, monkeypatch):
    words = tiny_words(MODEL__UNIAP__TAUS="(0.95, 0.9, 0.8)")
    assert (
        main(["--input", str(pictures), "--output", str(tmp_path / "labels.json"), "--weights", "", "--", *words]) == 0
    )
    maker = PseudoMaskMaker.from_pretrained("", overrides=words)
    cfg.DATASETS.TRAIN, cfg.INPUT.OFFLINE_LABELS = (f"coco:{tmp_path / 'labels.json'}:{pictures}",), True
    trainer = Trainer(cfg)
    monkeypatch.setattr(trainer.model, "labeler", None)
    for item in next(iter(trainer.data_loader)):
        picture = read_picture(item["file_name"])
        (grid,) = maker.label_grids([maker.resize(picture)], [picture.shape[:2]])
        for kind, wanted in zip(item["pseudo"], grid.labels, strict=True):
            assert len(kind.masks) > 1
            assert torch.equal(kind.masks, wanted.masks)
            assert torch.equal(kind.level, wanted.level)
    trainer.resume_or_load(resume=False)
    trainer.train()
    lines = [json.loads(line) for line in Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()]
    assert np.isfinite([value for line in lines for key, value in line.items() if key.startswith("loss_")]).all()
    assert any("loss_query_sd" in line for line in lines)
