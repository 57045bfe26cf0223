"""Every scheduled value is a function of the iteration, whatever came before it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

import s2uniseg_d2.modeling  # noqa: F401  (registers)
from s2uniseg_d2.engine.hooks import FreezeLastLayerHook
from s2uniseg_d2.engine.optimizer import build_optimizer
from s2uniseg_d2.engine.schedules import ScheduleHook
from s2uniseg_d2.engine.trainer import Trainer
from tests.tiny import tiny_config

ITERS = 21


@pytest.fixture(scope="module")
def model():
    return build_model(tiny_config())


def hook_at(hook, model, optimizer, iteration):
    """What the hook sets when a run of ``ITERS`` comes to an iteration."""
    with EventStorage(iteration) as storage:
        hook.trainer = SimpleNamespace(
            model=model, optimizer=optimizer, iter=iteration, max_iter=ITERS, storage=storage
        )
        hook.before_step()
        noted = {name: value for name, (value, _) in storage.latest().items()}
    decays = {(group["is_decayed"], group["weight_decay"]) for group in optimizer.param_groups}
    return model.teacher_temp, decays, noted


def test_temperature_and_decay_follow_their_courses(model):
    cfg = tiny_config(
        SOLVER__WEIGHT_DECAY=0.04,
        SOLVER__WEIGHT_DECAY_END=0.4,
        MODEL__QUERY_SD__TEACHER_TEMP_START=0.04,
        MODEL__QUERY_SD__TEACHER_TEMP=0.07,
        MODEL__QUERY_SD__TEACHER_TEMP_WARMUP_ITERS=6,
    )
    optimizer = build_optimizer(cfg, model)
    hook = ScheduleHook.from_config(cfg)
    straight = [hook_at(hook, model, optimizer, iteration) for iteration in range(ITERS)]
    for iteration, (temperature, decays, noted) in enumerate(straight):
        assert temperature == pytest.approx(0.04 + 0.03 * min(iteration / 6, 1))
        wanted = 0.4 + 0.5 * (0.04 - 0.4) * (1 + math.cos(math.pi * iteration / (ITERS - 1)))
        assert dict(decays)[True] == pytest.approx(wanted)
        assert dict(decays)[False] == 0.0
        assert noted == {"teacher_temp": temperature, "weight_decay": dict(decays)[True]}
    # a run that begins anywhere has the same numbers
    fresh = build_optimizer(cfg, model)
    for iteration in (13, 2, ITERS - 1):
        assert hook_at(ScheduleHook.from_config(cfg), model, fresh, iteration) == straight[iteration]


def test_both_are_constant_unless_the_config_says_otherwise(model):
    cfg = tiny_config()
    optimizer = build_optimizer(cfg, model)
    for iteration in range(ITERS):
        temperature, decays, _ = hook_at(ScheduleHook.from_config(cfg), model, optimizer, iteration)
        assert temperature == 0.04
        assert decays == {(True, 0.05), (False, 0.0)}


def test_the_loss_reads_the_temperature_that_was_set(model):
    queries, embeddings, pairs = torch.randn(5, 32), torch.randn(5, 48), torch.tensor(5.0)
    losses = []
    for temperature in (0.04, 0.07):
        model.teacher_temp = temperature
        losses.append(model._distil(queries, embeddings, pairs, is_last=True).item())
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)


def rate(iteration, warmup, total, base, end, factor):
    """Straight to the base, then a cosine to the end: the paper's warm-up and our decay."""
    if iteration < warmup:
        return base * (factor + (1 - factor) * iteration / warmup)
    progress = (iteration - warmup) / (total - warmup)
    return end + (base - end) * (1 + math.cos(math.pi * progress)) / 2


def test_the_rate_warms_up_to_the_papers_and_falls_along_a_cosine(model):
    cfg = tiny_config(SOLVER__MAX_ITER=200, SOLVER__WARMUP_ITERS=20)
    optimizer = build_optimizer(cfg, model)
    scheduler = Trainer.build_lr_scheduler(cfg, optimizer)
    states = {}
    for iteration in range(200):
        wanted = rate(iteration, 20, 200, 6.25e-4, 1e-6, 1e-4)
        for group in optimizer.param_groups:
            factor = group["initial_lr"] / 6.25e-4
            assert factor in (1.0, 0.1)
            assert group["lr"] == pytest.approx(wanted * factor, rel=1e-6)
        states[iteration] = scheduler.state_dict() | {"lrs": [group["lr"] for group in optimizer.param_groups]}
        optimizer.step()
        scheduler.step()
    # taken up from a state it goes on as if it had not been stopped
    again = build_optimizer(cfg, model)
    resumed = Trainer.build_lr_scheduler(cfg, again)
    wanted = states[121].pop("lrs")
    resumed.load_state_dict({key: value for key, value in states[120].items() if key != "lrs"})
    again.step()
    resumed.step()
    assert [group["lr"] for group in again.param_groups] == wanted


def test_detectron2s_own_courses_can_be_named(model):
    cfg = tiny_config(SOLVER__LR_SCHEDULER_NAME="WarmupMultiStepLR", SOLVER__MAX_ITER=9, SOLVER__STEPS="(4,)")
    optimizer = build_optimizer(cfg, model)
    scheduler = Trainer.build_lr_scheduler(cfg, optimizer)
    for _ in range(6):
        optimizer.step()
        scheduler.step()
    assert [group["lr"] / group["initial_lr"] for group in optimizer.param_groups] == pytest.approx([0.1] * 5)


def test_the_frozen_layer_is_a_function_of_the_iteration_too(model):
    optimizer = build_optimizer(tiny_config(), model)
    for iteration in (7, 0, 4, 5):
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        hook = FreezeLastLayerHook(5)
        hook.trainer = SimpleNamespace(optimizer=optimizer, iter=iteration)
        hook.before_step()
        rates = {group["is_last_layer"]: group["lr"] for group in optimizer.param_groups}
        assert rates == {True: 0.0 if iteration < 5 else 0.1, False: 0.1}
