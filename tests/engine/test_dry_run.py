from __future__ import annotations

import subprocess
import sys
import tarfile

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from s2uniseg_d2.engine import dry_run as trial
from s2uniseg_d2.engine.dry_run import dry_run, gib
from s2uniseg_d2.engine.dry_run_memory import PARTS
from tests.engine.test_train_net import write_truth
from tests.tiny import tiny_config, tiny_words, write_pictures
from train_net import make_parser


@pytest.fixture(autouse=True)
def forget():
    yield
    for name in [name for name in DatasetCatalog if "pytest" in name]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture(autouse=True)
def one_timed_step(monkeypatch):
    monkeypatch.setattr(trial, "STEPS", 1)


@pytest.fixture
def folder(tmp_path):
    return write_pictures(tmp_path / "pictures")


def arguments(folder, *flags, **more):
    words = {"DATASETS__TRAIN": f"('folder:{folder}',)", "OUTPUT_DIR": folder.parent / "out"}
    return make_parser().parse_args([*flags, *tiny_words(**{**words, **more})])


def listing(root):
    return sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in root.rglob("*"))


def test_it_reports_and_leaves_everything_as_it_was(repository, folder):
    (folder / "broken.jpg").write_bytes(b"no picture")
    truth = write_truth(folder, folder.parent / "truth.json")
    words = tiny_words(
        DATASETS__TRAIN=f"('folder:{folder}',)",
        DATASETS__TEST=f"('coco:{truth}:{folder}',)",
        SOLVER__CHECKPOINT_PERIOD=1,
        TEST__EVAL_PERIOD=1,
        VIS_PERIOD=1,
    )
    # the working folder is watched too: without OUTPUT_DIR, a run would make output/ in it
    before = listing(folder.parent)
    command = [sys.executable, str(repository / "train_net.py"), "--dry-run", *words]
    result = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    assert listing(folder.parent) == before
    said = result.stdout
    assert f"folder:{folder}: 5 pictures; 4 of 5 looked at are readable; all 64 x 96 pixels; cannot read" in said
    assert f"DATASETS.TEST coco:{truth}:{folder}: 4 pictures; 4 of 4" in said
    assert "2 pictures, on cpu, float32" in said
    assert "iterations   4 of 4 are left, 8 pictures" in said
    assert "checkpoints  6 files" in said
    assert "output, which the run will make" in said
    assert "\x1b" not in said
    assert "Warning" not in result.stderr


def test_too_many_unreadable_pictures_are_foreseen(folder):
    from s2uniseg_d2.data import resolve_dataset

    for number in range(6):
        (folder / f"broken{number}.jpg").write_bytes(b"no picture")
    cfg = tiny_config(DATASETS__TRAIN=f"('folder:{folder}',)", INPUT__MAX_UNREADABLE=5)
    resolve_dataset(cfg.DATASETS.TRAIN[0])
    first, second = trial._check_data(cfg)
    assert "10 pictures; 4 of 10 looked at are readable" in first
    assert second.strip() == "about 6 of all will be unreadable, more than INPUT.MAX_UNREADABLE = 5: the run would stop"


def test_the_parts_add_up_to_the_model(folder):
    from detectron2.modeling import build_model

    from s2uniseg_d2.engine.dry_run_memory import part_sizes

    model = build_model(tiny_config())
    assert sum(part_sizes(model).values()) == sum(value.numel() for value in model.parameters())
    assert list(part_sizes(model)) == list(PARTS)


def test_steps_change_the_copy_in_memory_alone(folder, monkeypatch):
    args = arguments(folder, SOLVER__CHECKPOINT_PERIOD=1)
    saved = []
    monkeypatch.setattr(torch, "save", lambda *given, **more: saved.append(given))
    steps = []
    real = trial.try_steps

    def try_steps(trainer):
        before = trainer.model.sem_seg_head.state_dict()
        before = {name: value.clone() for name, value in before.items()}
        result = real(trainer)
        after = trainer.model.sem_seg_head.state_dict()
        steps.append(any(not torch.equal(before[name], after[name]) for name in before))
        assert result.memory.peak >= result.memory.before > 0
        # AdamW holds two values of each gradient's, and one step number of each parameter
        assert result.memory.standing > 3 * 4 * 300_000
        return result

    monkeypatch.setattr(trial, "try_steps", try_steps)
    dry_run(args)
    assert steps == [True]  # they were real ones
    assert saved == []


def test_tar_shards_get_no_index(folder):
    with tarfile.open(folder.parent / "shard.tar", "w") as tar:
        for path in folder.iterdir():
            tar.add(path, path.name)
    before = listing(folder.parent)
    said = dry_run(arguments(folder, DATASETS__TRAIN=f"('tar:{folder.parent}/shard.tar',)"))
    assert "4 of 4 looked at are readable" in said
    assert listing(folder.parent) == before


def test_processes_share_the_batch_and_parts_are_named(folder):
    more = {"SOLVER__IMS_PER_BATCH": 4, "SOLVER__ACCUMULATION_STEPS": 2, "MODEL__VIT_ADAPTER__NORM": "SyncBN"}
    said = dry_run(arguments(folder, "--num-gpus", "2", **more))
    assert "2 pictures, its share of 4 in 2 processes, in 2 parts" in said
    assert "iterations   4 of 4 are left, 16 pictures" in said


def test_weights_of_timm_are_not_fetched(folder, monkeypatch):
    import timm

    real = timm.create_model

    def create(name, *given, pretrained=False, **more):
        assert not pretrained
        return real(name, *given, **more)

    monkeypatch.setattr(timm, "create_model", create)
    said = dry_run(arguments(folder, MODEL__VIT__WEIGHTS="timm"))
    assert "the weights of vit_tiny_patch16_224" in said
    assert "random ones stand for them" in said


def test_what_would_stop_the_run_stops_it(folder):
    with pytest.raises(ValueError, match="--dry-run tries a training run: leave --eval-only out"):
        dry_run(arguments(folder, "--eval-only"))
    for path in folder.iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="none of the pictures looked at can be read; 0 of 4 looked at are readable"):
        dry_run(arguments(folder))
    truth = write_truth(write_pictures(folder.parent / "others"), folder.parent / "truth.json")
    args = arguments(folder.parent / "others", DATASETS__TEST=f"('coco:{truth}:{folder.parent / 'others'}',)")
    (folder.parent / "others" / "2.png").unlink()
    with pytest.raises(ValueError, match=r"2\.png"):
        dry_run(args)
    assert not (folder.parent / "out").exists()


def test_sizes_read_well():
    assert [gib(size) for size in (512, 3 * 2**20, 1.5 * 2**30)] == ["0.5 KiB", "3.0 MiB", "1.5 GiB"]


def test_a_step_that_is_not_finite_is_named_and_not_written_down(folder):
    before = listing(folder.parent)
    with pytest.raises(FloatingPointError, match="loss_query_sd = inf"):
        dry_run(arguments(folder, MODEL__LOSS__QUERY_SD_WEIGHT="1e39"))
    assert listing(folder.parent) == before
