"""UniAP on a whole batch at once, for devices that wait at every question of the host: float64, dense, fixed shapes.

Axes: b pictures, t tokens of a picture (or blocks of equal ones), s nodes (the most of any picture), d feature width.
A pass over a layer asks the host twice, whether the components have settled and how many nodes are left, and nothing
while it compares, joins and votes. Float64 decides every edge at once, so that no bounds and no second looks are
needed: on data-centre GPUs it runs at the rate of float32. On the CPU, and on GPUs with slow float64, the path of
single pictures costs far less.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from s2uniseg_d2.core.labelers.graph import block_side
from s2uniseg_d2.core.labelers.identify import TIE, Weighting
from s2uniseg_d2.core.labelers.rows import normalise_rows
from s2uniseg_d2.core.labelers.supernodes import Region

# Numbers that a temporary tensor may hold: 512 MiB of float64.
TEMPORARY = 2**26
QUERY_CHUNK = 1024


class BatchNodes(NamedTuple):
    """Nodes of every picture; those from ``counts`` on are padding.

    Attributes:
        counts: ``(b,)`` int64 nodes of each picture.
        members: ``(b, t)`` int64 node of every token, -1 for none.
        sizes: ``(b, s)`` int64 tokens per node, 0 for padding.
        sums: ``(b, s, d)`` float64 R = M F.
        features: ``(b, s, d)`` float64 V.
    """

    counts: Tensor
    members: Tensor
    sizes: Tensor
    sums: Tensor
    features: Tensor

    @property
    def means(self) -> Tensor:
        """U, zero for padding."""
        return self.sums / self.sizes.clamp_min(1)[..., None]


class BatchVoters(NamedTuple):
    """``rows`` ``(b, v, d)`` float64, the voters, and ``weights`` ``(b, v)`` float64, their shares of the picture."""

    rows: Tensor
    weights: Tensor


def lay_out(maps: Sequence[Tensor], voter_pool: int) -> tuple[BatchNodes, BatchVoters, Tensor, list[Tensor]]:
    """Place every token (or block of equal tokens) as a node, on one grid for all pictures.

    Args:
        maps: ``(d, rows, columns)`` float maps of the pictures, at least one, finite and without zero vectors.
        voter_pool: see :class:`UniAPConfig`.

    Returns:
        The nodes, the voters, the edges ``(2, e)`` between neighbours as flat indices, and for every picture the
        ``(rows, columns)`` int64 node of each token.
    """
    device, b, d = maps[0].device, len(maps), maps[0].shape[0]
    side = min(block_side(tokens) for tokens in maps)
    height = -(-max(tokens.shape[1] for tokens in maps) // side)
    width = -(-max(tokens.shape[2] for tokens in maps) // side)
    rows = torch.zeros(b, height, width, d, dtype=torch.float64, device=device)
    sizes = torch.zeros(b, height, width, dtype=torch.int64, device=device)
    places = []
    for image, tokens in enumerate(maps):
        anchors = tokens[:, ::side, ::side].permute(1, 2, 0).double()
        # Scaled by the largest entry first: squares of float64 features may overflow.
        anchors = anchors / anchors.abs().amax(dim=2, keepdim=True)
        row, column = (torch.arange(n, device=device) // side for n in tokens.shape[1:])
        place = row[:, None] * width + column
        rows[image, : anchors.shape[0], : anchors.shape[1]] = anchors / torch.linalg.vector_norm(
            anchors, dim=2, keepdim=True
        )
        sizes[image].view(-1).scatter_add_(0, place.flatten(), torch.ones_like(place).flatten())
        places.append(place)
    flat, t = rows.flatten(1, 2), height * width
    sizes_flat = sizes.flatten(1)
    nodes = place_nodes(flat, sizes_flat)
    voters = _pool_voters(nodes, (height, width), voter_pool // side if voter_pool > side else 1)
    index = torch.arange(b * t, device=device).view(b, height, width)
    exists = sizes > 0
    pairs = [
        torch.stack([index[:, :, :-1][real], index[:, :, 1:][real]]) for real in [exists[:, :, :-1] & exists[:, :, 1:]]
    ] + [torch.stack([index[:, :-1][real], index[:, 1:][real]]) for real in [exists[:, :-1] & exists[:, 1:]]]
    return nodes, voters, torch.cat(pairs, dim=1), places


def place_nodes(rows: Tensor, sizes: Tensor) -> BatchNodes:
    """Return the nodes before the first layer, one per token.

    Args:
        rows: ``(b, t, d)`` float64 unit rows, zero in the padding.
        sizes: ``(b, t)`` int64 tokens that each stands for, 0 in the padding.
    """
    members = torch.where(sizes > 0, torch.arange(sizes.shape[1], device=rows.device), -1)
    return BatchNodes((sizes > 0).sum(dim=1), members, sizes, rows * sizes[..., None], rows)


def _pool_voters(nodes: BatchNodes, grid: tuple[int, int], side: int) -> BatchVoters:
    weights = nodes.sizes.double() / nodes.sizes.sum(dim=1, keepdim=True)
    if side == 1:
        return BatchVoters(nodes.features, weights)
    b, t, d = nodes.sums.shape
    row, column = (torch.arange(n, device=weights.device) // side for n in grid)
    groups = -(-grid[1] // side)
    label = (row[:, None] * groups + column).flatten().expand(b, t)
    count = -(-grid[0] // side) * groups
    sums = nodes.sums.new_zeros(b, count, d).scatter_add_(1, label[..., None].expand(b, t, d), nodes.sums)
    sizes = nodes.sizes.new_zeros(b, count).scatter_add_(1, label, nodes.sizes)
    shares = weights.new_zeros(b, count).scatter_add_(1, label, weights)
    return BatchVoters(sums / sizes.clamp_min(1)[..., None], shares)


class BatchPool:
    """The layers of UniAP on a batch.

    Args:
        weighting: ω_f and ω_s.
        region: how Eq. 5 is read.
    """

    def __init__(self, weighting: Weighting, region: Region) -> None:
        self._weighting = weighting
        self._region = region

    def group_edges(self, nodes: BatchNodes, voters: BatchVoters, edges: Tensor, tau: float) -> Tensor:
        """Return the component ``(b, s)`` of every node: the flat index of its first node.

        Args:
            nodes: the nodes.
            voters: the voters.
            edges: ``(2, e)`` int64 pairs of flat node indices (picture times s plus node), of one picture each.
            tau: threshold.
        """
        count = nodes.sizes.numel()
        spread = torch.zeros(edges.shape[1], dtype=torch.float64, device=edges.device)
        means = nodes.means
        for part in _slices(voters.weights.shape[1], max(1, TEMPORARY // max(edges.shape[1], count, 1))):
            votes = ((means @ voters.rows[:, part].mT) * voters.weights[:, None, part]).flatten(0, 1)
            spread += (votes[edges[0]] - votes[edges[1]]).abs_().sum(dim=1)
        flat = nodes.features.flatten(0, 1)
        feature = torch.empty_like(spread)
        for part in _slices(edges.shape[1], max(1, TEMPORARY // flat.shape[1])):
            feature[part] = torch.linalg.vecdot(flat[edges[0, part]], flat[edges[1, part]])
        similarity = self._weighting.feature * feature + self._weighting.spatial * (1 - spread)
        return _settle_components(edges, similarity >= tau - TIE, count).view_as(nodes.sizes)

    def group_pairs(self, nodes: BatchNodes, voters: BatchVoters, tau: float) -> Tensor:
        """Return the same as :meth:`group_edges` for all pairs of nodes of each picture."""
        b, s = nodes.sizes.shape
        means = nodes.means
        spread = torch.zeros(b, s, s, dtype=torch.float64, device=means.device)
        for part in _slices(voters.weights.shape[1], max(1, TEMPORARY // max(b * s, 1))):
            votes = (means @ voters.rows[:, part].mT) * voters.weights[:, None, part]
            spread += torch.cdist(votes, votes, p=1.0)
        similarity = self._weighting.feature * (nodes.features @ nodes.features.mT)
        similarity += self._weighting.spatial * (1 - spread)
        exists = nodes.sizes > 0
        joined = (similarity >= tau - TIE) & exists[:, None] & exists[:, :, None]
        low, high = torch.triu_indices(s, s, 1, device=means.device)
        offsets = torch.arange(b, device=means.device)[:, None] * s
        edges = torch.stack([(offsets + low).flatten(), (offsets + high).flatten()])
        return _settle_components(edges, joined[:, low, high].flatten(), b * s).view(b, s)

    def merge(self, nodes: BatchNodes, voters: BatchVoters, roots: Tensor) -> tuple[BatchNodes, Tensor]:
        """Return the nodes of a partition, numbered by first node, and the new number ``(b, s)`` of every node.

        Args:
            nodes: the nodes.
            voters: the voters.
            roots: ``(b, s)`` what :meth:`group_edges` returned.
        """
        b, s = nodes.sizes.shape
        exists = nodes.sizes > 0
        first = exists & (roots == torch.arange(b * s, device=roots.device).view(b, s))
        number = torch.where(first, first.cumsum(dim=1) - 1, 0).flatten()[roots]
        counts = first.sum(dim=1)
        most = int(counts.max()) if b else 0  # the host's one question between layers
        slot = torch.where(exists, number, most)  # padding goes to a slot that is cut off
        sums = nodes.sums.new_zeros(b, most + 1, nodes.sums.shape[2])
        sums.scatter_add_(1, slot[..., None].expand_as(nodes.sums), nodes.sums)
        sizes = nodes.sizes.new_zeros(b, most + 1).scatter_add_(1, slot, nodes.sizes)
        padded = torch.cat([slot, slot.new_full((b, 1), -1)], dim=1)
        members = torch.gather(padded, 1, torch.where(nodes.members >= 0, nodes.members, s))
        sums, sizes = sums[:, :most], sizes[:, :most]
        return BatchNodes(counts, members, sizes, sums, self._vote(sums, sizes, voters)), slot

    def select(self, nodes: BatchNodes, min_tokens: int) -> BatchNodes:
        """Return the nodes of at least ``min_tokens`` tokens, in their order."""
        b, s = nodes.sizes.shape
        chosen = nodes.sizes >= min_tokens
        counts = chosen.sum(dim=1)
        most = int(counts.max()) if b else 0
        order = torch.argsort((~chosen).to(torch.int8), dim=1, stable=True)[:, :most]
        sizes = torch.where(torch.gather(chosen, 1, order), torch.gather(nodes.sizes, 1, order), 0)
        wide = order[..., None].expand(-1, -1, nodes.sums.shape[2])
        number = torch.where(chosen, chosen.cumsum(dim=1) - 1, -1)
        padded = torch.cat([number, number.new_full((b, 1), -1)], dim=1)
        members = torch.gather(padded, 1, torch.where(nodes.members >= 0, nodes.members, s))
        sums = torch.gather(nodes.sums, 1, wide) * (sizes > 0)[..., None]
        return BatchNodes(counts, members, sizes, sums, torch.gather(nodes.features, 1, wide))

    def _vote(self, sums: Tensor, sizes: Tensor, voters: BatchVoters) -> Tensor:
        """Eq. 5 as attention: the nodes ask, the voters are keys and values."""
        scale = sizes.clamp_min(1)[..., None] if self._region.affinity == "mean" else 1
        queries = sums / scale / self._region.sigma
        mask = voters.weights.log()[:, None]  # -inf in the padding
        voted = [
            torch.nn.functional.scaled_dot_product_attention(part, voters.rows, voters.rows, mask, scale=1.0)
            for part in torch.split(queries, QUERY_CHUNK, dim=1)
        ]
        return normalise_rows(torch.cat(voted, dim=1)) if voted else queries


def contract(edges: Tensor, slot: Tensor, most: int) -> Tensor:
    """Return the edges between the merged nodes, as flat indices, each once and without self-loops (Eq. 4).

    Args:
        edges: ``(2, e)`` flat indices before the merge.
        slot: ``(b, s)`` new number of every node.
        most: the new s.
    """
    b = slot.shape[0]
    flat = (slot + torch.arange(b, device=slot.device)[:, None] * most).flatten()
    low, high = flat[edges].aminmax(dim=0)
    keys = torch.unique((low * (b * most) + high)[low != high])
    return torch.stack([torch.div(keys, max(b * most, 1), rounding_mode="floor"), keys % max(b * most, 1)])


def _settle_components(edges: Tensor, joined: Tensor, count: int) -> Tensor:
    """The smallest node of each node's component; edges that are not joined become self-loops."""
    tail, head = edges[0], torch.where(joined, edges[1], edges[0])
    root = torch.arange(count, device=edges.device)
    rounds = math.ceil(math.log2(max(count, 2)))
    while True:
        for _ in range(rounds):
            low, high = torch.aminmax(torch.stack([root[tail], root[head]]), dim=0)
            root = root.scatter_reduce(0, high, low, "amin")
            for _ in range(4):
                root = root[root]
        # Asked once, after as many rounds as nearly every graph needs.
        if bool((root[tail] == root[head]).all() & (root == root[root]).all()):
            return root


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))
