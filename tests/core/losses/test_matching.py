from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from s2uniseg_d2.core.losses import matching
from s2uniseg_d2.core.losses.matching import MatchingProblem, flat_truth, match_masks
from s2uniseg_d2.core.structures import TargetMasks


def dice_cost(logits, targets):
    """Of one view."""
    joined = TargetMasks.join([targets])
    return matching.dice_cost(logits[None], flat_truth(joined), joined)


def match_views(logits, views):
    return match_masks({"only": MatchingProblem(logits, TargetMasks.join(views))})["only"]


def problem(q: int, n: int, seed: int, h: int = 4, w: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(q, h, w, generator=generator) * 3, torch.rand(n, h, w, generator=generator) > 0.6


def brute_force(cost: torch.Tensor) -> float:
    """The least sum over all one-to-one assignments of the smaller side."""
    if cost.shape[0] < cost.shape[1]:
        cost = cost.T
    q, n = cost.shape
    return min(sum(cost[row, column].item() for column, row in enumerate(rows)) for rows in permutations(range(q), n))


def test_perfect_masks_cost_nothing_and_disjoint_ones_everything():
    targets = torch.zeros(2, 40, 50, dtype=torch.bool)
    targets[0, :20], targets[1, 20:] = True, True
    cost = dice_cost(torch.where(targets, 100.0, -100.0), targets)
    assert cost.diagonal().tolist() == [0, 0]
    assert torch.allclose(cost.flip(1).diagonal(), torch.tensor(1 - 1 / 2001))


def test_cost_by_hand():
    logits = torch.tensor([[[0.0, 0.0], [float("-inf"), float("-inf")]]])
    targets = torch.tensor([[[True, False], [False, False]]])
    assert dice_cost(logits, targets).item() == pytest.approx(1 - (2 * 0.5 + 1) / (1 + 1 + 1))


def test_cost_of_empty_masks_is_zero():
    assert dice_cost(torch.full((1, 3, 3), -1e4), torch.zeros(1, 3, 3, dtype=torch.bool)).item() == 0


def test_cost_equals_transformers():
    reference = pytest.importorskip("transformers.models.mask2former.modeling_mask2former")
    logits, targets = problem(7, 5, 0, 11, 13)
    theirs = reference.pair_wise_dice_loss(logits.flatten(1), targets.float().flatten(1))
    assert torch.allclose(dice_cost(logits, targets), theirs, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5), (6, 1), (1, 6), (6, 6)])
@pytest.mark.parametrize("seed", range(8))
def test_sum_is_the_least_over_all_permutations(shape, seed):
    logits, targets = problem(*shape, seed)
    match = match_views(logits[None], [targets])
    cost = dice_cost(logits, targets)
    assert len(match.query) == min(shape)
    assert len(set(match.query.tolist())) == len(set(match.target.tolist())) == min(shape)
    assert cost[match.query, match.target].sum().item() == pytest.approx(brute_force(cost), abs=1e-5)


def test_a_batch_equals_its_views_one_by_one_and_is_sorted():
    sets = [problem(6, n, seed)[1] for seed, n in enumerate((4, 0, 9, 1))]
    logits = torch.stack([problem(6, 1, 10 + seed)[0] for seed in range(4)])
    match = match_views(logits, sets)
    assert match.image.tolist() == [0] * 4 + [2] * 6 + [3]
    for view, targets in enumerate(sets):
        alone = match_views(logits[view : view + 1], [targets])
        here = match.image == view
        assert torch.equal(match.query[here], alone.query)
        assert torch.equal(match.target[here], alone.target)
        assert alone.target.tolist() == sorted(alone.target.tolist())


def test_finds_the_permutation_that_made_the_logits():
    targets = problem(1, 6, 3, 16, 16)[1]
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    logits = torch.where(targets[order], 4.0, -4.0)
    match = match_views(logits[None], [targets])
    assert torch.equal(order[match.query], match.target)
    assert match.target.tolist() == list(range(6))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_no_targets_no_pairs(count):
    targets = TargetMasks.of(torch.zeros(0, 4, 4, dtype=torch.bool), [0] * count)
    match = match_masks({"": MatchingProblem(torch.zeros(count, 5, 4, 4), targets)})[""]
    assert [tuple(part.shape) for part in match] == [(0,)] * 3
    assert {part.dtype for part in match} == {torch.int64}


def test_empty_targets_and_infinite_logits_are_matched():
    logits = torch.full((1, 3, 4, 4), float("inf"))
    assert len(match_views(logits, [torch.zeros(2, 4, 4, dtype=torch.bool)]).query) == 2


def test_equal_costs_give_the_same_pairs_each_time():
    logits, targets = torch.zeros(1, 5, 4, 4), torch.ones(3, 4, 4, dtype=torch.bool)
    first, second = match_views(logits, [targets]), match_views(logits, [targets])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_last_bits_of_costs_do_not_decide_between_equal_masks():
    logits, masks = problem(6, 4, 5, 9, 7)
    twins = np.array([0, 1, 0, 2, 0, 1, 3, 3])  # eight targets for six queries
    match = match_views(logits[None], [masks[twins]])
    cost = dice_cost(logits, masks[twins]).numpy()
    plain = matching._assign(cost, (8,), twins)
    assert all(np.array_equal(a, b) for a, b in zip(plain, match, strict=True))
    noise = np.random.default_rng(0)
    for _ in range(8):
        noisy = cost + noise.normal(0, 1e-7, cost.shape).astype(np.float32)
        assert np.array_equal(matching._assign(noisy, (8,), twins), plain)
    # the sum is still the least, and of equal masks the first take part, in the order of their queries
    _, query, target = plain
    assert cost[query, target].sum() <= cost[linear_sum_assignment(cost)].sum() + 1e-6
    for twin in range(4):
        alike = np.flatnonzero(twins == twin)
        taken = [(t, q) for q, t in zip(query, target, strict=True) if twins[t] == twin]
        assert [t for t, _ in taken] == list(alike[: len(taken)])
        assert [q for _, q in taken] == sorted(q for _, q in taken)


def test_masks_that_differ_in_a_cell_are_told_apart():
    masks = torch.eye(40 * 50, dtype=torch.bool).view(-1, 40, 50)[::7]
    signatures = matching._sign(flat_truth(TargetMasks.join([torch.cat([masks, masks])])))
    assert len({tuple(column) for column in signatures.T.tolist()}) == len(masks)


def layered_problems(layers=3):
    """Two groups after several layers: the targets of a group are shared."""
    targets = [TargetMasks.join([problem(1, n, seed + n)[1] for n in (2, 0, 7)]) for seed in (0, 20)]
    return {
        f"{group}_{layer}": MatchingProblem(
            torch.stack([problem(q, 1, 7 * layer + view)[0] for view in range(3)]), part
        )
        for group, q, part in zip(("ins", "sem"), (5, 3), targets, strict=True)
        for layer in range(layers)
    }


def test_problems_together_equal_each_alone():
    problems = layered_problems()
    matches = match_masks(problems)
    assert list(matches) == list(problems)
    for name, posed in problems.items():
        (alone,) = match_masks({name: posed}).values()
        assert all(torch.equal(a, b) for a, b in zip(matches[name], alone, strict=True))
        assert len(alone.query) == sum(min(posed.logits.shape[1], n) for n in (2, 0, 7))
    assert match_masks({}) == {}


def test_one_copy_to_the_host_for_all_layers_groups_and_views(monkeypatch):
    copies = []
    original = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: copies.append(1) or original(self))
    match_masks(layered_problems())
    assert len(copies) == 1


def test_costs_are_float32_under_mixed_precision():
    logits, targets = problem(4, 3, 0, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = dice_cost(logits, targets)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, dice_cost(logits, targets))
    assert torch.equal(dice_cost(logits.half(), targets), dice_cost(logits.half().float(), targets))


def test_no_graph_is_kept():
    logits = torch.randn(1, 4, 4, 4, requires_grad=True)
    assert not any(part.requires_grad for part in match_views(logits, [torch.ones(2, 4, 4, dtype=torch.bool)]))
    assert dice_cost(logits[0], torch.ones(2, 4, 4, dtype=torch.bool)).requires_grad


def test_bad_input_is_refused():
    targets = [torch.ones(2, 4, 4, dtype=torch.bool)]
    with pytest.raises(FloatingPointError, match="only: mask logits must give finite matching costs, got 2 others"):
        match_views(torch.cat([torch.zeros(1, 3, 4, 4), torch.full((1, 1, 4, 4), float("nan"))], dim=1), targets)
    with pytest.raises(ValueError, match=r"count the masks of each view .*, got 1 counts for logits"):
        match_views(torch.zeros(2, 3, 4, 4), targets)
    with pytest.raises(ValueError, match="must share their grid"):
        match_views(torch.zeros(1, 3, 4, 5), targets)
