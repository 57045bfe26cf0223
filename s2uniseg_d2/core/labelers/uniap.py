"""Universal Agglomerative Pooling: pseudo-masks from a feature map, without training and without an N x N matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from s2uniseg_d2.core.labelers.batched import BatchNodes, Candidates, lay_out, plan_merges, select_large
from s2uniseg_d2.core.labelers.batched import merge as merge_batch
from s2uniseg_d2.core.labelers.batched_emission import BatchCollector
from s2uniseg_d2.core.labelers.batched_identify import BatchIdentifier
from s2uniseg_d2.core.labelers.emission import MaskCollector
from s2uniseg_d2.core.labelers.graph import build_token_graph, compare_neighbours, contract_edges
from s2uniseg_d2.core.labelers.identify import Identification, Identifier, Weighting
from s2uniseg_d2.core.labelers.rounding import full_float32
from s2uniseg_d2.core.labelers.supernodes import Region, Supernodes, complete, merge, place_tokens, select
from s2uniseg_d2.core.labelers.voters import Voters
from s2uniseg_d2.core.structures import PseudoLabels

# Features that go through the layers at once on a GPU: 2 GiB in float64, of which there are some copies.
MOST_TOGETHER = 2**28
REGION_AFFINITIES = ("mean", "sum")
VOTER_POOLS = (1, 2, 4, 8, 16)
# The threshold rows of the paper's Table 3: its choice, more layers that cost more, and one that merges too much.
TAU_PRESETS = {
    "paper": (0.8, 0.7, 0.6, 0.5, 0.4),
    "fine": (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1),
    "low": (0.5, 0.4, 0.3, 0.2, 0.1),
}


@dataclass(frozen=True)
class UniAPConfig:
    """Settings of UniAP.

    Attributes:
        taus: threshold τ of every layer, strictly decreasing, in [-1, 1]; their number is the paper's Γ. The rows of
            its Table 3 are in TAU_PRESETS.
        sigma: softmax temperature σ of Eq. 5, above 0.
        omega_f: weight of the feature similarity in Eq. 3, at least 0.
        omega_s: weight of the spatial similarity in Eq. 3, at least 0; both sum to 1.
        min_tokens: smallest mask in tokens, at least 1. The paper is silent on what its φ = 5 counts: read as this.
        region_affinity: "mean" averages the affinities of a region's tokens in Eq. 5, "sum" adds them. Differs from the
            paper: the printed sum makes the softmax nearly an arg-max, against the text, so the mean is the default.
        voter_pool: 1 lets every token vote in Eq. 2 and Eq. 5, as the paper does. 2, 4, 8 or 16 let the mean of each
            square of so many tokens a side vote in their place: an approximation, faster by up to the square of it.
        until_stable: repeat each threshold until nothing merges. The paper is silent: one pass per layer.
        max_masks: most masks of each kind per picture, the largest are kept; at least 1. The paper is silent.
        drop_whole: leave out a mask that covers every valid token. The paper is silent.

    Raises:
        ValueError: a value is outside its range.
    """

    taus: tuple[float, ...] = TAU_PRESETS["paper"]
    sigma: float = 0.07
    omega_f: float = 0.6
    omega_s: float = 0.4
    min_tokens: int = 5
    region_affinity: str = "mean"
    voter_pool: int = 1
    until_stable: bool = False
    max_masks: int = 1000
    drop_whole: bool = True

    def __post_init__(self) -> None:
        _check_taus(self.taus)
        if not 0 < self.sigma < float("inf"):
            raise ValueError(f"sigma must be positive and finite, got {self.sigma}")
        for name in ("omega_f", "omega_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not abs(self.omega_f + self.omega_s - 1) <= 1e-6:
            raise ValueError(f"omega_f and omega_s must sum to 1, got {self.omega_f} + {self.omega_s}")
        for name in ("min_tokens", "max_masks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.voter_pool not in VOTER_POOLS:
            raise ValueError(f"voter_pool must be one of {VOTER_POOLS}, got {self.voter_pool!r}")
        if self.region_affinity not in REGION_AFFINITIES:
            raise ValueError(f"region_affinity must be one of {REGION_AFFINITIES}, got {self.region_affinity!r}")


def _check_taus(taus: tuple[float, ...]) -> None:
    if not taus:
        raise ValueError(f"taus must hold at least one threshold, got {taus}")
    if not all(-1 <= tau <= 1 for tau in taus):
        raise ValueError(f"taus must lie in [-1, 1], got {taus}")
    if any(low >= high for high, low in pairwise(taus)):
        raise ValueError(f"taus must decrease strictly, got {taus}")


class Layer(NamedTuple):
    """One UniAP layer of one picture.

    Attributes:
        instance: ``(rows, columns)`` int64 supernode of every valid token.
        semantic: the same after semantic pooling, -1 where the supernode is too small to take part.
        instance_nodes: the instance supernodes, with their Eq. 5 features.
        semantic_nodes: the semantic supernodes; V of the new ones is left to :func:`.supernodes.complete`, because no
            layer reads it and most masks of a layer are those of the one before.
        voters: of the picture.
        steps: what each Identify step took, semantic pooling last.
    """

    instance: Tensor
    semantic: Tensor
    instance_nodes: Supernodes
    semantic_nodes: Supernodes
    voters: Voters
    steps: tuple[Identification, ...]


class UniAP:
    """Finds instance and semantic pseudo-masks by merging similar neighbours, layer by layer.

    Source: section "Fast Universal Agglomerative Pooling", Eq. 1 to 5. Differs from the paper: the graph of Eq. 4 is
    ΩᵀEΩ > 0 without diagonal and Eq. 5 averages over a region (see :class:`UniAPConfig`); semantic pooling takes the
    supernodes of at least ``min_tokens`` tokens, because all pairs of thousands of single tokens cost too much.

    Every decision is the one of exact arithmetic: similarities are float32 with a certified error, and float64 where
    that does not decide. A similarity within 1e-9 below the threshold counts as reaching it. An embedding is zero where
    the vote of Eq. 5 cancels (opposite features only). Cost: d times tokens times new supernodes; no N x N matrix, but
    where N is at most 1.5 d (:attr:`.voters.Voters.are_few`), when it is hardly larger than the features. Autocast
    and the precision set for matrix products do not matter.
    """

    def __init__(self, config: UniAPConfig | None = None, batched: bool | None = None) -> None:
        """Take the settings.

        Args:
            config: the settings; None takes the paper's.
            batched: whether :meth:`__call__` works on all pictures at once, in float64 and with as many questions to
                the host as for one (:mod:`.batched`); None: on CUDA devices. Either way gives the same masks.
        """
        self.config = config or UniAPConfig()
        self.batched = batched
        self._region = Region(self.config.sigma, self.config.region_affinity)

    def __call__(self, features: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> list[PseudoLabels]:
        """Return the pseudo-masks of every picture.

        A mask is emitted once, at the first layer that has it; masks below ``min_tokens`` tokens are left out, and
        those that cover the whole picture if ``drop_whole``. A semantic group of one supernode is a mask too.

        Args:
            features: ``(b, d, h, w)`` float token maps, normalised here; b may be 0.
            sizes: valid (rows, columns) of every picture from the top left corner; only those tokens are nodes and
                voters. None: the whole grid.

        Returns:
            Per picture the masks ``(n, h, w)``, False in the padding, by level and then by first token; n may be 0.

        Raises:
            ValueError: wrong rank or type, NaN, Inf or a zero vector among the valid tokens, or sizes that do not fit.
        """
        labels = []
        maps = self._valid_maps(features, sizes)
        with full_float32(features.device):
            if self.batched if self.batched is not None else features.is_cuda:
                extents = [(tokens.shape[1], tokens.shape[2]) for tokens in maps]
                together = max(1, MOST_TOGETHER // features[:1].numel()) if maps else 1
                for start in range(0, len(maps), together):
                    part = slice(start, start + together)
                    labels += self._label_batch(features[part].detach(), extents[part])
                return labels
            for tokens in maps:
                masks = MaskCollector((features.shape[2], features.shape[3]), self.config)
                for layer in self.iterate_layers(tokens):
                    masks.add(layer.instance, layer.instance_nodes, layer.semantic, layer.semantic_nodes)
                complete(masks.found(), layer.voters, self._region)
                labels.append(masks.finish(features.shape[1], features.device))
        return labels

    def _label_batch(self, features: Tensor, sizes: Sequence[tuple[int, int]]) -> list[PseudoLabels]:
        """The pseudo-masks of all pictures at once."""
        config = self.config
        layout = lay_out(features, sizes, config.voter_pool)
        nodes, voters, edges = layout.nodes, layout.voters, layout.edges
        identifier = BatchIdentifier(voters, Weighting(config.omega_f, config.omega_s), config.taus)
        collector = BatchCollector(layout, config, self._region)
        before = layout.valid.sum(dim=(1, 2))  # that equal tokens of a block are one node already is a merge as well
        # Semantic pooling of a layer goes on beside the instances of the next: the host asks for both at once.
        large: BatchNodes | None = None
        for level in range(len(config.taus)):
            active = torch.ones_like(before, dtype=torch.bool)
            while True:
                jobs = [Candidates(nodes, edges, level)]
                if large is not None:
                    jobs.append(Candidates(large, None, level - 1))
                roots = identifier.group(jobs)
                if config.until_stable:  # a picture that is stable stays as it is while others go on
                    itself = torch.arange(roots[0].numel(), device=roots[0].device).view_as(roots[0])
                    roots[0] = torch.where(active[:, None], roots[0], itself)
                plans = plan_merges(jobs, roots, config.min_tokens)
                last = nodes
                nodes, edges = merge_batch(last, plans[0], voters, self._region), plans[0].edges
                if large is not None:
                    collector.add(last, merge_batch(large, plans[1], voters, None), large.sizes.shape[1])
                    large = None
                if not config.until_stable:
                    break
                active = active & (nodes.counts < before)
                before = nodes.counts
                if not bool(active.any()):
                    break
            large = select_large(nodes, plans[0])
            if nodes.sizes.shape[1] == 1:  # nothing is left to merge: later layers have no new mask
                break
        assert large is not None
        jobs = [Candidates(large, None, level)]
        (plan,) = plan_merges(jobs, identifier.group(jobs), config.min_tokens)
        collector.add(nodes, merge_batch(large, plan, voters, None), large.sizes.shape[1])
        return collector.finish()

    def partitions(self, features: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> Tensor:
        """Return the instance partition after every layer.

        Args:
            features: ``(b, d, h, w)`` float token maps.
            sizes: valid (rows, columns) of every picture; None: the whole grid.

        Returns:
            ``(b, layers, h, w)`` int64: supernodes counted from 0 in the order of their first token, -1 in the padding.

        Raises:
            ValueError: as :meth:`__call__`.
        """
        maps = self._valid_maps(features, sizes)
        shape = (len(maps), len(self.config.taus), *features.shape[-2:])
        result = torch.full(shape, -1, dtype=torch.int64, device=features.device)
        with full_float32(features.device):
            for image, tokens in enumerate(maps):
                for level, layer in enumerate(self.iterate_layers(tokens, semantic=False)):
                    result[image, level, : tokens.shape[1], : tokens.shape[2]] = layer.instance
        return result

    def iterate_layers(self, tokens: Tensor, semantic: bool = True) -> Iterator[Layer]:
        """Yield the layers of one picture, fine to coarse; call it without autocast and reduced matrix precision.

        Args:
            tokens: ``(d, rows, columns)`` float map, finite and without zero vectors.
            semantic: whether to do semantic pooling; without it nothing takes part.
        """
        graph = build_token_graph(tokens)
        voters = Voters(graph.select_nodes(tokens), graph.sizes, graph.grid)
        if self.config.voter_pool > graph.side:
            voters = voters.pool(self.config.voter_pool // graph.side)
        identifier = Identifier(voters, Weighting(self.config.omega_f, self.config.omega_s), self._region)
        nodes, edges = place_tokens(voters), graph.edges
        cosines: Tensor | None = compare_neighbours(voters.tokens.rows, graph.grid)
        before = graph.node_of_token.numel()  # that equal tokens of a block are one node already is a merge as well
        for tau in self.config.taus:
            steps = []
            while True:
                steps.append(identifier.group_edges(nodes, edges, tau, cosines))
                cosines = None
                labels = steps[-1].labels
                count = int(labels.max()) + 1
                nodes = merge(nodes, labels, count, voters, self._region)
                edges = contract_edges(edges, labels, count)
                if not self.config.until_stable or count == before:
                    break
                before = count
            chosen = (nodes.sizes >= self.config.min_tokens).nonzero()[:, 0] if semantic else labels[:0]
            large = select(nodes, chosen)
            steps.append(identifier.group_pairs(large, tau))
            groups = steps[-1].labels
            merged = merge(large, groups, int(groups.max()) + 1 if groups.numel() else 0, voters, None)
            group_of_node = torch.full_like(nodes.sizes, -1)
            group_of_node[chosen] = groups
            assignment = nodes.members[graph.node_of_token]
            yield Layer(assignment, group_of_node[assignment], nodes, merged, voters, tuple(steps))

    def _valid_maps(self, features: Tensor, sizes: Sequence[tuple[int, int]] | None) -> list[Tensor]:
        """Check the arguments and cut every picture to its valid rectangle."""
        if features.dim() != 4 or not features.is_floating_point() or 0 in features.shape[1:]:
            raise ValueError(
                f"features must be a non-empty float tensor (b, d, h, w), got {features.dtype} {tuple(features.shape)}"
            )
        batch, _, height, width = features.shape
        if sizes is None:
            sizes = [(height, width)] * batch
        if len(sizes) != batch:
            raise ValueError(f"sizes must name (rows, columns) of each of {batch} pictures, got {len(sizes)}")
        for image, (rows, columns) in enumerate(sizes):
            if not (1 <= rows <= height and 1 <= columns <= width):
                raise ValueError(f"sizes must lie in [1, {height}] x [1, {width}], got {(rows, columns)} at {image}")
        _check_tokens(features.detach(), sizes)
        return [features[image, :, :rows, :columns].detach() for image, (rows, columns) in enumerate(sizes)]


def _check_tokens(features: Tensor, sizes: Sequence[tuple[int, int]]) -> None:
    # The extremes say it all (NaN wins both) and need no copy of the maps; the host asks once for all pictures.
    peak = torch.maximum(features.amax(dim=1), -features.amin(dim=1))
    bad = ~((peak > 0) & (peak < torch.inf))
    for image, (rows, columns) in enumerate(sizes):
        if rows < bad.shape[1]:
            bad[image, rows:] = False
        if columns < bad.shape[2]:
            bad[image, :, columns:] = False
    if bool(bad.any()):
        image, row, column = bad.nonzero()[0].tolist()
        worst = float(peak[image, row, column])
        name = "a zero vector" if worst == 0 else "Inf" if worst == float("inf") else "NaN"
        raise ValueError(
            f"features must be finite and not zero, got {name} in picture {image} at row {row}, column {column}"
        )
