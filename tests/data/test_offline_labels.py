from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_coding

from s2uniseg_d2.config import load_config
from s2uniseg_d2.core.ops.upscale import cells_of_pixels, masks_to_pixels
from s2uniseg_d2.data import MultiViewMapper, PictureError, build_train_loader
from s2uniseg_d2.data.offline_labels import OfflineLabelReader, check_offline_records


def annotate(pixels, **more):
    coded = mask_coding.encode(np.asfortranarray(np.asarray(pixels, dtype=np.uint8)))
    return {"segmentation": {**coded, "counts": coded["counts"].decode()}, **more}


def record(annotations, size, name="a.png"):
    return {"file_name": name, "height": size[0], "width": size[1], "annotations": annotations}


def left_half(size):
    pixels = np.zeros(size, bool)
    pixels[:, : size[1] // 2] = True
    return pixels


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.floats(0.25, 3), st.integers(0, 999))
def test_masks_written_with_nearest_come_back_as_they_were(view_height, view_width, factor, seed):
    view, valid = (view_height, view_width), (view_height / 4, view_width / 4)
    size = (max(1, round(factor * view_height)), max(1, round(factor * view_width)))
    masks = (
        torch.rand(6, -(-view_height // 4), -(-view_width // 4), generator=torch.Generator().manual_seed(seed)) > 0.5
    )
    pixels = masks_to_pixels(masks, valid, size)
    seen = pixels.flatten(1).any(dim=1)
    written = [annotate(mask) for mask in pixels[seen].numpy()]
    labels, dropped = OfflineLabelReader(min_tokens=1)(record(written, size), size, view)
    # a cell that holds no pixel's centre was never written: rows and columns that hold one must come back
    rows, columns = (cells_of_pixels(v, s).unique() for v, s in zip(valid, size, strict=True))
    assert torch.equal(labels.instance.masks[:, rows][:, :, columns], masks[seen][:, rows][:, :, columns])
    assert dropped == 0


def test_a_cell_belongs_to_a_mask_that_holds_half_of_it():
    pixels = np.zeros((8, 12), bool)
    pixels[:, 4:6] = True  # half of the middle cells
    pixels[0, 8:10] = pixels[4:6, 8:12] = True  # an eighth of one cell, half of another
    labels, _ = OfflineLabelReader(min_tokens=1)(record([annotate(pixels)], (8, 12)), (8, 12), (8, 12))
    assert labels.instance.masks.tolist() == [[[False, True, False], [False, True, True]]]


def test_polygons_are_read_and_pictures_coarser_than_the_grid_are_sampled():
    polygon = {"segmentation": [[0, 0, 3, 0, 3, 2, 0, 2]]}
    labels, dropped = OfflineLabelReader()(record([polygon], (4, 6)), (4, 6), (64, 96))
    wanted = torch.zeros(16, 24, dtype=torch.bool)
    wanted[:8, :12] = True
    assert torch.equal(labels.instance.masks, wanted[None])
    assert dropped == 0


def test_kinds_and_levels_are_kept_fine_to_coarse_and_embeddings_are_left_open():
    size = (16, 16)
    full, half = np.ones(size), left_half(size)
    written = [
        annotate(full, level=2),
        annotate(half, kind="semantic", level=1),
        annotate(half, kind="instance"),
        annotate(1 - half, level=2),
        annotate(full, iscrowd=1),
    ]
    (instance, semantic), dropped = OfflineLabelReader()(record(written, size), size, size)
    assert instance.level.tolist() == [0, 2, 2]
    assert instance.masks.flatten(1).sum(dim=1).tolist() == [8, 16, 8]
    assert semantic.level.tolist() == [1]
    assert (instance.embeddings.shape, semantic.embeddings.shape) == ((3, 0), (1, 0))
    assert instance.level.dtype == torch.int64
    assert dropped == 0


@pytest.mark.parametrize(("stride", "side_px", "kept"), [(4, 8, 0), (4, 12, 1), (16, 32, 0), (16, 36, 1)])
def test_small_masks_are_dropped_and_counted_in_tokens_of_the_feature_stride(stride, side_px, kept):
    pixels = np.zeros((64, 64), bool)
    pixels[:side_px, :side_px] = True
    reader = OfflineLabelReader(min_tokens=5, feature_stride=stride)
    labels, dropped = reader(
        record([annotate(pixels), annotate(pixels, kind="semantic")], (64, 64)), (64, 64), (64, 64)
    )
    assert [len(kind.level) for kind in labels] == [kept, kept]
    assert dropped == 2 * (1 - kept)


def test_no_annotations_give_no_masks():
    (instance, semantic), dropped = OfflineLabelReader()(record([], (30, 50)), (30, 50), (60, 100))
    assert instance.masks.shape == semantic.masks.shape == (0, 15, 25)
    assert instance.level.shape == (0,)
    assert dropped == 0


def test_labels_for_a_picture_of_another_size_are_refused():
    with pytest.raises(PictureError, match=r"picture a.png is 5 x 4 .*labels are made for 6 x 4"):
        OfflineLabelReader()(record([], (4, 6)), (4, 5), (16, 20))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"min_tokens": 0}, "min_tokens must be at least 1, got 0"), ({"feature_stride": 8}, "must be 4 or 16, got 8")],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        OfflineLabelReader(**arguments)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([record([{"segmentation": []}], (4, 4))], "must have a segmentation, got none in a.png"),
        ([record([annotate([[1]], kind="thing")], (1, 1))], r"kind .* one of \('instance', 'semantic'\), got 'thing'"),
        ([record([annotate([[1]], level=-1)], (1, 1))], "level .* whole number from 0, got -1 in a.png"),
        ([record([annotate([[1]], level=True)], (1, 1))], "level .* got True"),
        ([record([], (4, 4))], "needs masks, got no annotation in 1 pictures of x"),
        ([{"file_name": "b.png"}, record([], (4, 4))], "1 of 2 pictures of x have none listed: b.png"),
    ],
)
def test_records_that_cannot_be_labels_are_refused(records, message):
    with pytest.raises(ValueError, match=message):
        check_offline_records(["x"], records)


@pytest.fixture
def annotated(tmp_path, write_noise):
    """A COCO file for two pictures, the second without annotations."""
    for name in "ab":
        write_noise(f"pictures/{name}.png", 64, 48)
    shape = left_half((64, 48))
    common = {"image_id": 1, "category_id": 1, "area": 1536, "bbox": [0, 0, 24, 64], "iscrowd": 0}
    content = {
        "images": [{"id": i + 1, "file_name": f"{n}.png", "height": 64, "width": 48} for i, n in enumerate("ab")],
        "annotations": [
            {"id": 1, **common, **annotate(shape, kind="semantic", level=3)},
            {"id": 2, **common, **annotate(~shape, level=1)},
        ],
        "categories": [{"id": 1, "name": "object"}],
    }
    (tmp_path / "labels.json").write_text(json.dumps(content))
    return f"coco:{tmp_path / 'labels.json'}:{tmp_path / 'pictures'}"


@pytest.fixture
def cfg(annotated):
    cfg = load_config("", [])
    cfg.DATASETS.TRAIN = (annotated,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.INPUT.GLOBAL_LONGEST_PX = 128
    cfg.INPUT.VIEWS.SIZE_PX = 32
    return cfg


def test_a_loader_delivers_the_annotations_when_asked_to(cfg, caplog):
    plain = next(iter(build_train_loader(cfg)))
    assert not any("pseudo" in item for item in plain)
    cfg.INPUT.OFFLINE_LABELS = True
    with caplog.at_level("INFO"):
        batch = sorted(next(iter(build_train_loader(cfg))), key=lambda item: item["file_name"])
    assert "Labels are the 1 instance and 1 semantic masks of coco:" in caplog.text
    wanted = torch.from_numpy(left_half((32, 24)))
    instance, semantic = batch[0]["pseudo"]
    assert torch.equal(instance.masks, ~wanted[None])
    assert torch.equal(semantic.masks, wanted[None])
    assert (instance.level.tolist(), semantic.level.tolist()) == ([1], [3])
    assert batch[1]["pseudo"].instance.masks.shape == (0, 32, 24)
    assert [item["dropped_masks"] for item in batch] == [0, 0]
    # the views are the same ones
    assert torch.equal(batch[0]["views"], next(i for i in plain if i["file_name"] == batch[0]["file_name"])["views"])


def test_pictures_without_any_annotations_are_refused_before_the_run(cfg, tmp_path):
    cfg.INPUT.OFFLINE_LABELS = True
    cfg.DATASETS.TRAIN = (f"folder:{tmp_path / 'pictures'}",)
    with pytest.raises(ValueError, match=r"INPUT\.OFFLINE_LABELS needs data sets with annotations"):
        build_train_loader(cfg)


def test_the_mapper_reads_its_settings_from_uniaps(cfg):
    assert MultiViewMapper(cfg, True).offline_labels is None
    cfg.INPUT.OFFLINE_LABELS, cfg.MODEL.UNIAP.MIN_TOKENS, cfg.MODEL.UNIAP.FEATURE_STRIDE = True, 7, 16
    reader = MultiViewMapper(cfg, True).offline_labels
    assert (reader.min_tokens, reader.cells_per_token) == (7, 4)
