"""By tensor operations here, and by kernels in the process that test_kernels.py starts."""

from __future__ import annotations

import pytest
import torch

from s2uniseg_d2.core.ops.partitions import (
    MergePlan,
    find_fresh,
    finish_merge,
    paint,
    record_partition,
    renumber,
    start_merge,
)
from tests.core.ops.conftest import INTERPRETS


def draw_groups(generator: torch.Generator, b: int, s: int, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sizes, 0 for padding anywhere, and the flat index of the first node of each one's group."""
    sizes = torch.randint(0, 6, (b, s), generator=generator)
    labels = torch.randint(groups, (b, s), generator=generator)
    roots = torch.arange(b * s).view(b, s)
    for graph in range(b):
        first: dict[int, int] = {}
        for node in range(s):
            if sizes[graph, node] > 0:
                roots[graph, node] = first.setdefault(int(labels[graph, node]), graph * s + node)
    return sizes, roots


def plan(roots, sizes, voted, min_tokens, edges) -> MergePlan:
    start = start_merge(roots, sizes, voted, min_tokens, edges)
    return finish_merge(start, start.totals.tolist())


def check_graph(found: MergePlan, graph: int, roots: list[int], sizes: list[int], voted: bool, min_tokens: int) -> None:
    s = len(sizes)
    groups: dict[int, list[int]] = {}
    for node in range(s):
        if sizes[node]:
            groups.setdefault(roots[node] - graph * s, []).append(node)
    members = list(groups.values())  # by first node
    number = {node: new for new, nodes in enumerate(members) for node in nodes}
    assert found.slot[graph].tolist() == [number.get(node, -1) for node in range(s)]
    assert int(found.counts[graph]) == len(members)
    padding = found.sizes.shape[1] - len(members)
    assert found.sizes[graph].tolist() == [sum(sizes[node] for node in nodes) for nodes in members] + [0] * padding
    assert found.before[graph, : len(members)].tolist() == [nodes[0] for nodes in members]
    assert bool(((found.before >= 0) & (found.before < s)).all())
    fresh = [new for new, nodes in enumerate(members) if len(nodes) > 1 or not voted]
    place = {new: rank for rank, new in enumerate(fresh)}
    assert found.place[graph].tolist() == [place.get(new, -1) for new in range(found.sizes.shape[1])]
    assert found.queued >= len(fresh)
    large = [new for new, nodes in enumerate(members) if sum(sizes[node] for node in nodes) >= min_tokens]
    assert int(found.large_counts[graph]) == len(large)
    assert found.large[graph, : len(large)].tolist() == large
    assert bool(((found.large >= 0) & (found.large < found.sizes.shape[1])).all())
    ranks = {new: rank for rank, new in enumerate(large)}
    assert found.large_number[graph].tolist() == [ranks.get(new, -1) for new in range(found.sizes.shape[1])]
    rest = found.large.shape[1] - len(large)
    assert found.large_sizes[graph].tolist() == found.sizes[graph, large].tolist() + [0] * rest


@pytest.mark.parametrize("voted", [False, True])
@pytest.mark.parametrize(("s", "groups"), [(1, 1), (7, 3), (40, 12), (40, 1), (1030, 300)])
def test_a_plan_is_what_a_loop_over_nodes_finds(s, groups, voted):
    generator = torch.Generator().manual_seed(s + groups)
    for _ in range(2 if INTERPRETS else 10):
        sizes, roots = draw_groups(generator, 3, s, groups)
        sizes[0, 0] = 1  # one node at least
        roots[0, 0] = 0
        real = [(sizes[graph] > 0).nonzero()[:, 0] for graph in range(3)]
        ends = [
            graph * s + nodes[torch.randint(len(nodes), (2, 2 * s), generator=generator)]
            for graph, nodes in enumerate(real)
            if len(nodes)
        ]
        padding = (sizes.flatten() == 0).nonzero()[:, 0]
        edges = torch.cat([*ends, padding.expand(2, -1)], dim=1)
        edges = edges[:, (edges[0] // s).argsort(stable=True)]
        found = plan(roots, sizes, voted, 4, edges)
        n = found.sizes.shape[1]
        assert n == int(found.counts.max())
        assert found.queued == int((found.place >= 0).sum(dim=1).max())
        assert found.large.shape[1] == int(found.large_counts.max())
        for graph in range(3):
            check_graph(found, graph, roots[graph].tolist(), sizes[graph].tolist(), voted, 4)
        new = [(end // s) * n + found.slot.flatten()[end] for end in edges]
        expected = {tuple(sorted(pair)) for pair in zip(*(end.tolist() for end in new), strict=True)}
        assert list(map(tuple, found.edges.T.tolist())) == sorted(pair for pair in expected if pair[0] != pair[1])


def test_a_plan_without_nodes_or_edges():
    roots = torch.arange(4).view(2, 2)
    found = plan(roots, torch.zeros(2, 2, dtype=torch.int64), True, 1, None)
    assert [found.sizes.shape, found.large.shape, found.edges.shape] == [(2, 0), (2, 0), (2, 0)]
    assert (found.queued, found.slot.tolist()) == (0, [[-1, -1], [-1, -1]])
    found = plan(roots[:, :0], torch.zeros(2, 0, dtype=torch.int64), True, 1, None)
    assert found.slot.shape == found.sizes.shape == (2, 0)
    assert plan(roots, torch.ones(2, 2, dtype=torch.int64), True, 1, roots[:, :0]).edges.shape == (2, 0)


def test_tokens_are_renumbered_and_written_down():
    members = torch.tensor([[0, 2, -1, 1, 2], [1, 1, 0, -1, 0]])
    number = torch.tensor([[5, -1, 7, 99], [3, 4, -1, 99]])[:, :3]
    assert renumber(members, number).tolist() == [[5, 7, -1, -1, 7], [4, 4, 3, -1, 3]]
    labels, tokens = torch.full((2, 2, 5), -7)
    record_partition(members, torch.tensor([[1, 1, 2], [2, 2, 0]]), labels, tokens)
    assert torch.equal(labels, members)
    assert tokens.tolist() == [[1, 2, 0, 1, 2], [2, 2, 2, 0, 2]]
    record_partition(torch.full((2, 5), -1), torch.zeros(2, 0, dtype=torch.int64), labels, tokens)
    assert (labels.unique().tolist(), tokens.unique().tolist()) == ([-1], [0])


@pytest.mark.parametrize("layers", [0, 1, 4])
def test_regions_are_fresh_that_no_earlier_partition_had(layers):
    generator = torch.Generator().manual_seed(layers)
    found = 0
    for _ in range(4 if INTERPRETS else 40):
        partitions = torch.randint(-1, 4, (layers + 1, 2, 9), generator=generator)
        partitions[1:, :, :6] = partitions[:-1, :, :6]  # some regions stay
        sizes = torch.stack([(partitions == region).sum(dim=2) for region in range(5)], dim=2)
        old, old_sizes = torch.empty(2, layers, 2, 9, dtype=torch.int64)
        for layer in range(layers):
            record_partition(partitions[layer], sizes[layer], old[layer], old_sizes[layer])
        fresh = find_fresh(partitions[-1], sizes[-1], old, old_sizes, torch.tensor([8, 3]), 2)
        assert fresh.dtype == torch.bool
        for graph, most in enumerate((8, 3)):
            masks = [{tuple((rows == region).tolist()) for region in range(4)} for rows in partitions[:, graph]]
            for region in range(5):
                mask = tuple((partitions[-1, graph] == region).tolist())
                expected = 2 <= sum(mask) <= most and all(mask not in earlier for earlier in masks[:-1])
                assert bool(fresh[graph, region]) == expected
                found += expected
    assert found > 0
    nothing = torch.zeros(2, 0, dtype=torch.int64)
    assert find_fresh(torch.full((2, 9), -1), nothing, old, old_sizes, torch.tensor([9, 9]), 1).shape == (2, 0)


@pytest.mark.parametrize("side", [1, 2])
def test_masks_are_painted_token_by_token(side):
    generator = torch.Generator().manual_seed(side)
    h, w = 5, 7
    rows, columns = -(-h // side), -(-w // side)
    members = torch.randint(-1, 4, (2, rows * columns), generator=generator)
    valid = torch.ones(2, h, w, dtype=torch.bool)
    valid[1, 3:] = valid[1, :, 6:] = False
    mask_of = torch.tensor([[9, 0, -1, 2, 1], [9, -1, 4, 3, -1]])[:, 1:]  # one mask of five has no tokens to show
    masks = torch.zeros(5, h, w, dtype=torch.bool)
    paint(masks, mask_of, members, valid, columns, side)
    expected = torch.zeros_like(masks)
    for graph, row, column in valid.nonzero().tolist():
        region = int(members[graph, row // side * columns + column // side])
        if region >= 0 and mask_of[graph, region] >= 0:
            expected[mask_of[graph, region], row, column] = True
    assert torch.equal(masks, expected)
    assert bool(expected.any())
    paint(masks, mask_of[:, :0], torch.full_like(members, -1), valid, columns, side)
    assert torch.equal(masks, expected)
