"""The same run twice ends in the same bits, whatever number of processes loads its pictures."""

from __future__ import annotations

import pytest
import torch

from s2uniseg_d2.engine.trainer import Trainer
from tests.engine.checkpoints import differing, read
from tests.tiny import tiny_config, write_pictures

# Python 3.12 and later warn where torch's workers are forked
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

ITERATIONS = 5


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = write_pictures(tmp_path_factory.mktemp("data") / "pictures", count=5)
    (folder / "damaged.png").write_bytes(b"no picture")  # what takes its place must not depend on the workers either
    return folder


@pytest.fixture
def threads():
    """Sets PyTorch's threads for a run; bits are those of their number."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def train(pictures, output, *, workers, seed=11):
    output.mkdir()
    cfg = tiny_config(
        DATASETS__TRAIN=f"('folder:{pictures}',)",
        OUTPUT_DIR=output,
        SEED=seed,
        DATALOADER__NUM_WORKERS=workers,
        MODEL__VIT__DROP_PATH=0.4,
        SOLVER__BASE_LR=1e-3,
        SOLVER__MAX_ITER=ITERATIONS,
    )
    torch.manual_seed(seed)  # of the first weights: in a command, Detectron2's set-up does it
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return read(output / "model_final.pth")


@pytest.fixture(scope="module")
def first(pictures, tmp_path_factory):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    content = train(pictures, tmp_path_factory.mktemp("first") / "out", workers=0)
    torch.set_num_threads(before)
    return content


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_one_thread_and_any_number_of_workers_give_the_same_bits(pictures, first, tmp_path, threads, workers):
    threads(1)
    assert differing(first, train(pictures, tmp_path / "out", workers=workers)) == []


def test_two_threads_give_the_same_bits_twice(pictures, tmp_path, threads):
    threads(2)
    runs = [train(pictures, tmp_path / str(number), workers=number) for number in range(2)]
    assert differing(*runs) == []


def test_another_seed_gives_others(pictures, first, tmp_path, threads):
    threads(1)
    other = train(pictures, tmp_path / "out", workers=0, seed=12)
    assert any(name.startswith(".backbone") for name in differing(first["model"], other["model"]))
