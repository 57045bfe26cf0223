from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from s2uniseg_d2.core.structures import PseudoLabels
from s2uniseg_d2.engine.hooks import (
    FreezeLastLayerHook,
    LabelledLoader,
    PseudoLabelHook,
    TeacherMomentumHook,
    unwrap,
)
from tests.tiny import random_batch, tiny_config


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model(tiny_config())


def attach(hook, **trainer):
    hook.trainer = SimpleNamespace(**trainer)
    return hook


def test_the_loader_is_wrapped_for_training_and_put_back(model):
    loader = [random_batch()]
    hook = attach(PseudoLabelHook(), model=model, data_loader=loader)
    hook.before_train()
    (batch,) = hook.trainer.data_loader
    assert all("pseudo" in item for item in batch)
    hook.after_train()
    assert hook.trainer.data_loader is loader


def test_a_hook_that_never_wrapped_leaves_the_loader_alone(model):
    hook = attach(PseudoLabelHook(), model=model, data_loader="theirs")
    hook.after_train()
    assert hook.trainer.data_loader == "theirs"


def test_whole_labels_pass_as_they_are_and_the_others_are_made_or_embedded(model):
    batch = random_batch()
    whole = model.label(batch)
    for item, labels in zip(batch, whole, strict=True):
        item["pseudo"] = labels
    assert next(iter(LabelledLoader([batch], model, None))) is batch
    assert all(item["pseudo"] is labels for item, labels in zip(batch, whole, strict=True))
    # one of each: offline labels without embeddings, and none
    open_ones = [kind._replace(embeddings=torch.zeros(len(kind.level), 0)) for kind in whole[0]]
    batch[0]["pseudo"], batch[0]["dropped_masks"] = PseudoLabels(*open_ones), 3
    del batch[1]["pseudo"]
    loader = LabelledLoader([batch], model, None)
    with EventStorage() as storage:
        next(iter(loader))
        assert storage.latest()["labels/dropped_masks"][0] == 3
    assert (loader.num_masks, loader.num_dropped) == (sum(len(kind.level) for kind in whole[0]), 3)
    assert torch.equal(batch[0]["pseudo"].instance.masks, whole[0].instance.masks)
    assert all(kind.embeddings.shape == (len(kind.level), 48) for item in batch for kind in item["pseudo"])


def test_a_new_run_copies_the_student_and_a_resumed_one_keeps_its_teacher(model):
    with torch.no_grad():
        model.query_proj.weight.zero_()
        model.backbone.trunk.level_embed.add_(1.0)
    before = model.teacher_backbone.trunk.level_embed.clone()
    attach(TeacherMomentumHook(0.9, 1.0), model=model, start_iter=5).before_train()
    assert torch.equal(model.teacher_backbone.trunk.level_embed, before)
    attach(TeacherMomentumHook(0.9, 1.0), model=model, start_iter=0).before_train()
    assert torch.equal(model.teacher_backbone.trunk.level_embed, before + 1.0)


@pytest.mark.parametrize(("iteration", "momentum"), [(0, 0.5), (50, 0.75), (100, 1.0)])
def test_the_momentum_follows_a_cosine_over_the_run(model, iteration, momentum):
    with torch.no_grad():
        model.backbone.trunk.level_embed.add_(1.0)
    before = model.teacher_backbone.trunk.level_embed.clone()
    with EventStorage() as storage:
        hook = attach(TeacherMomentumHook(0.5, 1.0), model=model, iter=iteration, max_iter=101, storage=storage)
        hook.after_step()
        assert storage.latest()["teacher_momentum"][0] == pytest.approx(momentum)
    torch.testing.assert_close(model.teacher_backbone.trunk.level_embed, before + 1.0 - momentum)


def test_the_last_layer_stands_still_for_the_first_iterations():
    layer, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW(
        [{"params": [layer], "is_last_layer": True}, {"params": [other], "is_last_layer": False}], lr=0.1
    )
    for iteration in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 0.1  # the scheduler's doing
        attach(FreezeLastLayerHook(2), optimizer=optimizer, iter=iteration).before_step()
        layer.grad, other.grad = torch.ones(2), torch.ones(2)
        optimizer.step()
        assert torch.equal(layer, torch.ones(2)) == (iteration < 2)
    assert (other < 0.75).all()


def test_another_model_is_refused():
    with pytest.raises(ValueError, match=r"trainer.model must be an S2UniSeg, got Linear"):
        unwrap(nn.Linear(1, 1))
