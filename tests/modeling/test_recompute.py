"""Activation checkpointing gives the same losses and gradients and keeps fewer activations."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model

import s2uniseg_d2.modeling  # noqa: F401  (registers)
from tests.tiny import random_batch, tiny_config


def step(batch, *, recomputes, dtype):
    """Losses, gradients and bytes that are kept for the backward pass."""
    torch.manual_seed(0)
    model = build_model(tiny_config(MODEL__RECOMPUTE=recomputes, MODEL__VIT__DROP_PATH=0.5))
    for item, labels in zip(batch, model.label(batch), strict=True):
        item["pseudo"] = labels
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            losses = model(batch)
        weights = {value.untyped_storage().data_ptr() for value in model.parameters()}
        num_bytes = sum(size for place, size in kept.items() if place not in weights)
        sum(losses.values()).backward()
    return losses, {name: value.grad for name, value in model.named_parameters() if value.requires_grad}, num_bytes


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_recomputing_gives_equal_losses_and_gradients_and_keeps_less(dtype):
    batch = random_batch()
    losses, gradients, kept = step(batch, recomputes=False, dtype=dtype)
    others, other_gradients, kept_less = step(batch, recomputes=True, dtype=dtype)
    torch.testing.assert_close(others, losses, atol=0, rtol=0)
    # a sum of several gradients may be added up in another order
    torch.testing.assert_close(other_gradients, gradients, atol=1e-6, rtol=1e-5)
    assert kept_less < kept / 2


def test_paths_are_dropped_for_the_student_alone():
    torch.manual_seed(0)
    model = build_model(tiny_config(MODEL__VIT__DROP_PATH=0.4)).train()
    rates = {name: part.drop_prob for name, part in model.named_modules() if type(part).__name__ == "DropPath"}
    student = {name: rate for name, rate in rates.items() if name.startswith("backbone.")}
    # timm's rise from block to block, the extractors' are all the full rate
    blocks = [student[f"backbone.trunk.vit.blocks.{i}.drop_path1"] for i in range(1, 4)]
    assert blocks == pytest.approx([0.4 / 3, 0.8 / 3, 0.4])
    assert {rate for name, rate in student.items() if "extractor" in name} == {0.4}
    assert all(model.get_submodule(name).training == name.startswith("backbone.") for name in rates)
    pictures = torch.rand(2, 3, 64, 64)
    first, second = (model.backbone(pictures)["res4"] for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (model.teacher_backbone(pictures)["res4"] for _ in range(2))
    assert torch.equal(first, second)
    # nor does the teacher drop in the labels of a training step
    with torch.no_grad():
        first, second = (model.teacher_backbone.pooling_features(pictures, 4) for _ in range(2))
    assert torch.equal(first, second)
