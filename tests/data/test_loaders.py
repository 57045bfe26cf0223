from __future__ import annotations

import itertools
import logging
from types import SimpleNamespace

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.samplers import TrainingSampler

from s2uniseg_d2.config import load_config
from s2uniseg_d2.data import (
    TooManyUnreadableError,
    UnreadablePictureError,
    build_test_loader,
    build_train_loader,
    loaders,
)
from s2uniseg_d2.data.center_crop import CenterCrop
from s2uniseg_d2.data.loaders import DrawSampler, check_test_files

# Python 3.12 and later warn where torch's workers are forked
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture
def cfg(tmp_path):
    cfg = load_config("", [])
    cfg.DATASETS.TRAIN = (f"folder:{tmp_path}",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.INPUT.GLOBAL_LONGEST_PX = cfg.INPUT.VIEWS.SIZE_PX = cfg.INPUT.TEST_LONGEST_PX = 32
    cfg.SEED = 3
    return cfg


def take(loader, count):
    return list(itertools.islice(loader, count))


def flatten(batches):
    return [(item["file_name"], item["boxes"].tolist(), item["views"].sum().item()) for b in batches for item in b]


def test_batches_do_not_depend_on_the_workers_and_follow_the_seed(cfg, write_noise):
    for number in range(5):
        write_noise(f"{number}.png", seed=number)
    alone = take(build_train_loader(cfg), 4)
    assert [len(batch) for batch in alone] == [2] * 4
    assert len({item["file_name"] for batch in alone[:2] for item in batch}) == 4  # an epoch repeats nothing
    assert flatten(take(build_train_loader(cfg), 4)) == flatten(alone)
    assert flatten(take(build_train_loader(cfg, start_iter=2), 2)) == flatten(alone[2:])
    cfg.DATALOADER.NUM_WORKERS = 2
    assert flatten(take(build_train_loader(cfg), 4)) == flatten(alone)
    cfg.DATALOADER.NUM_WORKERS, cfg.SEED = 0, 4
    assert flatten(take(build_train_loader(cfg), 4)) != flatten(alone)


def test_processes_share_one_stream(monkeypatch):
    whole = list(itertools.islice(DrawSampler(7, seed=0, start=4), 12))
    assert [draw for draw, _ in whole] == list(range(4, 16))
    parts = []
    for rank in range(2):
        sampler = DrawSampler(7, seed=0, start=4)
        monkeypatch.setattr(sampler, "_rank", rank)
        monkeypatch.setattr(sampler, "_world_size", 2)
        parts.append(list(itertools.islice(sampler, 6)))
    assert sorted(parts[0] + parts[1]) == whole
    with pytest.raises(ValueError, match="start must not be negative, got -1"):
        DrawSampler(7, start=-1)


@pytest.mark.parametrize("start", [0, 5, 7, 25])
def test_the_stream_is_detectron2s_from_any_place(start):
    whole = list(enumerate(itertools.islice(TrainingSampler(7, seed=3), 40)))
    assert list(itertools.islice(DrawSampler(7, seed=3, start=start), 40 - start)) == whole[start:]


def test_a_worker_shuffles_once_whatever_the_batch(cfg, write_noise, monkeypatch):
    write_noise("a.png")
    shuffles = []
    original = torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *args, **options: shuffles.append(1) or original(*args, **options))
    cfg.SOLVER.IMS_PER_BATCH = 8
    stream = build_train_loader(cfg).dataset
    monkeypatch.setattr(loaders, "get_worker_info", lambda: SimpleNamespace(id=1, num_workers=4))
    while hasattr(stream, "dataset"):
        stream = stream.dataset
    draws = [item["draw"] for item in itertools.islice(stream, 16)]
    # the second of four workers, eight pictures in a row
    assert draws == [*range(8, 16), *range(40, 48)]
    assert len(shuffles) == 48  # one an epoch of the one picture


def test_training_never_makes_all_records_of_a_folder(cfg, tmp_path, write_noise, monkeypatch):
    for number in range(4):
        write_noise(f"{number}.png", seed=number)
    monkeypatch.setattr(DatasetCatalog, "get", lambda name: pytest.fail("all records were made"))
    assert len(take(build_train_loader(cfg), 2)) == 2


def test_unreadable_pictures_are_replaced_and_named(cfg, tmp_path, write_noise, caplog):
    for number in range(3):
        write_noise(f"good{number}.png", seed=number)
        (tmp_path / f"bad{number}.png").write_bytes(b"\x89PNG")
    with caplog.at_level(logging.WARNING, logger="s2uniseg_d2.data"):
        batches = take(build_train_loader(cfg), 9)
    assert {item["file_name"][-9:] for batch in batches for item in batch} == {f"good{n}.png" for n in range(3)}
    reported = sorted(record.getMessage() for record in caplog.records)
    assert len(reported) == 3
    assert all(f"bad{number}.png" in line for number, line in enumerate(reported))


def test_an_unreadable_picture_moves_no_other_sample(cfg, tmp_path, write_noise):
    for number in range(5):
        write_noise(f"{number}.png", seed=number)
    sound = flatten(take(build_train_loader(cfg), 6))
    (tmp_path / "2.png").write_bytes(b"\x89PNG")
    alone = take(build_train_loader(cfg), 6)
    replaced = [i for i, (path, *_) in enumerate(sound) if path.endswith("2.png")]
    assert replaced
    assert [x for i, x in enumerate(flatten(alone)) if i not in replaced] == [
        x for i, x in enumerate(sound) if i not in replaced
    ]
    assert flatten(take(build_train_loader(cfg, start_iter=3), 3)) == flatten(alone[3:])
    cfg.DATALOADER.NUM_WORKERS = 2
    assert flatten(take(build_train_loader(cfg), 6)) == flatten(alone)


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_unreadable_pictures_ends_in_one_sentence(cfg, tmp_path, workers):
    for number in range(3):
        (tmp_path / f"{number}.jpg").touch()
    cfg.DATALOADER.NUM_WORKERS = workers
    with pytest.raises(TooManyUnreadableError) as caught:
        take(build_train_loader(cfg), 1)
    assert str(caught.value).startswith("none of the last 1000 pictures drawn could be read (3 different files")
    assert "\n" not in str(caught.value)
    cfg.INPUT.MAX_UNREADABLE = 1
    with pytest.raises(TooManyUnreadableError) as caught:
        take(build_train_loader(cfg), 1)
    assert str(caught.value).startswith("2 pictures could not be read, more than INPUT.MAX_UNREADABLE = 1 allows")


def test_training_refuses_no_data_and_odd_batches(cfg, write_noise):
    write_noise("a.png")
    cfg.SOLVER.IMS_PER_BATCH = 0
    with pytest.raises(ValueError, match="IMS_PER_BATCH must be a positive multiple of 1 processes, got 0"):
        build_train_loader(cfg)
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN must name at least one data set"):
        build_train_loader(cfg)


def test_two_folders_train_together(cfg, tmp_path, write_noise):
    for name in ("a/1.png", "b/2.png"):
        write_noise(name)
    cfg.DATASETS.TRAIN = (f"folder:{tmp_path}/a", f"folder:{tmp_path}/b")
    (batch,) = take(build_train_loader(cfg), 1)
    assert {item["file_name"][-5:] for item in batch} == {"1.png", "2.png"}


def test_evaluation_sees_every_picture_once_in_order(cfg, tmp_path, write_noise):
    for number in range(3):
        write_noise(f"{number}.png", 20, 40, seed=number)
    items = [item for batch in build_test_loader(cfg, f"folder:{tmp_path}") for item in batch]
    assert [(item["image_id"], item["height"], item["width"]) for item in items] == [(n, 20, 40) for n in range(3)]
    assert all(item["image"].shape == torch.Size((3, 16, 32)) for item in items)


def test_an_unreadable_picture_stops_the_evaluation(cfg, tmp_path):
    (tmp_path / "zero.png").touch()
    cfg.DATALOADER.NUM_WORKERS = 1
    with pytest.raises(UnreadablePictureError) as caught:
        list(build_test_loader(cfg, f"folder:{tmp_path}"))
    assert str(caught.value) == f"cannot read picture {tmp_path / 'zero.png'}: the file is empty (0 bytes)"


def test_evaluation_sees_the_pictures_asked_for_and_their_crops(cfg, tmp_path, write_noise):
    for number in range(4):
        write_noise(f"{number}.png", 20, 40, seed=number)
    loader = build_test_loader(cfg, f"folder:{tmp_path}", indices=[3, 1], crop=CenterCrop(16, 12))
    items = [item for batch in loader for item in batch]
    assert [(item["image_id"], item["height"], item["width"]) for item in items] == [(3, 12, 12), (1, 12, 12)]
    assert items[0]["image"].shape == torch.Size((3, 32, 32))
    assert list(build_test_loader(cfg, f"folder:{tmp_path}", indices=[])) == []


def test_files_that_are_missing_are_counted_and_named(tmp_path, write_noise):
    write_noise("0.png")
    records = [
        {"file_name": str(tmp_path / f"{n}.png"), "sem_seg_file_name": str(tmp_path / "0.png")} for n in range(5)
    ]
    check_test_files("a", records[:1])
    with pytest.raises(
        ValueError, match=r"4 of 5 pictures of data set 'a' are missing on disk: .*1\.png, .*3\.png, \.\.\."
    ):
        check_test_files("a", records)
    with pytest.raises(ValueError, match=r"1 of 1 label maps of data set 'a' are missing on disk: /nowhere/0\.png"):
        check_test_files("a", [{**records[0], "sem_seg_file_name": "/nowhere/0.png"}])
