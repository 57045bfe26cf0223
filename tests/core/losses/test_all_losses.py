"""All losses on a tiny student: finite, and a gradient for every trained parameter, whatever the views hold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from s2uniseg_d2.core.losses.dino_head import DINOHead
from s2uniseg_d2.core.losses.mask_losses import mask_losses
from s2uniseg_d2.core.losses.matching import MatchingProblem, match_masks
from s2uniseg_d2.core.losses.objectness import objectness_loss
from s2uniseg_d2.core.losses.point_draws import KeyedPoints
from s2uniseg_d2.core.losses.query_distillation import Center, query_distillation_loss
from s2uniseg_d2.core.structures import Match, TargetMasks


class TinyStudent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pixels = nn.Conv2d(3, 8, 3, padding=1)
        self.queries = nn.Embedding(4, 8)
        self.mix = nn.Linear(8, 8)
        self.objectness = nn.Linear(8, 2)
        self.head = DINOHead(8, hidden_dim=8, bottleneck_dim=8, num_prototypes=6)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pixels = self.pixels(images)
        queries = self.mix(self.queries.weight + pixels.mean((2, 3))[:, None])
        return torch.einsum("bqc,bchw->bqhw", queries, pixels), self.objectness(queries), queries


def match_one(logits: Tensor, targets: TargetMasks) -> Match:
    return match_masks({"": MatchingProblem(logits, targets)})[""]


def total_loss(student: TinyStudent, targets: TargetMasks, num_points: int) -> Tensor:
    masks, objectness, queries = student(torch.randn(len(targets.counts), 3, 8, 8))
    match = match_one(masks, targets)
    count = max(len(match.image), 1)
    losses = mask_losses(
        masks,
        targets,
        match,
        normalizer=count,
        num_points=num_points,
        points=KeyedPoints(torch.arange(len(targets.counts))),
    )
    teacher = torch.randn(len(match.image), 6)
    distillation = query_distillation_loss(
        student.head(queries[match.image, match.query]), teacher, Center(6).center, normalizer=count
    )
    return losses["mask"] + losses["dice"] + objectness_loss(objectness, match, normalizer=1.0) + distillation


@pytest.mark.parametrize("num_points", [0, 20])
@pytest.mark.parametrize(
    "views",
    [
        pytest.param([[], []], id="no masks at all"),
        pytest.param([[], ["some"]], id="one view without"),
        pytest.param([["full"], ["full", "full"]], id="all foreground"),
        pytest.param([["none"], ["none"]], id="all background"),
        pytest.param([["some"] * 9, ["some"]], id="more masks than queries"),
    ],
)
def test_losses_are_finite_and_reach_every_parameter(views, num_points):
    torch.manual_seed(0)
    student = TinyStudent()
    kinds = {"some": torch.rand(8, 8) > 0.5, "full": torch.ones(8, 8) > 0, "none": torch.zeros(8, 8) > 0}
    targets = [torch.stack([kinds[k] for k in view]) if view else torch.zeros(0, 8, 8) > 0 for view in views]
    loss = total_loss(student, TargetMasks.join(targets), num_points)
    loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


def test_learns_two_masks():
    """Gradient descent on the mask losses finds the masks, so their sign and their matching are right."""
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :4], masks[1, :, 5:] = True, True
    targets = TargetMasks.join([masks])
    torch.manual_seed(0)
    logits = nn.Parameter(torch.randn(1, 4, 8, 8) * 0.1)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for step in range(60):
        match = match_one(logits, targets)
        losses = mask_losses(
            logits, targets, match, normalizer=2.0, num_points=64, points=KeyedPoints(torch.tensor([step]))
        )
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert torch.equal(logits[match.image, match.query] > 0, masks)
