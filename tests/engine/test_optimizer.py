from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

import s2uniseg_d2.modeling  # noqa: F401  (registers)
from s2uniseg_d2.config import load_config
from s2uniseg_d2.engine.optimizer import build_optimizer, with_full_model_clipping
from tests.tiny import tiny_config

RECIPE = Path(__file__).resolve().parents[2] / "configs" / "s2uniseg_in1k.yaml"


@pytest.fixture(scope="module")
def built():
    cfg = tiny_config(SOLVER__VIT_LR_FACTOR=0.25, SOLVER__BASE_LR=1.0, SOLVER__WEIGHT_DECAY=0.05)
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    names = {id(value): name for name, value in model.named_parameters()}
    return model, {
        names[id(value)]: (group["lr"], group["weight_decay"], group["is_last_layer"])
        for group in optimizer.param_groups
        for value in group["params"]
    }


def test_every_trainable_parameter_is_in_one_group(built):
    model, settings = built
    assert set(settings) == {name for name, value in model.named_parameters() if value.requires_grad}
    assert not any(name.startswith("teacher_") for name in settings)


@pytest.mark.parametrize(
    ("name", "lr", "decay"),
    [
        ("backbone.trunk.vit.blocks.0.attn.qkv.weight", 0.25, 0.05),
        ("backbone.trunk.vit.blocks.0.attn.qkv.bias", 0.25, 0.0),
        ("backbone.trunk.vit.pos_embed", 0.25, 0.0),
        ("backbone.trunk.vit.cls_token", 0.25, 0.0),
        ("backbone.trunk.vit.norm.weight", 0.25, 0.0),
        ("backbone.trunk.level_embed", 1.0, 0.0),
        ("backbone.trunk.interactions.0.injector.gamma", 1.0, 0.0),
        ("backbone.trunk.spm.stem.0.weight", 1.0, 0.05),
        ("backbone.trunk.norm1.weight", 1.0, 0.0),
        ("sem_seg_head.predictor.query_feat.weight", 1.0, 0.0),
        ("sem_seg_head.predictor.query_embed.weight", 1.0, 0.0),
        ("sem_seg_head.predictor.query_type.weight", 1.0, 0.0),
        ("sem_seg_head.predictor.level_embed.weight", 1.0, 0.0),
        ("sem_seg_head.pixel_decoder.mask_features.weight", 1.0, 0.05),
        ("query_proj.weight", 1.0, 0.05),
    ],
)
def test_rates_and_decay_by_name(built, name, lr, decay):
    assert built[1][name][:2] == (lr, decay)


# by name alone: norms, biases, embeddings, positions, tokens and scales of the full model
UNDECAYED = re.compile(
    r"bias$|(^|[._])norm\d?\.|spm\.(stem\.[147]|conv\d\.1)\.|input_proj\.\d\.1\."
    r"|gamma$|level_embed|pos_embed|cls_token|\.query_(feat|embed|type)\."
)


def test_every_parameter_of_the_full_model_is_decayed_by_its_name():
    cfg = load_config(RECIPE, ["MODEL.VIT.WEIGHTS", "", "MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        model = build_model(cfg)
    named = {id(value): (name, value) for name, value in model.named_parameters() if value.requires_grad}
    optimizer = build_optimizer(cfg, model)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(named) > 500
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name, value = named[id(parameter)]
            assert group["is_decayed"] == (UNDECAYED.search(name) is None), name
            assert group["weight_decay"] == (0.05 if group["is_decayed"] else 0.0), name
            assert value.ndim > 1 or not group["is_decayed"], name
            assert group["lr"] == pytest.approx(6.25e-5 if name.startswith("backbone.trunk.vit.") else 6.25e-4), name
            assert group["is_last_layer"] == name.startswith("student_head.last_layer."), name
    # few groups keep the optimizer's list operations long
    assert len(optimizer.param_groups) == 5


def test_the_last_layer_has_its_own_group(built):
    last = {name for name, setting in built[1].items() if setting[2]}
    assert last
    assert all(name.startswith("student_head.last_layer.") for name in last)


def test_the_norm_of_all_gradients_together_is_clipped():
    first, second = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(3))
    optimizer = with_full_model_clipping(torch.optim.AdamW, 0.5)([first, second], lr=0.1)
    first.grad, second.grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0, 0.0])
    optimizer.step()
    torch.testing.assert_close(torch.cat([first.grad, second.grad]), torch.tensor([0.3, 0.0, 0.0, 0.4, 0.0]))


def test_scaled_gradients_of_several_parts_are_clipped_as_their_sum():
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = with_full_model_clipping(torch.optim.AdamW, 0.5)([parameter], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for part in (torch.tensor([1.0, 4.0]), torch.tensor([2.0, 0.0])):
        scaler.scale((parameter * part).sum()).backward()
    assert parameter.grad.tolist() == [3 * 1024.0, 4 * 1024.0]
    scaler.step(optimizer)
    torch.testing.assert_close(parameter.grad, torch.tensor([0.3, 0.4]))
    assert not torch.equal(parameter, torch.zeros(2))


@pytest.mark.parametrize("max_norm", [0.0, 0.5])
def test_a_gradient_that_is_not_finite_changes_nothing_and_stops_the_run(max_norm):
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = with_full_model_clipping(torch.optim.AdamW, max_norm)([parameter], lr=0.1)
    parameter.grad = torch.tensor([float("inf"), 1.0, 1.0])
    with pytest.raises(FloatingPointError, match=r"^gradient norm = inf$"):
        optimizer.step()
    # neither are the gradients, which may be looked at
    assert parameter.grad.tolist() == [float("inf"), 1.0, 1.0]
    assert torch.equal(parameter, torch.ones(3))


def test_no_clipping_leaves_gradients_alone():
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([30.0, 40.0])
    with_full_model_clipping(torch.optim.AdamW, 0.0)([parameter], lr=0.1).step()
    assert parameter.grad.tolist() == [30.0, 40.0]
