"""The token graph of one picture and its contraction (Eq. 4)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Nearest up-sampling of ViT tokens (stride 16) to the stride-4 map repeats each token in blocks of 4 x 4.
BLOCK_SIDES = (4, 2)
PROBE_CHANNELS = 8
# Nodes that are compared with their neighbours at a time.
BAND = 1024


class TokenGraph(NamedTuple):
    """The graph before the first layer: a node per token, or per block of tokens that are exactly equal.

    Attributes:
        node_of_token: ``(rows, columns)`` int64, row-major numbering of the nodes.
        first_tokens: ``(s,)`` int64 flat index of a token of each node.
        sizes: ``(s,)`` int64 tokens per node.
        edges: ``(2, e)`` int64, each pair of directly adjacent nodes once.
        grid: rows and columns of the nodes, which are numbered row by row.
        side: tokens along a side of a node.
    """

    node_of_token: Tensor
    first_tokens: Tensor
    sizes: Tensor
    edges: Tensor
    grid: tuple[int, int]
    side: int

    def select_nodes(self, tokens: Tensor) -> Tensor:
        """Return the features ``(d, s)`` of the nodes from the map ``(d, rows, columns)``."""
        flat = tokens.flatten(1)
        return flat if flat.shape[1] == self.sizes.numel() else flat[:, self.first_tokens]


def build_token_graph(tokens: Tensor) -> TokenGraph:
    """Connect horizontally and vertically adjacent tokens, starting from blocks where the map is constant on them.

    Source: section "Graph Initialization". Differs from the paper: equal tokens of one block have similarity 1, so
    that every threshold merges them in the first layer; starting from the blocks gives the same with fewer nodes.

    Args:
        tokens: ``(d, rows, columns)`` map, at least one token.
    """
    side = block_side(tokens)
    rows, columns = tokens.shape[1:]
    device = tokens.device
    block_rows, block_columns = -(-rows // side), -(-columns // side)
    row_block = torch.arange(rows, device=device) // side
    column_block = torch.arange(columns, device=device) // side
    grid = torch.arange(block_rows * block_columns, device=device).view(block_rows, block_columns)
    anchors = torch.arange(0, rows, side, device=device)[:, None] * columns + torch.arange(
        0, columns, side, device=device
    )
    sizes = torch.bincount(row_block)[:, None] * torch.bincount(column_block)
    right = torch.stack([grid[:, :-1].flatten(), grid[:, 1:].flatten()])
    down = torch.stack([grid[:-1].flatten(), grid[1:].flatten()])
    return TokenGraph(
        row_block[:, None] * block_columns + column_block,
        anchors.flatten(),
        sizes.flatten(),
        torch.cat([right, down], dim=1),
        (block_rows, block_columns),
        side,
    )


def compare_neighbours(rows: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the inner products ``(e,)`` of adjacent nodes of a grid, in the order of :attr:`TokenGraph.edges`.

    Args:
        rows: ``(s, d)`` features of the nodes, row by row of the grid.
        grid: rows and columns.
    """
    # Slices of the grid, in bands that stay in the cache: gathered rows of each edge would cost several times more.
    nodes = rows.view(*grid, -1)
    right, down = rows.new_empty(grid[0], grid[1] - 1), rows.new_empty(grid[0] - 1, grid[1])
    height = max(1, BAND // grid[1])
    for top in range(0, grid[0], height):
        band = nodes[top : top + height]
        right[top : top + height] = torch.linalg.vecdot(band[:, :-1], band[:, 1:])
        below = nodes[top + 1 : top + 1 + height]
        down[top : top + height] = torch.linalg.vecdot(band[: len(below)], below)
    return torch.cat([right.flatten(), down.flatten()])


def contract_edges(edges: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return the edges between the groups of a partition.

    Source: Eq. 4. Differs from the paper: ΩᵀEΩ > 0 without diagonal, because the printed ΩᵀE(ΩᵀE)ᵀ joins nodes two
    steps apart and loses adjacent ones.

    Args:
        edges: ``(2, e)`` int64 node pairs.
        labels: ``(s,)`` int64 group of each node, in [0, count).
        count: number of groups.

    Returns:
        ``(2, f)`` int64 with the smaller group first, sorted, no repetition and no self-loop; f may be 0.
    """
    ends = labels[edges]
    low, high = ends.min(dim=0).values, ends.max(dim=0).values
    keys = torch.unique((low * count + high)[low != high])
    return torch.stack([keys // max(count, 1), keys % max(count, 1)])


def block_side(tokens: Tensor) -> int:
    """Return the side of the largest blocks (BLOCK_SIDES) on which the map ``(d, rows, columns)`` is constant, or 1."""
    return next((k for k in BLOCK_SIDES if _is_block_constant(tokens, k)), 1)


def _is_block_constant(tokens: Tensor, side: int) -> bool:
    """Whether every side x side block, cut at the right and lower border, repeats its top left token."""
    rows, columns = tokens.shape[1:]
    if rows < side or columns < side:
        return False
    # Few channels refuse nearly every other map at a fraction of the cost.
    return all(
        _repeats_first(part, 1, side) and _repeats_first(part[:, ::side], 2, side)
        for part in (tokens[:PROBE_CHANNELS], tokens[PROBE_CHANNELS:])
    )


def _repeats_first(part: Tensor, dim: int, side: int) -> bool:
    """Whether every ``side`` slices along a dimension are equal to the first of them."""
    first, *others = (part[(slice(None),) * dim + (slice(start, None, side),)] for start in range(side))
    return all(torch.equal(other, first.narrow(dim, 0, other.shape[dim])) for other in others)
