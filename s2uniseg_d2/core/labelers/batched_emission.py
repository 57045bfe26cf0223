"""From the layers of UniAP on a whole batch to the masks that leave it, without a question per picture or layer.

Axes: b pictures, t tokens of a picture (or blocks of equal ones), s nodes (the most of any picture), d feature width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from s2uniseg_d2.core.labelers.batched import BatchNodes, BatchVoters, Layout, take, take_first, vote
from s2uniseg_d2.core.labelers.emission import find_repeats, sizes_of_tokens
from s2uniseg_d2.core.labelers.supernodes import Region
from s2uniseg_d2.core.structures import PseudoLabels, PseudoMasks

if TYPE_CHECKING:
    from s2uniseg_d2.core.labelers.uniap import UniAPConfig


class BatchCollector:
    """Gathers the masks of a batch layer by layer; equal masks count once, at their first layer.

    Args:
        layout: of the batch.
        config: ``min_tokens``, ``max_masks`` and ``drop_whole`` are read.
        region: how Eq. 5 is read.
    """

    def __init__(self, layout: Layout, config: UniAPConfig, region: Region) -> None:
        self._layout = layout
        self._region = region
        self._kinds = [_BatchKind(layout, config, kind == "instance") for kind in PseudoLabels._fields]

    def add(self, instance: BatchNodes, semantic: BatchNodes) -> None:
        """Take the regions of the next layer."""
        for kind, nodes in zip(self._kinds, (instance, semantic), strict=True):
            kind.add(nodes)

    def finish(self) -> list[PseudoLabels]:
        """Return the masks of every picture, by level and then by first token."""
        kept = [kind.keep() for kind in self._kinds]
        waiting = [kind.await_votes(chosen) for kind, chosen in zip(self._kinds, kept, strict=True)]
        # The host's one question: how many masks there are of each picture, and how many have a V to get.
        counts = torch.stack([chosen.sum(dim=1) for chosen in (*kept, *waiting)]).tolist()
        made = []
        for number, kind in enumerate(self._kinds):
            most = max(counts[len(kept) + number])
            embeddings = kind.embed(waiting[number], most, self._layout.voters, self._region)
            made.append(kind.make(kept[number], counts[number], embeddings))
        return [PseudoLabels(*pair) for pair in zip(*made, strict=True)]


class _BatchKind:
    def __init__(self, layout: Layout, config: UniAPConfig, nested: bool) -> None:
        self._config = config
        self._layers: list[BatchNodes] = []
        self._fresh: list[Tensor] = []
        self._old: list[tuple[Tensor, Tensor]] = []
        self._nested = nested
        self._layout = layout
        self._tokens = layout.nodes.sizes.sum(dim=1, keepdim=True)

    def add(self, nodes: BatchNodes) -> None:
        fresh = nodes.sizes >= self._config.min_tokens
        if self._config.drop_whole:
            fresh &= nodes.sizes < self._tokens
        labels, sizes = _flat(nodes).flatten(), nodes.sizes.flatten()
        if self._layers:
            # Supernodes only grow: one that an earlier layer had is in the last one too.
            old = self._old[-1:] if self._nested else self._old
            earlier = (torch.stack(parts) for parts in zip(*old, strict=True))
            fresh &= ~find_repeats(labels, sizes.numel(), sizes, *earlier).view_as(fresh)
        self._old.append((labels, sizes_of_tokens(labels, sizes)))
        self._layers.append(nodes)
        self._fresh.append(fresh)

    def keep(self) -> Tensor:
        """Which nodes ``(b, n)`` of all layers, joined, leave as masks."""
        fresh = torch.cat(self._fresh, dim=1)
        sizes = torch.cat([nodes.sizes for nodes in self._layers], dim=1)
        # Stable: among equally large masks the finer layer and the earlier token win.
        order = torch.where(fresh, sizes, -1).argsort(dim=1, descending=True, stable=True)
        return fresh & torch.zeros_like(fresh).scatter(1, order[:, : self._config.max_masks], True)

    def await_votes(self, kept: Tensor) -> Tensor:
        """Which of the kept nodes have no V yet."""
        parts = [
            torch.zeros_like(nodes.sizes, dtype=torch.bool) if nodes.waiting is None else nodes.waiting
            for nodes in self._layers
        ]
        return kept & torch.cat(parts, dim=1)

    def embed(self, waiting: Tensor, most: int, voters: BatchVoters, region: Region) -> Tensor:
        """V ``(b, n, d)`` of all nodes, with those of the waiting ones, at most ``most`` of a picture."""
        features = torch.cat([nodes.features for nodes in self._layers], dim=1)
        if not most:
            return features
        sizes, sums = (torch.cat([getattr(nodes, name) for nodes in self._layers], dim=1) for name in ("sizes", "sums"))
        return vote(self._layers[-1]._replace(sizes=sizes, sums=sums, features=features), waiting, most, voters, region)

    def make(self, kept: Tensor, counts: list[int], embeddings: Tensor) -> list[PseudoMasks]:
        """The masks of every picture, of which there are ``counts``."""
        layout, b, total = self._layout, len(counts), sum(counts)
        row = torch.where(kept, kept.flatten().cumsum(0).view_as(kept) - 1, total)
        (_, h, w), device = layout.valid.shape, kept.device
        masks = torch.zeros(total + 1, h * w, dtype=torch.bool, device=device)  # the last takes what is no mask
        token = torch.arange(h * w, device=device)
        block = token // w // layout.side * layout.grid[1] + token % w // layout.side
        start = 0
        for nodes in self._layers:
            count = nodes.sizes.shape[1]
            rows = torch.cat([row[:, start : start + count], row.new_full((b, 1), total)], dim=1)
            of_block = torch.gather(rows, 1, torch.where(nodes.members >= 0, nodes.members, count))
            of_token = torch.where(layout.valid.flatten(1), of_block[:, block], total)
            masks.view(-1).scatter_(0, (of_token * (h * w) + token).flatten(), True)
            start += count
        chosen = take_first(kept, max(counts))
        levels = torch.cat([torch.full_like(nodes.sizes[0], n) for n, nodes in enumerate(self._layers)])[chosen]
        vectors = take(embeddings, chosen).float()
        return [
            PseudoMasks(mask, vectors[image, : len(mask)], levels[image, : len(mask)])
            for image, mask in enumerate(torch.split(masks[:-1].view(total, h, w), counts))
        ]


def _flat(nodes: BatchNodes) -> Tensor:
    """The flat index of every token's node, -1 for none."""
    b, s = nodes.sizes.shape
    flat = nodes.members + torch.arange(b, device=nodes.members.device)[:, None] * s
    return torch.where(nodes.members >= 0, flat, -1)
