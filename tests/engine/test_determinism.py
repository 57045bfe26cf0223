"""The same run twice ends in the same bits, whatever number of processes loads its pictures."""

from __future__ import annotations

import pytest
import torch

from s2uniseg_d2.engine.trainer import Trainer
from tests.engine.checkpoints import differing, read
from tests.tiny import tiny_config, write_pictures

# Python 3.12 and later warn where torch's workers are forked, torch where they are more than cores
pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

ITERATIONS = 4


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = write_pictures(tmp_path_factory.mktemp("data") / "pictures", count=5)
    (folder / "damaged.png").write_bytes(b"no picture")  # what takes its place must not depend on the workers either
    return folder


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Bits are those of a number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
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
    return train(pictures, tmp_path_factory.mktemp("first") / "out", workers=0)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_any_number_of_workers_gives_the_same_bits(pictures, first, tmp_path, workers):
    assert differing(first, train(pictures, tmp_path / "out", workers=workers)) == []


def test_another_seed_gives_others(pictures, first, tmp_path):
    other = train(pictures, tmp_path / "out", workers=0, seed=12)
    assert any(name.startswith(".backbone") for name in differing(first["model"], other["model"]))
