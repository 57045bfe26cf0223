"""What autocast may and may not touch, and how far from float32 the losses come out."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional

import s2uniseg_d2.modeling  # noqa: F401  (registers)
from s2uniseg_d2.core.labelers.uniap import UniAP
from s2uniseg_d2.core.losses import matching
from s2uniseg_d2.core.ops import deformable
from tests.tiny import random_batch, tiny_config

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@pytest.fixture
def model():
    torch.manual_seed(0)
    built = build_model(tiny_config(MODEL__VIT__DROP_PATH=0.0))
    with torch.no_grad():
        # awake: offsets and attention weights that do not depend on the query would hide a loss of precision
        for name, parameter in built.named_parameters():
            if parameter.requires_grad and ("sampling_offsets" in name or "attention_weights" in name):
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return built


def autocast(dtype):
    return torch.autocast("cpu", dtype=dtype, enabled=dtype is not None)


def labelled(model):
    batch = random_batch(3)
    for item, labels in zip(batch, model.label(batch), strict=True):
        item["pseudo"] = labels
    return batch


def losses_and_gradient(model, batch, dtype):
    model.zero_grad()
    model._generator = None  # the same points each time
    with autocast(dtype):
        losses = model(batch)
        total = sum(losses.values())
    total.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return {name: loss.item() for name, loss in losses.items()}, gradient


@HALVES
def test_losses_and_gradients_stay_close_to_float32(model, dtype):
    batch = labelled(model)
    losses, gradient = losses_and_gradient(model, batch, None)
    mixed, mixed_gradient = losses_and_gradient(model, batch, dtype)
    assert losses.keys() == mixed.keys()
    # a pair or an attention mask may change sides where two are as good: single losses move more than the sum
    assert sum(mixed.values()) == pytest.approx(sum(losses.values()), rel=0.005)
    for name, loss in losses.items():
        assert mixed[name] == pytest.approx(loss, rel=0.03), name
    assert mixed != losses
    assert functional.cosine_similarity(gradient, mixed_gradient, dim=0) > 0.99


@HALVES
def test_deformable_attention_uniap_and_matching_compute_in_float32(model, dtype, monkeypatch):
    seen: dict[str, set[torch.dtype]] = defaultdict(set)

    def watch(owner, name, values_of):
        original = getattr(owner, name)

        def watched(*args, **kwargs):
            result = original(*args, **kwargs)
            seen[name] |= {value.dtype for value in values_of(args, result) if value.is_floating_point()}
            return result

        monkeypatch.setattr(owner, name, watched)

    watch(deformable.functional, "grid_sample", lambda args, result: [*args[:2], result])
    watch(deformable.MSDeformAttn, "_attend", lambda args, result: [*args[1:4], result])
    watch(UniAP, "__call__", lambda args, result: [args[1], *(kind.embeddings for label in result for kind in label)])
    watch(matching, "dice_cost", lambda args, result: [args[1], result])
    watch(functional, "scaled_dot_product_attention", lambda args, result: [*args[:3], result])
    with autocast(dtype):
        model(labelled(model))
    for name in ("grid_sample", "_attend", "__call__", "dice_cost"):
        assert seen[name] == {torch.float32}, name
    # the rest of the model is in half precision, so the watch can tell
    assert dtype in seen["scaled_dot_product_attention"]


@HALVES
def test_the_same_features_give_the_same_masks_under_autocast(model, dtype):
    features = torch.randn(2, 48, 12, 12, generator=torch.Generator().manual_seed(1))
    features = functional.avg_pool2d(features, 3, 1, 1)
    plain = model.labeler(features, [(12, 12), (12, 8)])
    with autocast(dtype):
        mixed = model.labeler(features, [(12, 12), (12, 8)])
    for one, other in zip(plain, mixed, strict=True):
        for kind, other_kind in zip(one, other, strict=True):
            assert len(kind.level) > 0
            assert all(torch.equal(a, b) for a, b in zip(kind, other_kind, strict=True))
