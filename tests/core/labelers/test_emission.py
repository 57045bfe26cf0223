from __future__ import annotations

import torch

from s2uniseg_d2.core.labelers.emission import MaskCollector
from s2uniseg_d2.core.labelers.supernodes import Supernodes
from s2uniseg_d2.core.labelers.uniap import UniAPConfig

CONFIG = UniAPConfig(min_tokens=1, drop_whole=False)


def nodes_of(labels: torch.Tensor, mark: float) -> Supernodes:
    """Supernodes of a label map; their features are (mark, number of the region)."""
    sizes = torch.bincount(labels[labels >= 0])
    features = torch.stack([torch.full(sizes.shape, mark), torch.arange(sizes.numel()).float()], dim=1)
    return Supernodes(
        sizes, labels.flatten(), None, features, features, torch.zeros(sizes.numel(), dtype=torch.float64)
    )


def collect(config: UniAPConfig, *layers: list[list[int]], grid: tuple[int, int] = (1, 6)) -> tuple[list, list, list]:
    """Semantic masks as token lists, embeddings and levels."""
    collector = MaskCollector(grid, config)
    for level, rows in enumerate(layers):
        labels = torch.tensor(rows)
        everything = torch.zeros_like(labels)
        collector.add(everything, nodes_of(everything, level), labels, nodes_of(labels, level))
    masks = collector.finish(2, torch.device("cpu")).semantic
    tokens = [mask.flatten().nonzero()[:, 0].tolist() for mask in masks.masks]
    return tokens, masks.embeddings.tolist(), masks.level.tolist()


def test_a_mask_counts_once_at_its_first_layer():
    tokens, embeddings, levels = collect(CONFIG, [[0, 0, 1, 1, -1, -1]], [[0, 0, 1, 1, 1, 2]], [[0, 0, 1, 1, 0, 0]])
    assert tokens == [[0, 1], [2, 3], [2, 3, 4], [5], [0, 1, 4, 5]]
    assert levels == [0, 0, 1, 1, 2]
    assert embeddings == [[0, 0], [0, 1], [1, 1], [1, 2], [2, 0]]


def test_equal_size_and_overlap_do_not_make_a_repetition():
    # The new region starts in an old one of its own size but continues in another.
    tokens, _, levels = collect(CONFIG, [[0, 0, 1, 1, -1, -1]], [[0, 1, 1, 0, -1, -1]], [[0, -1, -1, -1, 0, -1]])
    assert tokens == [[0, 1], [2, 3], [0, 3], [1, 2], [0, 4]]
    assert levels == [0, 0, 1, 1, 2]


def test_masks_lie_top_left_on_a_larger_grid():
    tokens, _, _ = collect(CONFIG, [[0, 1], [0, 1]], grid=(3, 3))
    assert tokens == [[0, 3], [1, 4]]


def test_the_largest_are_kept_in_the_order_of_discovery():
    config = UniAPConfig(min_tokens=1, drop_whole=False, max_masks=2)
    assert collect(config, [[0, 1, 1, 2, 2, 3]])[0] == [[1, 2], [3, 4]]
    assert collect(config, [[0, 1, 1, 2, 2, 3]], [[0, 1, 1, 1, 1, 2]])[0] == [[1, 2], [1, 2, 3, 4]]


def test_no_region_at_all():
    assert collect(CONFIG, [[-1, -1]], [[-1, -1]], grid=(1, 2)) == ([], [], [])
