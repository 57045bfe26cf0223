"""The Identify step (Eq. 1 to 3) on a whole batch: which nodes merge, decided in float64 by bounds where they do.

Axes: b pictures, s nodes (the most of any picture), e edges, d feature width. A flat index is picture times s plus
node.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from s2uniseg_d2.core.labelers.batched import BatchNodes, BatchVoters, Candidates
from s2uniseg_d2.core.labelers.identify import TIE, Weighting
from s2uniseg_d2.core.ops.edges import (
    FlaggedEdges,
    bound_edges,
    bound_pairs,
    flag_open,
    flag_open_pairs,
    join_components,
    join_pairs,
    judge_edges,
    list_flagged,
    subtract_means,
)
from s2uniseg_d2.core.ops.transfer import ask, to_device
from s2uniseg_d2.core.ops.vectors import mean_rows

# Unit roundoff of float64.
UNIT64 = 2.0**-53
# How far off a GPU's product may be for each term: tensor cores keep 10 bits of both factors, and need not round sums.
OPERANDS = 2.0**-9 + 2.0**-20
SUMMAND = 2.0**-22


class BatchIdentifier:
    """Finds the connected groups of every picture's nodes for one threshold at a time.

    Args:
        voters: the voters.
        weighting: ω_f and ω_s.
        taus: the thresholds.
    """

    def __init__(self, voters: BatchVoters, weighting: Weighting, taus: Sequence[float]) -> None:
        self._voters = voters
        _, v, d = voters.rows.shape
        # Of an inner product of d terms, in which C has errors of v terms; eight of them in a bound.
        slack = 8 * 4 * (v + 3 * d + 16) * UNIT64
        rules = [[weighting.feature, weighting.spatial, tau - TIE, slack] for tau in taus]
        self._rules = to_device(torch.tensor(rules, dtype=torch.float64), voters.rows.device)
        self._moments = voters.moments.float()
        # |δ_j| ≤ ε Σ_k |C_jk| |U_k|, so that ‖δ‖ ≤ ε ‖C‖ ‖U‖ with the Frobenius norm, for both ends of an edge.
        error = OPERANDS * voters.rows.is_cuda + (d + 16) * SUMMAND
        self._doubt = torch.linalg.matrix_norm(voters.moments) * (2.1 * error)

    def group(self, jobs: Sequence[Candidates]) -> list[Tensor]:
        """Return, for each job, the group ``(b, s)`` of every node: the flat index of its first node.

        One question to the host for all jobs, how many edges the bounds leave open, and one product to measure them.
        """
        begun = [self._bound_pairs(job) if job.edges is None else self._bound_edges(job, job.edges) for job in jobs]
        known = ask(*(flagged.counts for _, flagged in begun))
        rows = sum(map(max, known))
        roots = [roots for roots, _ in begun]
        if rows:
            apart = self._voters.rows.new_empty(len(self._voters.rows), rows, self._voters.rows.shape[2])
            listed, first = [], 0
            for job, (_, flagged), counts in zip(jobs, begun, known, strict=True):
                listed.append(list_flagged(flagged, sum(counts), job.nodes.sizes.shape[1], rows, first))
                subtract_means(job.nodes.sums, job.nodes.sizes, listed[-1], apart)
                first += max(counts)
            spread = self._voters.disagree(apart)
            states = [judge_edges(spread, part, self._rules[job.level]) for job, part in zip(jobs, listed, strict=True)]
            roots = [
                join_components(*parts) for parts in zip(roots, (part.edges for part in listed), states, strict=True)
            ]
        return [found.view_as(job.nodes.sizes) for found, job in zip(roots, jobs, strict=True)]

    def _bound_edges(self, job: Candidates, edges: Tensor) -> tuple[Tensor, FlaggedEdges]:
        nodes, rule = job.nodes, self._rules[job.level]
        means = mean_rows(nodes.sums, nodes.sizes, torch.float32)
        with reduced_products(means.device):
            echo = means @ self._moments
        feature, state = bound_edges(nodes.features, nodes.sums, nodes.sizes, echo, self._doubt, edges, rule)
        roots = join_components(_alone(nodes), edges, state)
        return roots, flag_open(roots, edges, state, feature, len(nodes.sizes))

    def _bound_pairs(self, job: Candidates) -> tuple[Tensor, FlaggedEdges]:
        nodes, rule = job.nodes, self._rules[job.level]
        means = mean_rows(nodes.sums, nodes.sizes, torch.float64)
        feature = nodes.features @ nodes.features.mT
        reach = means @ (means @ self._voters.moments).mT
        state = bound_pairs(feature, means @ means.mT, reach, nodes.counts, rule)
        roots = join_pairs(_alone(nodes), state)
        return roots, flag_open_pairs(roots, state, feature)


@contextmanager
def reduced_products(device: torch.device) -> Iterator[None]:
    """Let a GPU multiply float32 matrices by its tensor cores, where a bound allows for their rounding."""
    if device.type != "cuda":
        yield
        return
    previous = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(previous)


def _alone(nodes: BatchNodes) -> Tensor:
    return torch.arange(nodes.sizes.numel(), device=nodes.sizes.device)
