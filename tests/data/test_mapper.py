from __future__ import annotations

import logging
import pickle

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image

from s2uniseg_d2.config import load_config
from s2uniseg_d2.data import (
    InferenceMapper,
    MultiViewMapper,
    PictureError,
    TooManyUnreadableError,
    UnreadablePictureError,
    resolve_dataset,
)
from s2uniseg_d2.data import mapper as mapper_module
from s2uniseg_d2.data.pictures import StoredPicture

PLAIN = {"global_longest_px": 128, "view_px": 32, "photometric": False}


def test_what_comes_out(write_noise):
    path = write_noise("a.png", 60, 90)
    item = MultiViewMapper(global_longest_px=128, view_px=64, num_views=3)({"file_name": str(path), "image_id": 7})
    assert {key: (value.dtype, tuple(value.shape)) for key, value in item.items() if torch.is_tensor(value)} == {
        "image": (torch.uint8, (3, 85, 128)),
        "views": (torch.uint8, (3, 3, 64, 64)),
        "boxes": (torch.float32, (3, 4)),
        "flips": (torch.bool, (3,)),
    }
    assert (item["height"], item["width"], item["file_name"], item["image_id"]) == (60, 90, str(path), 7)
    assert (item["boxes"] >= 0).all()
    assert (item["boxes"][:, 2] <= 128).all()
    assert (item["boxes"][:, 3] <= 85).all()


def test_boxes_and_flips_say_where_each_pixel_of_a_view_comes_from(tmp_path):
    # red grows with the column, green with the row: a view's colours tell their own place
    columns, rows = np.meshgrid(np.arange(250), np.arange(200))
    Image.fromarray(np.stack([columns, rows, rows * 0], axis=2).astype(np.uint8)).save(tmp_path / "ramp.png")
    mapper = MultiViewMapper(global_longest_px=500, view_px=32, num_views=20, photometric=False)
    item = mapper({"file_name": str(tmp_path / "ramp.png")})
    assert 0 < item["flips"].sum() < 20
    centre = (torch.arange(32) + 0.5) / 32
    for view, (x0, y0, x1, y1), flip in zip(item["views"], item["boxes"] / 2, item["flips"], strict=True):
        x = x0 + (x1 - x0) * (centre.flip(0) if flip else centre) - 0.5
        y = y0 + (y1 - y0) * centre - 0.5
        inner = slice(2, -2)  # the filter has nothing beyond the crop to average with
        assert (view[0].float() - x[None, :])[inner, inner].abs().max() < 1.1
        assert (view[1].float() - y[:, None])[inner, inner].abs().max() < 1.1


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_boxes_stay_exact_where_a_large_jpeg_is_reduced(tmp_path, orientation):
    # red grows with the column of the upright picture, green with its row
    columns, rows = np.meshgrid(np.linspace(0, 255, 1237), np.linspace(0, 255, 1019))
    upright = Image.fromarray(np.stack([columns, rows, rows * 0 + 90], axis=2).astype(np.uint8))
    undo = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE}
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    stored.save(tmp_path / "ramp.jpg", exif=exif, quality=100, subsampling=0)
    mapper = MultiViewMapper(global_longest_px=128, view_px=32, num_views=8, photometric=False)
    item = mapper({"file_name": str(tmp_path / "ramp.jpg")})
    assert (item["height"], item["width"]) == (1019, 1237)
    whole = item["image"].float()
    _, height, width = whole.shape
    # what the global view shows along its axes; where a block of the JPEG was cut short, its ramp is a little uneven
    across, down = whole[0, height // 2].numpy(), whole[1, :, width // 2].numpy()
    assert np.abs(across - (np.arange(width) + 0.5) / width * 255).max() < 2.5
    for view, (x0, y0, x1, y1), flip in zip(item["views"], item["boxes"], item["flips"], strict=True):
        centre = (torch.arange(32) + 0.5) / 32
        x = np.interp(x0 + (x1 - x0) * (centre.flip(0) if flip else centre), np.arange(width) + 0.5, across)
        y = np.interp(y0 + (y1 - y0) * centre, np.arange(height) + 0.5, down)
        inner = slice(2, -2)
        for gap in ((view[0].numpy() - x[None, :])[inner, inner], (view[1].numpy() - y[:, None])[inner, inner]):
            assert np.abs(gap).max() < 2.5
            assert np.abs(gap.mean()) < 0.4


def test_reduced_and_whole_decoding_show_the_same(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    coarse.resize((1600, 1200), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", quality=95)
    mapper = MultiViewMapper(global_longest_px=128, view_px=32, num_views=4, photometric=False)
    record = {"file_name": str(tmp_path / "a.jpg"), "draw": 1}
    seen = []
    original = StoredPicture.read

    def read(self, reduction=1):
        seen.append(reduction)
        return original(self, reduction)

    monkeypatch.setattr(StoredPicture, "read", read)
    reduced = mapper(record)
    monkeypatch.setattr(mapper_module, "choose_reduction", lambda *args, **kwargs: 1)
    whole = mapper(record)
    assert seen == [8, 1]
    assert torch.equal(reduced["flips"], whole["flips"])
    assert (reduced["boxes"] - whole["boxes"]).abs().max() <= 4 / 1600 * 128  # half a reduced pixel
    assert (reduced["image"].float() - whole["image"]).abs().mean() < 2
    assert (reduced["views"].float() - whole["views"]).abs().mean() < 6


def test_on_photographs_a_view_is_the_global_view_inside_its_box(shared_data):
    folder = shared_data / "coco64"
    name = resolve_dataset(f"coco:{folder}/instances.json:{folder}/images")
    mapper = MultiViewMapper(view_px=64, photometric=False)
    right, mirrored = [], []
    for record in DatasetCatalog.get(name)[:12]:
        item = mapper(record)
        whole = item["image"].permute(1, 2, 0).numpy()
        assert max(whole.shape) == 512
        assert (item["height"], item["width"]) == (record["height"], record["width"])
        for view, box, flip in zip(item["views"], item["boxes"].round().int().tolist(), item["flips"], strict=True):
            cut = cv2.resize(whole[box[1] : box[3], box[0] : box[2]], (64, 64), interpolation=cv2.INTER_AREA)
            cut = cut[:, ::-1] if flip else cut
            right.append(np.abs(view.permute(1, 2, 0).numpy().astype(float) - cut).mean())
            mirrored.append(np.abs(view.permute(1, 2, 0).numpy().astype(float) - cut[:, ::-1]).mean())
    assert np.mean(right) < 4
    assert max(right) < 10
    assert np.mean(mirrored) > 20


def test_draws_follow_seed_file_and_place_in_the_stream(write_noise):
    one, two = str(write_noise("1.png", seed=1)), str(write_noise("2.png", seed=1))

    def boxes(mapper, path, draw):
        return mapper({"file_name": path, "draw": draw})["boxes"]

    first, again, other = MultiViewMapper(**PLAIN), MultiViewMapper(**PLAIN), MultiViewMapper(**PLAIN, seed=1)
    expected = boxes(first, one, 5)
    again({"file_name": two})  # what was mapped before does not matter
    assert torch.equal(boxes(again, one, 5), expected)
    assert not torch.equal(boxes(other, one, 5), expected)
    assert not torch.equal(boxes(first, one, 6), expected)
    assert not torch.equal(boxes(first, two, 5), expected)
    # without a place, the mapper counts: the same file gets new views each time
    counted = [MultiViewMapper(**PLAIN), MultiViewMapper(**PLAIN)]
    runs = [[mapper({"file_name": one})["boxes"] for _ in range(2)] for mapper in counted]
    assert torch.equal(torch.stack(runs[0]), torch.stack(runs[1]))
    assert not torch.equal(*runs[0])


def test_mapping_leaves_the_global_generators_alone(write_noise):
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    MultiViewMapper(global_longest_px=64, view_px=32)({"file_name": str(write_noise("a.png"))})
    assert torch.equal(torch.get_rng_state(), state[0])
    np.testing.assert_array_equal(np.random.get_state()[1], state[1])


def test_photometric_changes_touch_the_views_only(write_noise):
    record = {"file_name": str(write_noise("a.png", 80, 80)), "draw": 0}
    plain = MultiViewMapper(global_longest_px=64, view_px=32, num_views=8, photometric=False)(record)
    changed = MultiViewMapper(global_longest_px=64, view_px=32, num_views=8)(record)
    assert torch.equal(plain["image"], changed["image"])
    assert not torch.equal(plain["views"], changed["views"])


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (2, 2), (700, 3)])
def test_tiny_and_thin_pictures(write_noise, size):
    item = MultiViewMapper(**PLAIN)({"file_name": str(write_noise("a.png", *size))})
    assert max(item["image"].shape[1:]) == 128
    assert item["views"].shape == (2, 3, 32, 32)
    assert (item["boxes"][:, 2:] > item["boxes"][:, :2]).all()


def test_unreadable_pictures_are_skipped_logged_once_and_limited(tmp_path, write_noise, caplog):
    good = {"file_name": str(write_noise("good.png"))}
    bad = [{"file_name": str(tmp_path / f"bad{number}.jpg")} for number in range(3)]
    for record in bad:
        (tmp_path / record["file_name"]).touch()
    mapper = MultiViewMapper(**PLAIN, max_unreadable=2)
    with caplog.at_level(logging.WARNING):
        for record in (bad[0], bad[0], bad[1], bad[0]):
            assert mapper(record) is None
    assert mapper(good) is not None
    assert len(mapper.unreadable) == 2
    assert [record.getMessage().count("the file is empty") for record in caplog.records] == [1, 1]
    assert "skipped (2 of at most 2 in this process)" in caplog.records[1].getMessage()
    with pytest.raises(
        TooManyUnreadableError, match=r"3 pictures could not be read, more than .*MAX_UNREADABLE = 2.*bad2"
    ):
        mapper(bad[2])


def test_a_few_pictures_that_are_all_unreadable_end_in_an_error(tmp_path):
    mapper = MultiViewMapper(**PLAIN)
    (tmp_path / "bad.jpg").touch()

    def draw_for_ever():
        while mapper({"file_name": str(tmp_path / "bad.jpg")}) is None:
            pass

    with pytest.raises(
        TooManyUnreadableError, match=r"none of the last 1000 pictures .* \(1 different files, .*bad\.jpg"
    ):
        draw_for_ever()


@pytest.mark.parametrize(
    ("argument", "match"),
    [
        ({"global_longest_px": 0}, "global_longest_px must be at least 1, got 0"),
        ({"view_px": 100}, "view_px must be a positive multiple of 32, got 100"),
        ({"num_views": 0}, "num_views must be at least 1, got 0"),
        ({"view_scale": (0.4, 0.05)}, r"view_scale must be .* got \(0\.4, 0\.05\)"),
        ({"view_ratio": (0.0, 1.0)}, r"view_ratio must be .* got \(0\.0, 1\.0\)"),
        ({"flip_prob": 1.5}, r"flip_prob must lie in \[0, 1\], got 1\.5"),
        ({"max_unreadable": -1}, "max_unreadable must not be negative, got -1"),
        ({"seed": -1}, "seed must not be negative, got -1"),
    ],
)
def test_arguments_out_of_range(argument, match):
    with pytest.raises(ValueError, match=match):
        MultiViewMapper(**argument)


def test_from_config_reads_every_argument(repository):
    cfg = load_config(str(repository / "configs" / "base.yaml"), [])
    cfg.INPUT.GLOBAL_LONGEST_PX, cfg.INPUT.MAX_UNREADABLE, cfg.SEED, cfg.INPUT.TEST_LONGEST_PX = 96, 3, 11, 160
    views = cfg.INPUT.VIEWS
    views.NUM, views.SIZE_PX, views.SCALE, views.RATIO = 4, 64, (0.1, 0.2), (0.5, 2.0)
    views.FLIP_PROB, views.PHOTOMETRIC = 0.25, False
    mapper = MultiViewMapper(cfg, True)
    assert MultiViewMapper.from_config(cfg) == {
        "global_longest_px": 96,
        "view_px": 64,
        "num_views": 4,
        "view_scale": (0.1, 0.2),
        "view_ratio": (0.5, 2.0),
        "flip_prob": 0.25,
        "photometric": False,
        "seed": 11,
        "max_unreadable": 3,
        "offline_labels": None,
    }
    assert (mapper.seed, mapper.view_scale) == (11, (0.1, 0.2))
    pickle.loads(pickle.dumps(mapper))  # workers that are spawned need it
    cfg.SEED = -1
    assert MultiViewMapper(cfg).seed >= 0
    assert InferenceMapper(cfg).longest_px == 160
    with pytest.raises(ValueError, match=r"MultiViewMapper is for training"):
        MultiViewMapper(cfg, False)


def test_inference_keeps_the_original_size(write_noise):
    path = write_noise("a.png", 50, 100)
    item = InferenceMapper(longest_px=64)({"file_name": str(path), "image_id": 3, "height": 50, "width": 100})
    assert item["image"].shape == (3, 32, 64)
    assert item["image"].dtype == torch.uint8
    assert (item["height"], item["width"], item["image_id"]) == (50, 100, 3)


def test_inference_refuses_what_training_skips(tmp_path, write_noise):
    (tmp_path / "zero.png").touch()
    with pytest.raises(UnreadablePictureError, match="the file is empty"):
        InferenceMapper()({"file_name": str(tmp_path / "zero.png")})
    path = write_noise("a.png", 50, 100)
    with pytest.raises(PictureError, match=r"is 100 x 50 .* but its annotations are made for 50 x 100"):
        InferenceMapper()({"file_name": str(path), "height": 100, "width": 50})
    with pytest.raises(ValueError, match="longest_px must be at least 1, got 0"):
        InferenceMapper(longest_px=0)
