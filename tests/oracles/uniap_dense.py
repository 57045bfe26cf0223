"""UniAP as the paper writes it: dense matrices, float64, nothing clever. The truth that the fast one must equal.

Only the corrections of the equations are applied (the graph of Eq. 4, the mean of Eq. 5 on request) and the one rule
that makes ties well defined: a similarity that misses the threshold by at most TIE counts as reaching it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

TIE = 1e-9


class DenseMask(NamedTuple):
    mask: np.ndarray
    embedding: np.ndarray
    level: int


class DenseResult(NamedTuple):
    partitions: np.ndarray
    instance: list[DenseMask]
    semantic: list[DenseMask]


def _similarity(V, M, A, shares, omega_f, omega_s):
    """Eq. 1 to 3 for every pair of nodes."""
    feature = V @ V.T
    affinity = (M @ A) / M.sum(1, keepdims=True)
    spatial = np.stack([1 - np.abs(row - affinity) @ shares for row in affinity])
    return omega_f * feature + omega_s * spatial


def _grow_groups(adjacent):
    """Connected components by repeated spreading, numbered by first node: (s, groups) 0/1 matrix Omega."""
    s = len(adjacent)
    reach = adjacent | np.eye(s, dtype=bool)
    while True:
        wider = (reach.astype(float) @ reach) > 0
        if (wider == reach).all():
            break
        reach = wider
    firsts = reach.argmax(1)
    return (firsts[:, None] == np.unique(firsts)[None, :]).astype(float)


def _vote(M, A, F, shares, sigma, affinity):
    """Eq. 5 for every node: F are the voters, A = tokens x voters, shares the part of the picture of each voter."""
    logits = M @ A
    if affinity == "mean":
        logits = logits / M.sum(1, keepdims=True)
    logits = logits / sigma
    weights = shares * np.exp(logits - logits.max(1, keepdims=True))
    V = (weights / weights.sum(1, keepdims=True)) @ F
    length = np.linalg.norm(V, axis=1, keepdims=True)
    return np.where(length > TIE, V / np.maximum(length, TIE), 0)


def _grid(h, w):
    E = np.zeros((h * w, h * w), dtype=bool)
    for r in range(h):
        for c in range(w):
            if c + 1 < w:
                E[r * w + c, r * w + c + 1] = E[r * w + c + 1, r * w + c] = True
            if r + 1 < h:
                E[r * w + c, r * w + w + c] = E[r * w + w + c, r * w + c] = True
    return E


def _squares(h, w, side):
    """0/1 matrix (squares, h * w) of the squares of side x side tokens."""
    rows, columns = np.divmod(np.arange(h * w), w)
    names = (rows // side) * w + columns // side
    return (np.unique(names)[:, None] == names).astype(float)


def _collect(found, M, V, level, min_tokens, drop_whole):
    for mask, vector in zip(M.astype(bool), V, strict=True):
        if mask.sum() < min_tokens or (drop_whole and mask.all()):
            continue
        if not any((mask == old.mask).all() for old in found):
            found.append(DenseMask(mask, vector, level))


def _semantic(M, V, A, F, shares, tau, config):
    big = M.sum(1) >= config.min_tokens
    M, V = M[big], V[big]
    if not len(M):
        return M, V
    similar = _similarity(V, M, A, shares, config.omega_f, config.omega_s) >= tau - TIE
    M = _grow_groups(similar).T @ M
    return M, _vote(M, A, F, shares, config.sigma, config.region_affinity)


def pool_densely(features: np.ndarray, config) -> DenseResult:
    """features (d, h, w), already cut to its valid rectangle; masks come out as (h, w)."""
    d, h, w = features.shape
    F = features.reshape(d, h * w).T.astype(np.float64)
    F = F / np.linalg.norm(F, axis=1, keepdims=True)
    V, M, E = F, np.eye(h * w), _grid(h, w)
    squares = _squares(h, w, config.voter_pool)
    shares = squares.sum(1) / (h * w)
    F = squares @ F / squares.sum(1, keepdims=True)
    A = V @ F.T
    partitions, instance, semantic = [], [], []
    for level, tau in enumerate(config.taus):
        while True:
            similar = E & (_similarity(V, M, A, shares, config.omega_f, config.omega_s) >= tau - TIE)
            omega = _grow_groups(similar)
            M = omega.T @ M
            E = (omega.T @ E @ omega) > 0
            np.fill_diagonal(E, False)
            V = _vote(M, A, F, shares, config.sigma, config.region_affinity)
            if not config.until_stable or omega.shape[0] == omega.shape[1]:
                break
        partitions.append(M.argmax(0).reshape(h, w))
        _collect(instance, M, V, level, config.min_tokens, config.drop_whole)
        _collect(semantic, *_semantic(M, V, A, F, shares, tau, config), level, config.min_tokens, config.drop_whole)
    return DenseResult(
        np.stack(partitions),
        [m._replace(mask=m.mask.reshape(h, w)) for m in instance],
        [m._replace(mask=m.mask.reshape(h, w)) for m in semantic],
    )
