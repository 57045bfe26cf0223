"""From the layers of UniAP to the masks that leave it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from s2uniseg_d2.core.structures import PseudoLabels, PseudoMasks

if TYPE_CHECKING:
    from s2uniseg_d2.core.labelers.supernodes import Supernodes
    from s2uniseg_d2.core.labelers.uniap import UniAPConfig


class MaskCollector:
    """Gathers the masks of one picture layer by layer; equal masks count once, at their first layer."""

    def __init__(self, grid: tuple[int, int], config: UniAPConfig) -> None:
        """Start without masks.

        Args:
            grid: rows and columns of the full token grid.
            config: ``min_tokens``, ``max_masks`` and ``drop_whole`` are read.
        """
        self._instance = _KindCollector(grid, config, nested=True)
        self._semantic = _KindCollector(grid, config, nested=False)

    def add(self, instance: Tensor, instance_nodes: Supernodes, semantic: Tensor, semantic_nodes: Supernodes) -> None:
        """Take the regions of the next layer.

        Args:
            instance: ``(rows, columns)`` int64 supernode of every valid token.
            instance_nodes: those supernodes.
            semantic: ``(rows, columns)`` int64 semantic supernode of every valid token, -1 for none.
            semantic_nodes: those supernodes.
        """
        self._instance.add(instance, instance_nodes)
        self._semantic.add(semantic, semantic_nodes)

    def found(self) -> list[tuple[Supernodes, Tensor]]:
        """Return the supernodes of every layer with the numbers of those that are new masks; their V is read last."""
        return [*self._instance.found, *self._semantic.found]

    def finish(self, width: int, device: torch.device) -> PseudoLabels:
        """Return the masks.

        Args:
            width: embedding width d, for a result without masks.
            device: where the result lives.
        """
        return PseudoLabels(self._instance.finish(width, device), self._semantic.finish(width, device))


class _KindCollector:
    def __init__(self, grid: tuple[int, int], config: UniAPConfig, nested: bool) -> None:
        self._grid = grid
        self._config = config
        # Supernodes of nested partitions only grow: one that an earlier partition had is in the last one too.
        self._compared = 1 if nested else len(config.taus)
        self._layers: list[Tensor] = []
        self._old: list[tuple[Tensor, Tensor]] = []
        self.found: list[tuple[Supernodes, Tensor]] = []

    def add(self, labels: Tensor, nodes: Supernodes) -> None:
        fresh = nodes.sizes >= self._config.min_tokens
        if self._config.drop_whole:
            fresh &= nodes.sizes < labels.numel()
        flat, count = labels.flatten(), nodes.sizes.numel()
        if self._layers:
            fresh &= ~find_repeats(
                flat, count, nodes.sizes, *(torch.stack(old) for old in zip(*self._old[-self._compared :], strict=True))
            )
        self._old.append((flat, sizes_of_tokens(flat, nodes.sizes)))
        self._layers.append(labels)
        self.found.append((nodes, fresh.nonzero()[:, 0]))

    def finish(self, width: int, device: torch.device) -> PseudoMasks:
        sizes = torch.cat([nodes.sizes[index] for nodes, index in self.found])
        kept = torch.zeros(sizes.numel(), dtype=torch.bool, device=device)
        # Stable: among equally large masks the finer layer and the earlier token win.
        kept[sizes.argsort(descending=True, stable=True)[: self._config.max_masks]] = True
        masks = torch.zeros(int(kept.sum()), *self._grid, dtype=torch.bool, device=device)
        embeddings, levels, first = [], [], 0
        parts = torch.split(kept, [len(index) for _, index in self.found])
        for level, (part, (nodes, index), labels) in enumerate(zip(parts, self.found, self._layers, strict=True)):
            chosen = index[part]
            # Each token is written once a layer; the last number is for the tokens of no mask.
            place = torch.full((nodes.sizes.numel() + 1,), -1, device=device)
            place[chosen] = torch.arange(first, first + len(chosen), device=device)
            mask_of_token = place[labels]
            row, column = (mask_of_token >= 0).nonzero().T
            masks[mask_of_token[row, column], row, column] = True
            embeddings.append(nodes.features[chosen])
            levels.append(torch.full((len(chosen),), level, dtype=torch.int64, device=device))
            first += len(chosen)
        return PseudoMasks(masks, torch.cat(embeddings).view(-1, width), torch.cat(levels))


def find_repeats(labels: Tensor, count: int, sizes: Tensor, old_labels: Tensor, old_sizes: Tensor) -> Tensor:
    """Return which regions of a partition are, token for token, a region of an earlier one, without asking the host.

    Args:
        labels: ``(t,)`` int64 region of every token in [0, count), -1 for none.
        count: number of regions.
        sizes: ``(count,)`` tokens per region.
        old_labels: ``(m, t)`` int64 region of every token in m earlier partitions, -1 for none.
        old_sizes: ``(m, t)`` int64 tokens of that region.

    Returns:
        ``(count,)`` bool.
    """
    m, region = len(old_labels), torch.where(labels >= 0, labels, count).expand_as(old_labels)
    # A region whose tokens have one old region, of their own number, is that region.
    low = sizes.new_zeros(m, count + 1).scatter_reduce(1, region, old_labels, "amin", include_self=False)
    high = sizes.new_zeros(m, count + 1).scatter_reduce(1, region, old_labels, "amax", include_self=False)
    size = sizes.new_zeros(m, count + 1).scatter_reduce(1, region, old_sizes, "amax", include_self=False)
    return ((low == high) & (low >= 0))[:, :count].logical_and(size[:, :count] == sizes).any(dim=0)


def sizes_of_tokens(labels: Tensor, sizes: Tensor) -> Tensor:
    """Return the size of every token's region, ``labels``' shape, 0 for none."""
    padded = torch.cat([sizes, sizes.new_zeros(1)])
    return padded[torch.where(labels >= 0, labels, len(sizes))]
