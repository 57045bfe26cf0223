from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from s2uniseg_d2.core.losses.objectness import objectness_loss, summed_weight
from s2uniseg_d2.core.structures import Match

EMPTY = Match(*torch.zeros(3, 0, dtype=torch.int64))
MATCH = Match(torch.tensor([0, 1, 1]), torch.tensor([2, 0, 3]), torch.tensor([0, 0, 1]))


def test_equals_the_weighted_mean_by_hand():
    logits = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(0))
    total = weights = 0.0
    for view in range(2):
        for query in range(4):
            matched = (view, query) in {(0, 2), (1, 0), (1, 3)}
            a, b = logits[view, query].tolist()
            right = a if matched else b
            weight = 1.0 if matched else 0.1
            total += weight * (math.log(math.exp(a) + math.exp(b)) - right)
            weights += weight
    assert objectness_loss(logits, MATCH, normalizer=3.0).item() == pytest.approx(total / 3.0, rel=1e-5)
    assert summed_weight(torch.tensor(3.0), torch.tensor(8.0), 0.1).item() == pytest.approx(weights)


def test_weight_one_is_plain_cross_entropy():
    logits = torch.randn(2, 4, 2)
    labels = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 0]])
    plain = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert torch.allclose(objectness_loss(logits, MATCH, 1.0, normalizer=8), plain)


def test_right_answers_cost_little_and_index_0_is_object():
    logits = torch.tensor([-20.0, 20.0]).repeat(2, 4, 1)
    logits[MATCH.image, MATCH.query] = torch.tensor([20.0, -20.0])
    assert objectness_loss(logits, MATCH, normalizer=1.0) < 1e-6
    assert objectness_loss(-logits, MATCH, normalizer=3.5) > 10


def test_no_pairs_teach_no_object_with_a_gradient():
    logits = torch.zeros(2, 4, 2, requires_grad=True)
    loss = objectness_loss(logits, EMPTY, normalizer=0.8)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert (logits.grad[..., 0] > 0).all()
    assert (logits.grad[..., 1] < 0).all()


def test_no_queries_give_zero_with_a_graph():
    logits = torch.zeros(2, 0, 2, requires_grad=True)
    loss = objectness_loss(logits, EMPTY, normalizer=1.0)
    loss.backward()
    assert loss.item() == 0


def test_half_precision_is_computed_in_float32():
    logits = torch.full((1, 3, 2), 6e4, dtype=torch.float16, requires_grad=True)
    loss = objectness_loss(logits, EMPTY, normalizer=1.0)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"logits must have shape \(b, q, 2\), got \(2, 4, 3\)"):
        objectness_loss(torch.zeros(2, 4, 3), EMPTY, normalizer=1.0)
    with pytest.raises(ValueError, match="no_object_weight must be greater than 0, got 0"):
        objectness_loss(torch.zeros(2, 4, 2), EMPTY, 0.0, normalizer=1.0)
