"""The compiled student against the plain one.

The backend "aot_eager" traces and differentiates as "inductor" does, but runs torch's own kernels; inductor takes
minutes to build its own: COMPILE_BACKEND=inductor python -m pytest tests/modeling/test_compilation.py.
"""

from __future__ import annotations

import logging
import os
import shutil

import pytest
import torch
from detectron2.modeling import build_model

import s2uniseg_d2.modeling  # noqa: F401  (registers)
from s2uniseg_d2.engine.trainer import Trainer
from s2uniseg_d2.modeling.compilation import compile_student
from tests.tiny import random_batch, tiny_config, write_pictures


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile wants a C++ compiler, and there is no g++")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_compiled_student_gives_equal_losses_and_gradients():
    torch.manual_seed(0)
    # stochastic depth: the draws must be the same ones
    model = build_model(tiny_config(MODEL__VIT__DROP_PATH=0.3, MODEL__VIT_ADAPTER__EXTRA_EXTRACTORS=0))
    batch = random_batch()
    for draw, (item, labels) in enumerate(zip(batch, model.label(batch), strict=True)):
        item |= {"pseudo": labels, "draw": draw}
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def step():
        model.load_state_dict(state)  # the centre and batch statistics have moved
        model.zero_grad()
        torch.manual_seed(1)
        losses = model(batch)
        sum(losses.values()).backward()
        gradient = torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None])
        return {name: loss.item() for name, loss in losses.items()}, gradient

    losses, gradient = step()
    compile_student(model, backend=os.environ.get("COMPILE_BACKEND", "aot_eager"))
    assert model.state_dict().keys() == state.keys()
    compiled, compiled_gradient = step()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs == 1
    assert compiled == pytest.approx(losses, rel=1e-6)
    assert (compiled_gradient - gradient).norm() <= 1e-6 * gradient.norm()
    # inference is left alone
    model.eval()
    assert len(model(batch)) == 2
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


@pytest.mark.parametrize("is_asked_for", [False, True])
def test_the_config_asks_for_it(tmp_path, monkeypatch, is_asked_for):
    calls = []
    monkeypatch.setattr("s2uniseg_d2.engine.trainer.compile_student", calls.append)
    logging.disable(logging.INFO)
    cfg = tiny_config(
        DATASETS__TRAIN=f"('folder:{write_pictures(tmp_path / 'pictures')}',)",
        OUTPUT_DIR=str(tmp_path / "run"),
        MODEL__COMPILE=is_asked_for,
    )
    trainer = Trainer(cfg)
    logging.disable(logging.NOTSET)
    assert calls == ([trainer.model] if is_asked_for else [])
