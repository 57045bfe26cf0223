from __future__ import annotations

import pytest
import torch
from torch import nn

from s2uniseg_d2.core.decoder.attention import Attention


@pytest.fixture
def pair():
    """Ours and torch's attention with the same weights, biases included."""
    torch.manual_seed(0)
    ours, theirs = Attention(24, num_heads=4), nn.MultiheadAttention(24, 4, batch_first=True)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.3)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


def test_equals_torch_multihead_attention(pair):
    ours, theirs = pair
    query, key, value = torch.randn(2, 5, 24), torch.randn(2, 9, 24), torch.randn(2, 9, 24)
    expected, _ = theirs(query, key, value, need_weights=False)
    torch.testing.assert_close(ours(query, key, value), expected, atol=1e-5, rtol=0)


def test_equals_torch_multihead_attention_under_a_mask_with_gradients(pair):
    ours, theirs = pair
    query, key, value = torch.randn(2, 5, 24), torch.randn(2, 9, 24), torch.randn(2, 9, 24)
    allowed = torch.rand(2, 5, 9) > 0.6
    allowed[..., 0] = True
    out = ours(query, key, value, allowed)
    expected, _ = theirs(query, key, value, need_weights=False, attn_mask=~allowed.repeat_interleave(4, dim=0))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    weights = torch.randn_like(out)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs.get_parameter(name).grad, atol=1e-4, rtol=1e-5)


def test_values_that_are_not_allowed_do_not_count(pair):
    ours, _ = pair
    query, memory = torch.randn(1, 3, 24), torch.randn(1, 6, 24)
    allowed = torch.tensor([1, 1, 0, 1, 0, 1], dtype=torch.bool).expand(1, 3, 6)
    changed = memory.clone()
    changed[:, [2, 4]] = 100.0
    assert torch.equal(ours(query, memory, memory, allowed), ours(query, changed, changed, allowed))
    assert not torch.equal(ours(query, memory, memory), ours(query, changed, changed))


@pytest.mark.parametrize(("dim", "heads"), [(10, 4), (8, 0), (0, 1)])
def test_refuses_heads_that_do_not_divide(dim, heads):
    with pytest.raises(ValueError, match=f"num_heads must divide the width, got num_heads {heads} and width {dim}"):
        Attention(dim, num_heads=heads)
