from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from s2uniseg_d2.core.losses.dino_head import DINOHead, official_head_names


def head(**options) -> DINOHead:
    torch.manual_seed(0)
    return DINOHead(12, **({"hidden_dim": 16, "bottleneck_dim": 8, "num_prototypes": 10} | options))


def old_style_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "mlp.0.weight": (16, 12), "mlp.0.bias": (16,), "mlp.2.weight": (16, 16), "mlp.2.bias": (16,),
        "mlp.4.weight": (8, 16), "mlp.4.bias": (8,), "last_layer.weight_g": (10, 1), "last_layer.weight_v": (10, 8),
    }  # fmt: skip
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def by_hand(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    for i in (0, 2, 4):
        x = functional.linear(x, state[f"mlp.{i}.weight"], state[f"mlp.{i}.bias"])
        x = functional.gelu(x) if i < 4 else x / x.norm(dim=-1, keepdim=True)
    v = state["last_layer.weight_v"]
    return x @ (state["last_layer.weight_g"] * v / v.norm(dim=1, keepdim=True)).T


def test_old_keys_load_and_give_the_formula():
    module, state = head(), old_style_state()
    module.load_state_dict(dict(state))
    x = torch.randn(3, 5, 12)
    assert torch.allclose(module(x), by_hand(state, x), atol=1e-5)


def test_full_size_trains_the_published_number_of_parameters():
    assert sum(p.numel() for p in DINOHead(768).parameters() if p.requires_grad) == 6_426_880


def test_logits_are_cosines_at_the_start():
    module = head()
    logits = module(torch.randn(50, 12) * 100)
    assert logits.abs().max() <= 1 + 1e-6
    norms = module.last_layer.weight.norm(dim=1)
    assert torch.allclose(norms, torch.ones(10), atol=1e-6)


@pytest.mark.parametrize("frozen", [True, False])
def test_norms_are_trained_only_on_demand(frozen):
    module = head(norm_last_layer=frozen)
    module(torch.randn(4, 12)).square().sum().backward()
    norms = module.last_layer.parametrizations.weight.original0
    assert torch.equal(norms, torch.ones(10, 1))
    assert (norms.grad is None) == frozen
    assert module.last_layer.parametrizations.weight.original1.grad.abs().sum() > 0


def test_a_deep_copy_is_equal_and_independent():
    module = head()
    teacher = copy.deepcopy(module)
    x = torch.randn(4, 12)
    assert torch.equal(module(x), teacher(x))
    with torch.no_grad():
        module.mlp[0].weight.zero_()
    assert not torch.equal(module(x), teacher(x))


def test_biases_start_at_zero_and_weights_are_narrow():
    module = DINOHead(64, hidden_dim=128, bottleneck_dim=32, num_prototypes=8)
    for layer in (module.mlp[0], module.mlp[2], module.mlp[4]):
        assert isinstance(layer, nn.Linear)
        assert not layer.bias.any()
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_no_queries_give_every_trained_parameter_a_zero_gradient():
    module = head()
    logits = module(torch.zeros(0, 12))
    assert logits.shape == (0, 10)
    logits.sum().backward()
    assert all(not p.grad.any() for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_zero_bottleneck_is_finite_in_half_precision(dtype):
    module = head()
    nn.init.zeros_(module.mlp[4].weight)
    with torch.autocast("cpu", dtype=dtype):
        logits = module(torch.randn(3, 12))
    assert torch.isfinite(logits).all()


def test_other_spellings_are_renamed():
    state = old_style_state()
    official = {f"module.head.{name}": value for name, value in state.items()} | {
        "module.backbone.norm.bias": state["mlp.0.bias"]
    }
    assert official_head_names(official).keys() == state.keys()
    assert all(official_head_names(official)[name] is value for name, value in state.items())
    assert official_head_names(state) == state


def test_projection_head_and_prototypes_keep_their_output():
    state = old_style_state()
    published = {
        f"head.projection_head.{name.removeprefix('mlp.')}": value for name, value in state.items() if "mlp" in name
    }
    weight = torch.randn(10, 8)
    published["head.prototypes.weight"] = weight
    module = head()
    module.load_state_dict(official_head_names(published))
    assert torch.allclose(module.last_layer.weight, weight, atol=1e-6)
    assert torch.equal(module.mlp[2].weight, state["mlp.2.weight"])


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="at least 1, got"):
        head(num_prototypes=0)
    with pytest.raises(ValueError, match=r"state must hold a head \(mlp, last_layer"):
        official_head_names({"blocks.0.mlp.fc1.weight": torch.zeros(1)})
