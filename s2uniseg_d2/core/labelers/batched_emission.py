"""From the layers of UniAP on a whole batch to the masks that leave it, without a question per picture or layer.

Axes: b pictures, t tokens of a picture (or blocks of equal ones), s nodes (the most of any picture), n nodes of all
layers, d feature width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from s2uniseg_d2.core.labelers.batched import BatchNodes, Layout, Queue, vote
from s2uniseg_d2.core.labelers.supernodes import Region
from s2uniseg_d2.core.ops.partitions import find_fresh, paint, record_partition
from s2uniseg_d2.core.ops.vectors import store_rows
from s2uniseg_d2.core.structures import PseudoLabels, PseudoMasks

if TYPE_CHECKING:
    from s2uniseg_d2.core.labelers.uniap import UniAPConfig


class BatchCollector:
    """Gathers the masks of a batch layer by layer; equal masks count once, at their first layer.

    Args:
        layout: of the batch.
        config: ``taus``, ``min_tokens``, ``max_masks`` and ``drop_whole`` are read.
        region: how Eq. 5 is read.
    """

    def __init__(self, layout: Layout, config: UniAPConfig, region: Region) -> None:
        self._layout = layout
        self._region = region
        self._kinds = [_BatchKind(layout, config, kind == "instance") for kind in PseudoLabels._fields]

    def add(self, instance: BatchNodes, semantic: BatchNodes, most: int) -> None:
        """Take the regions of the next layer, at most ``most`` instances of a picture that may be masks."""
        self._kinds[0].add(instance, most)
        self._kinds[1].add(semantic, semantic.sizes.shape[1])

    def finish(self) -> list[PseudoLabels]:
        """Return the masks of every picture, by level and then by first token."""
        kept = [kind.keep() for kind in self._kinds]
        waiting = [kind.await_votes(chosen) for kind, chosen in zip(self._kinds, kept, strict=True)]
        # The host's one question: how many masks there are of each picture, and how many have a V to get.
        counts = torch.stack([chosen.sum(dim=1) for chosen in (*kept, *waiting)]).tolist()
        made = [
            kind.make(kept[number], counts[number], waiting[number], max(counts[len(kept) + number]), self._region)
            for number, kind in enumerate(self._kinds)
        ]
        return [PseudoLabels(*pair) for pair in zip(*made, strict=True)]


class _BatchKind:
    def __init__(self, layout: Layout, config: UniAPConfig, nested: bool) -> None:
        self._config = config
        self._layers: list[BatchNodes] = []
        self._fresh: list[Tensor] = []
        members = layout.nodes.members
        # Every layer's region of each token, and the tokens of that region.
        self._old, self._old_sizes = members.new_empty(2, len(config.taus), *members.shape)
        self._nested = nested
        self._layout = layout
        self._largest = layout.nodes.sizes.sum(dim=1) - int(config.drop_whole)
        self._most = 0

    def add(self, nodes: BatchNodes, most: int) -> None:
        count = len(self._layers)
        # Supernodes only grow: one that an earlier layer had is in the last one too.
        before = slice(max(0, count - 1) if self._nested else 0, count)
        self._fresh.append(
            find_fresh(
                nodes.members,
                nodes.sizes,
                self._old[before],
                self._old_sizes[before],
                self._largest,
                self._config.min_tokens,
            )
        )
        record_partition(nodes.members, nodes.sizes, self._old[count], self._old_sizes[count])
        self._layers.append(nodes)
        self._most += most

    def keep(self) -> Tensor:
        """Which nodes ``(b, n)`` of all layers, joined, leave as masks."""
        fresh = torch.cat(self._fresh, dim=1)
        if self._most <= self._config.max_masks:
            return fresh
        sizes = torch.cat([nodes.sizes for nodes in self._layers], dim=1)
        # Stable: among equally large masks the finer layer and the earlier token win.
        order = torch.where(fresh, sizes, -1).argsort(dim=1, descending=True, stable=True)
        return fresh & torch.zeros_like(fresh).scatter(1, order[:, : self._config.max_masks], True)

    def await_votes(self, kept: Tensor) -> Tensor:
        """Which of the kept nodes have no V yet: all layers of a kind get theirs at once, or none does."""
        waiting = [nodes.waiting for nodes in self._layers if nodes.waiting is not None]
        return kept & (torch.cat(waiting, dim=1) >= 0) if waiting else torch.zeros_like(kept)

    def make(self, kept: Tensor, counts: list[int], waiting: Tensor, most: int, region: Region) -> list[PseudoMasks]:
        """The masks of every picture, of which there are ``counts``; at most ``most`` of a picture wait for a V."""
        layout, total, device = self._layout, sum(counts), kept.device
        rows = self._split(torch.where(kept, kept.flatten().cumsum(0).view_as(kept) - 1, -1))
        (_, h, w), d = layout.valid.shape, layout.nodes.sums.shape[2]
        masks = torch.zeros(total, h, w, dtype=torch.bool, device=device)
        vectors, levels = torch.empty(total, d, device=device), torch.empty(total, dtype=torch.int64, device=device)
        for level, (nodes, part) in enumerate(zip(self._layers, rows, strict=True)):
            paint(masks, part, nodes.members, layout.valid, layout.grid[1], layout.side)
            store_rows(nodes.features, part, vectors, level, levels)
        if most:
            places = self._split(torch.where(waiting, waiting.cumsum(dim=1) - 1, -1))
            queues = [
                Queue(nodes.sums, nodes.sizes, place, vectors, part)
                for nodes, place, part in zip(self._layers, places, rows, strict=True)
            ]
            vote(queues, most, layout.voters, region)
        parts = (torch.split(values, counts) for values in (masks, vectors, levels))
        return [PseudoMasks(*values) for values in zip(*parts, strict=True)]

    def _split(self, values: Tensor) -> tuple[Tensor, ...]:
        """Values ``(b, n)`` by layer."""
        return torch.split(values, [nodes.sizes.shape[1] for nodes in self._layers], dim=1)
