from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from s2uniseg_d2.core.losses import mask_losses as module
from s2uniseg_d2.core.losses.mask_losses import draw_uncertain_points, sample_points
from s2uniseg_d2.core.losses.point_draws import KeyedPoints
from s2uniseg_d2.core.structures import Match, TargetMasks


def mask_losses(logits, targets, match, **options):
    return module.mask_losses(logits, TargetMasks.join(targets), match, **options)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(seed: int = 0):
    """Points of their own for every mask, from one stream."""
    generator = seeded(seed)
    return lambda views, start, count: torch.rand(len(views), count, 2, generator=generator)


def match_of(*pairs: tuple[int, int, int]) -> Match:
    return Match(*torch.tensor(pairs, dtype=torch.int64).reshape(-1, 3).T)


MATCH = match_of((0, 4, 0), (0, 1, 2), (2, 0, 0), (2, 2, 1))


def problem(seed: int = 0, h: int = 12, w: int = 10) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = seeded(seed)
    logits = (torch.randn(3, 5, h, w, generator=generator) * 2).requires_grad_()
    return logits, [torch.rand(n, h, w, generator=generator) > 0.5 for n in (3, 0, 2)]


def by_hand(logits: torch.Tensor, targets: list[torch.Tensor], match: Match) -> tuple[float, float]:
    """All pixels, pair by pair, in float64."""
    cross_entropy = dice = 0.0
    for view, query, target in zip(*(part.tolist() for part in match), strict=True):
        p = 1 / (1 + np.exp(-logits[view, query].detach().double().numpy()))
        t = targets[view][target].double().numpy()
        cross_entropy += -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
        dice += 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    return cross_entropy, dice


def test_all_pixels_equal_the_formulas():
    logits, targets = problem()
    losses = mask_losses(logits, targets, MATCH, normalizer=2.5, num_points=0)
    cross_entropy, dice = by_hand(logits, targets, MATCH)
    assert losses["mask"].item() == pytest.approx(cross_entropy / 2.5, rel=1e-5)
    assert losses["dice"].item() == pytest.approx(dice / 2.5, rel=1e-5)


def test_perfect_masks_have_no_loss_and_points_see_that_too():
    targets = [torch.zeros(2, 16, 16, dtype=torch.bool)]
    targets[0][0, 4:12, 4:12] = True
    targets[0][1] = True
    logits = torch.where(targets[0], 60.0, -60.0)[None]
    both = match_of((0, 0, 0), (0, 1, 1))
    everything = mask_losses(logits, targets, both, normalizer=2, num_points=0)
    assert everything["mask"].item() < 1e-6
    assert everything["dice"].item() < 1e-6
    options = {"normalizer": 2, "num_points": 64, "importance_ratio": 0.0}
    right = mask_losses(logits, targets, both, points=drawn(), **options)
    wrong = mask_losses(-logits, targets, both, points=drawn(), **options)
    # between a mask's cells and their neighbours interpolation leaves some loss
    assert right["mask"] < wrong["mask"] / 10
    assert right["dice"] < 0.1 < 0.8 < wrong["dice"]


def test_points_equal_transformers_with_the_same_draws():
    reference = pytest.importorskip("transformers.models.mask2former.modeling_mask2former")
    transformers = pytest.importorskip("transformers")
    config = transformers.Mask2FormerConfig(train_num_points=112, oversample_ratio=3.0, importance_sample_ratio=0.75)
    loss = reference.Mask2FormerLoss(config, {})
    logits, targets = problem(1, 24, 20)
    indices = [([4, 1], [0, 2]), ([], []), ([0, 2], [0, 1])]
    indices = [
        (torch.tensor(query, dtype=torch.int64), torch.tensor(target, dtype=torch.int64)) for query, target in indices
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        theirs = loss.loss_masks(logits, [masks.float() for masks in targets], indices, 3)
    (their_gradient,) = torch.autograd.grad(sum(theirs.values()), logits)
    ours = mask_losses(logits, targets, MATCH, normalizer=3, num_points=112, points=drawn(7))
    (our_gradient,) = torch.autograd.grad(sum(ours.values()), logits)
    assert ours["mask"].item() == pytest.approx(theirs["loss_mask"].item(), abs=1e-6)
    assert ours["dice"].item() == pytest.approx(theirs["loss_dice"].item(), abs=1e-6)
    assert torch.allclose(our_gradient, their_gradient, atol=1e-7)
    # the comparison can tell other points
    other = mask_losses(logits, targets, MATCH, normalizer=3, num_points=112, points=drawn(8))
    assert abs(other["mask"].item() - theirs["loss_mask"].item()) > 1e-3


def test_many_points_approach_all_pixels():
    logits, targets = problem(h=32, w=32)
    logits = functional.avg_pool2d(logits, 5, 1, 2) * 3  # smooth, so that interpolation changes little
    targets = [functional.avg_pool2d(masks[:, None].float(), 5, 1, 2)[:, 0] > 0.5 for masks in targets]
    everything = mask_losses(logits, targets, MATCH, normalizer=4, num_points=0)
    sampled = mask_losses(
        logits, targets, MATCH, normalizer=4, num_points=20000, oversample_ratio=1, importance_ratio=0.0,
        points=drawn(),
    )  # fmt: skip
    assert sampled["mask"].item() == pytest.approx(everything["mask"].item(), rel=0.1)
    assert sampled["dice"].item() == pytest.approx(everything["dice"].item(), rel=0.1)


def test_samples_at_cell_centres_are_the_cells_and_zeros_lie_beyond_the_rim():
    maps = torch.randn(2, 3, 4)
    x, y = torch.meshgrid((torch.arange(4) + 0.5) / 4, (torch.arange(3) + 0.5) / 3, indexing="xy")
    points = torch.stack([x, y], dim=-1).flatten(0, 1).expand(2, -1, -1)
    assert torch.allclose(sample_points(maps, points), maps.flatten(1), atol=1e-6)
    corner = sample_points(torch.ones(1, 3, 4), torch.zeros(1, 1, 2))
    assert corner.item() == pytest.approx(0.25)


def test_uncertain_points_lie_where_the_logit_is_near_zero():
    ramp = torch.linspace(-8, 8, 32).expand(1, 32, 32).clone()  # zero at x = 0.5
    points = draw_uncertain_points(ramp, torch.tensor([0]), 400, 3.0, 0.75, drawn())
    assert points.shape == (1, 400, 2)
    assert points.min() >= 0
    assert points.max() <= 1
    chosen, anywhere = points[0, :300, 0], points[0, 300:, 0]
    rim = 1 / 64  # beyond the outermost centres the zero padding draws the logit to zero as well
    inner = (chosen > rim) & (chosen < 1 - rim)
    assert inner.float().mean() > 0.8
    assert ((chosen[inner] - 0.5).abs() < 0.15).float().mean() > 0.98
    assert (anywhere - 0.5).abs().max() > 0.4


def test_points_follow_their_source_alone(monkeypatch):
    maps, views = torch.randn(6, 8, 8), torch.tensor([0, 0, 1, 1, 1, 2])

    def points_of(seed):
        source = KeyedPoints(torch.randint(2**62, (3,), generator=seeded(seed)))
        return draw_uncertain_points(maps, views, 40, 3.0, 0.75, source)

    state = torch.get_rng_state()
    points = points_of(3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(points, points_of(3))
    assert not torch.equal(points, points_of(4))
    # the part that is placed anywhere is shared by the masks of a view, and no candidate is among it
    anywhere = points[:, 30:]
    assert torch.equal(anywhere[0], anywhere[1])
    assert not torch.equal(anywhere[1], anywhere[2])
    assert not any((point == anywhere[0]).all(dim=1).any() for point in points[0, :30])
    # looking at the candidates in parts changes nothing
    monkeypatch.setattr(module, "CANDIDATES_AT_ONCE", 240)
    assert torch.equal(points, points_of(3))


def test_targets_may_be_finer_than_logits():
    logits, targets = problem()
    fine = [masks.repeat_interleave(2, 1).repeat_interleave(2, 2) for masks in targets]
    losses = mask_losses(logits, fine, MATCH, normalizer=4, num_points=50, points=drawn())
    assert all(torch.isfinite(loss) for loss in losses.values())
    with pytest.raises(ValueError, match="targets must lie on the logits' grid when num_points is 0"):
        mask_losses(logits, fine, MATCH, normalizer=4, num_points=0)


@pytest.mark.parametrize("num_points", [0, 30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_pairs_give_zero_with_a_zero_gradient(num_points, dtype):
    # the sum of these logits overflows in half precision
    logits = torch.full((2, 3, 40, 40), 100.0, dtype=dtype, requires_grad=True)
    empty = [torch.zeros(0, 40, 40, dtype=torch.bool)] * 2
    losses = mask_losses(logits, empty, match_of(), normalizer=1.0, num_points=num_points, points=drawn())
    assert [loss.item() for loss in losses.values()] == [0, 0]
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    sum(losses.values()).backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("num_points", [0, 30])
def test_only_matched_queries_have_a_gradient(num_points):
    logits, targets = problem()
    losses = mask_losses(logits, targets, MATCH, normalizer=4, num_points=num_points, points=drawn())
    sum(losses.values()).backward()
    touched = {tuple(index) for index in logits.grad.flatten(2).abs().sum(2).nonzero().tolist()}
    assert touched == {(0, 4), (0, 1), (2, 0), (2, 2)}


@pytest.mark.parametrize("fill", [True, False])
def test_empty_and_full_targets_and_huge_logits_stay_finite(fill):
    logits = (torch.randn(1, 2, 8, 8) * 1e4).requires_grad_()
    targets = [torch.full((2, 8, 8), fill)]
    losses = mask_losses(logits, targets, match_of((0, 0, 0), (0, 1, 1)), normalizer=2, num_points=20, points=drawn())
    sum(losses.values()).backward()
    assert torch.isfinite(sum(losses.values()))
    assert torch.isfinite(logits.grad).all()


def test_mixed_precision_computes_in_float32():
    logits, targets = problem()
    plain = mask_losses(logits, targets, MATCH, normalizer=4, num_points=30, points=drawn())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = mask_losses(logits, targets, MATCH, normalizer=4, num_points=30, points=drawn())
    assert all(torch.equal(plain[name], mixed[name]) for name in ("mask", "dice"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_points": -1}, "num_points must be at least 0, got -1"),
        ({"oversample_ratio": 0.5}, "oversample_ratio must be at least 1, got 0.5"),
        ({"importance_ratio": 1.5}, r"importance_ratio must lie in \[0, 1\], got 1.5"),
        ({"points": None}, "points must have a source when num_points is not 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    logits, targets = problem()
    with pytest.raises(ValueError, match=message):
        mask_losses(logits, targets, MATCH, **({"normalizer": 1.0, "points": drawn()} | options))


def test_a_missing_view_is_refused():
    logits, targets = problem()
    with pytest.raises(ValueError, match="count the masks of each view, got 2 for 3 views"):
        mask_losses(logits, targets[:2], MATCH, normalizer=1.0, num_points=0)
