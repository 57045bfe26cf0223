from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from s2uniseg_d2.engine.resuming import StepDrawsHook
from s2uniseg_d2.engine.trainer import Trainer
from tests.engine.checkpoints import differing, read
from tests.tiny import tiny_config, write_pictures

# Python 3.12 and later warn where torch's workers are forked
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def draws(hook, iteration):
    hook.trainer = SimpleNamespace(iter=iteration)
    hook.before_step()
    return torch.rand(2).tolist() + np.random.random(2).tolist() + [random.random()]


def test_draws_of_a_step_depend_on_its_place_alone(monkeypatch):
    hook = StepDrawsHook(5)
    first = draws(hook, 3)
    torch.rand(7)
    np.random.random(7)
    assert draws(hook, 3) == first
    others = [draws(hook, 4), draws(StepDrawsHook(6), 3)]
    monkeypatch.setattr("s2uniseg_d2.engine.resuming.comm.get_rank", lambda: 1)
    others.append(draws(hook, 3))
    for other in others:
        assert not set(other) & set(first)
    # a negative seed leaves the generators to themselves
    assert draws(StepDrawsHook(-1), 3) != draws(StepDrawsHook(-1), 3)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures")


def train(pictures, output, *, until, resume=False, **more):
    """Train up to an iteration as if stopped there: the schedules, all of them on, are those of the whole run."""
    cfg = tiny_config(
        DATASETS__TRAIN=f"('folder:{pictures}',)",
        OUTPUT_DIR=output,
        SEED=7,
        MODEL__VIT__DROP_PATH=0.4,
        MODEL__QUERY_SD__FREEZE_LAST_LAYER_ITERS=12,
        MODEL__QUERY_SD__TEACHER_TEMP_START=0.02,
        MODEL__QUERY_SD__TEACHER_TEMP_WARMUP_ITERS=12,
        SOLVER__WEIGHT_DECAY_END=0.1,
        SOLVER__ACCUMULATION_STEPS=2,
        SOLVER__AMP__ENABLED=True,
        SOLVER__AMP__DTYPE="float16",
        SOLVER__BASE_LR=1e-3,
        SOLVER__MAX_ITER=14,
        SOLVER__CHECKPOINT_PERIOD=5,
        **more,
    )
    output.mkdir(exist_ok=True)
    torch.manual_seed(0 if resume else 7)  # what is not in the checkpoint must not matter
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    if until < cfg.SOLVER.MAX_ITER:
        step = trainer.run_step

        def run_step():
            if trainer.iter == until:
                raise KeyboardInterrupt
            step()

        trainer.run_step = run_step
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    else:
        trainer.train()


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")  # float16 skips steps
def test_a_run_that_was_stopped_ends_in_the_same_bits(pictures, tmp_path):
    train(pictures, tmp_path / "straight", until=14)
    train(pictures, tmp_path / "stopped", until=12)
    train(pictures, tmp_path / "stopped", until=14, resume=True, DATALOADER__NUM_WORKERS=2)
    straight, stopped = (read(tmp_path / run / "model_final.pth") for run in ("straight", "stopped"))
    assert differing(straight, stopped) == []
    # ... although the last steps change them, under a scale that the first ones have found
    before = read(tmp_path / "straight" / "model_0000009.pth")
    assert 1.0 <= before["trainer"]["_trainer"]["grad_scaler"]["scale"] < 65536.0
    for part in ("teacher_head", "center", "backbone", "query_proj"):
        assert any(f".{part}" in name for name in differing(straight["model"], before["model"])), part
