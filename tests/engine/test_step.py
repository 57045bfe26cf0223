from __future__ import annotations

import itertools

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from s2uniseg_d2.engine.optimizer import with_full_model_clipping
from s2uniseg_d2.engine.step import TrainingStep, autocast_dtype
from s2uniseg_d2.engine.step_guard import NonFiniteStepError
from tests.tiny import tiny_config


class Line(nn.Module):
    """Loss ``(w x + b - 1)^2 * scale`` on batches of numbers."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.scale = scale
        self.seen: list[torch.dtype] = []

    def forward(self, batch):
        output = self.layer(batch)
        self.seen.append(output.dtype)
        return {"loss": (output.float() - 1.0).square().mean() * self.scale}


def make_step(dtype=None, scale=1.0):
    torch.manual_seed(0)
    model = Line(scale)
    batches = itertools.cycle([torch.randn(8, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)])
    return TrainingStep(model, batches, torch.optim.SGD(model.parameters(), lr=0.05), autocast_dtype=dtype)


def train(step, count):
    with EventStorage(0) as storage:
        for step.iter in range(count):
            step.run_step()
        return storage.history("total_loss").latest()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_every_precision_learns_and_only_float16_is_scaled(dtype):
    step = make_step(dtype)
    first = train(step, 1)
    assert train(step, 60) < first / 3
    assert set(step.model.seen) == {dtype or torch.float32}
    assert step.grad_scaler.is_enabled() == (dtype is torch.float16)
    assert ("grad_scaler" in step.state_dict()) == (dtype is torch.float16)
    assert step.model.layer.weight.dtype == torch.float32


def test_float16_leaves_a_step_out_whose_gradient_overflows_and_goes_on():
    # the loss is finite, its gradient times the first scale of 65536 is not
    step = make_step(torch.float16, scale=3e33)
    before = step.model.layer.weight.clone()
    train(step, 1)
    assert torch.equal(step.model.layer.weight, before)
    assert step.grad_scaler.get_scale() == 2.0**15


def test_the_scale_is_resumed_and_a_missing_one_is_no_error():
    step = make_step(torch.float16)
    state = step.state_dict()
    state["grad_scaler"] |= {"scale": 64.0}
    resumed = make_step(torch.float16)
    resumed.load_state_dict(state)
    train(resumed, 1)
    assert resumed.grad_scaler.get_scale() == 64.0
    make_step(None).load_state_dict(state)
    fresh = make_step(torch.float16)
    fresh.load_state_dict({key: value for key, value in state.items() if key != "grad_scaler"})
    assert fresh.grad_scaler.get_scale() == 2.0**16


def test_a_loss_that_is_not_finite_stops_before_the_optimizer():
    step = make_step(scale=float("nan"))
    before = step.model.layer.weight.clone()
    with pytest.raises(FloatingPointError, match="iteration 0: loss = nan; stopped before the optimizer step"):
        train(step, 1)
    assert torch.equal(step.model.layer.weight, before)


def test_float16_stops_after_many_steps_in_a_row_that_were_left_out(monkeypatch):
    monkeypatch.setattr("s2uniseg_d2.engine.step.MOST_SKIPPED", 3)
    step = make_step(torch.float16, scale=3e37)
    before = step.model.layer.weight.clone()
    train(step, 2)
    with pytest.raises(
        NonFiniteStepError, match=r"float16 left out 3 steps in a row: gradient of layer\.weight = -?(inf|nan) "
    ):
        train(step, 1)
    assert torch.equal(step.model.layer.weight, before)
    # a step that is taken begins the count anew
    step = make_step(torch.float16, scale=3e37)
    train(step, 2)
    step.model.scale = 1.0
    train(step, 1)
    step.model.scale = 3e37
    train(step, 2)


def test_the_parameter_whose_gradient_is_not_finite_is_named():
    step = make_step()
    step.model.layer.bias.register_hook(lambda gradient: gradient * float("nan"))
    step.optimizer = with_full_model_clipping(torch.optim.AdamW, 0.1)(step.model.parameters())
    with pytest.raises(
        NonFiniteStepError, match=r"iteration 0: gradient norm = nan: gradient of layer\.bias = nan; stop"
    ):
        train(step, 1)
    # each is finite, their norm is not
    step = make_step()
    step.model.layer.weight.register_hook(lambda gradient: torch.full_like(gradient, 3e38))
    step.optimizer = with_full_model_clipping(torch.optim.AdamW, 0.1)(step.model.parameters())
    with pytest.raises(
        NonFiniteStepError, match=r"each gradient is; the largest is that of layer\.weight, 3e\+38; stop"
    ):
        train(step, 1)


def test_precision_follows_the_config():
    cfg = tiny_config(SOLVER__AMP__ENABLED=True)
    assert autocast_dtype(cfg) is torch.float16
    cfg.SOLVER.AMP.DTYPE = "bfloat16"
    assert autocast_dtype(cfg) is torch.bfloat16
    cfg.SOLVER.AMP.ENABLED = False
    assert autocast_dtype(cfg) is None
    with pytest.raises(ValueError, match=r"SOLVER\.AMP\.DTYPE must be float16 or bfloat16, got 'float64'"):
        tiny_config(SOLVER__AMP__DTYPE="float64")
