"""Feature maps of many kinds, and the comparison of UniAP with its dense transcription."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from s2uniseg_d2.core.labelers.uniap import UniAP, UniAPConfig
from s2uniseg_d2.core.structures import PseudoLabels, PseudoMasks
from tests.oracles.uniap_dense import DenseMask, pool_densely

KINDS = (
    "smooth",
    "noisy",
    "regions",
    "constant",
    "orthogonal",
    "integers",
    "block",
    "duplicates",
    "one_row",
    "one_token",
)


def draw(generator: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))


def make_map(kind: str, generator: torch.Generator) -> torch.Tensor:
    """One map (1, d, h, w) with d in 1..64 and at most 18 tokens in a row."""
    d = (1, 2, 3, 8, 16, 64)[draw(generator, 0, 5)]
    h, w = draw(generator, 2, 9), draw(generator, 2, 9)
    if kind == "one_token":
        return torch.randn(1, d, 1, 1, generator=generator)
    if kind == "one_row":
        shape = (1, h * 2) if draw(generator, 0, 1) else (h * 2, 1)
        return 0.5 + torch.randn(1, d, *shape, generator=generator)
    if kind in ("smooth", "noisy", "regions"):
        return _make_distinct(kind, (d, h, w), generator)
    return _make_tied(kind, (d, h, w), generator)


def _make_distinct(kind: str, shape: tuple[int, int, int], generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(1, *shape, generator=generator)
    if kind == "noisy":
        return noise
    if kind == "smooth":
        coarse = torch.randn(1, shape[0], 3, 3, generator=generator)
        return functional.interpolate(coarse, size=shape[1:], mode="bilinear") + 0.2 * noise + 0.3
    colours = torch.randn(draw(generator, 1, 5), shape[0], generator=generator)
    cells = torch.randint(len(colours), (shape[1] // 2 + 1, shape[2] // 2 + 1), generator=generator)
    regions = colours[cells].permute(2, 0, 1)[None].repeat_interleave(2, 2).repeat_interleave(2, 3)
    return regions[..., : shape[1], : shape[2]] + 0.3 * noise


def _make_tied(kind: str, shape: tuple[int, int, int], generator: torch.Generator) -> torch.Tensor:
    d, h, w = shape
    if kind == "constant":
        return torch.randn(1, d, 1, 1, generator=generator).expand(1, d, h, w)
    if kind == "integers":
        values = torch.randint(-1, 2, (1, d, h, w), generator=generator).float()
        values[:, 0] += (values == 0).all(dim=1)
        return values
    if kind == "block":
        side = (2, 4)[draw(generator, 0, 1)]
        small = 0.5 + torch.randn(1, d, draw(generator, 1, 3), draw(generator, 1, 3), generator=generator)
        large = small.repeat_interleave(side, 2).repeat_interleave(side, 3)
        return large[..., : large.shape[2] - draw(generator, 0, 1), : large.shape[3] - draw(generator, 0, 1)]
    few = torch.eye(d) if kind == "orthogonal" else 0.4 + torch.randn(draw(generator, 1, 6), d, generator=generator)
    return few[torch.randint(len(few), (h, w), generator=generator)].permute(2, 0, 1)[None]


def make_config(generator: torch.Generator) -> UniAPConfig:
    taus = ((0.8, 0.7, 0.6, 0.5, 0.4), (0.9, 0.7, 0.5, 0.3, 0.1), (1.0, 0.5, 0.0, -1.0), (0.6,))[draw(generator, 0, 3)]
    omega_f = (0.6, 0.3, 1.0, 0.0)[draw(generator, 0, 3)]
    return UniAPConfig(
        taus=taus,
        sigma=(0.07, 0.07, 0.5, 0.01)[draw(generator, 0, 3)],
        omega_f=omega_f,
        omega_s=1 - omega_f,
        min_tokens=draw(generator, 1, 5),
        region_affinity=("mean", "mean", "sum")[draw(generator, 0, 2)],
        voter_pool=(1, 1, 1, 2, 4)[draw(generator, 0, 4)],
        until_stable=draw(generator, 0, 3) == 0,
        drop_whole=draw(generator, 0, 1) == 0,
    )


def assert_equals_oracle(features: torch.Tensor, config: UniAPConfig, size: tuple[int, int] | None = None) -> None:
    """Partitions and masks identical, embeddings within 1e-5, for one picture (1, d, h, w)."""
    rows, columns = size or tuple(features.shape[2:])
    truth = pool_densely(features[0, :, :rows, :columns].double().numpy(), config)
    uniap = UniAP(config)
    sizes = None if size is None else [size]
    partitions = uniap.partitions(features, sizes)[0]
    assert (partitions[:, :rows, :columns].numpy() == truth.partitions).all()
    assert (partitions[:, rows:] == -1).all()
    assert (partitions[:, :, columns:] == -1).all()
    labels: PseudoLabels = uniap(features, sizes)[0]
    _assert_same_masks(labels.instance, truth.instance, (rows, columns))
    _assert_same_masks(labels.semantic, truth.semantic, (rows, columns))


def _assert_same_masks(found: PseudoMasks, truth: list[DenseMask], size: tuple[int, int]) -> None:
    rows, columns = size
    assert not found.masks[:, rows:].any()
    assert not found.masks[:, :, columns:].any()
    expected = {(mask.mask.tobytes(), mask.level): mask.embedding for mask in truth}
    keys = [
        (mask[:rows, :columns].contiguous().numpy().tobytes(), level)
        for mask, level in zip(found.masks, found.level.tolist(), strict=True)
    ]
    assert len(keys) == len(truth)
    assert set(keys) == set(expected)
    for key, embedding in zip(keys, found.embeddings.numpy(), strict=True):
        np.testing.assert_allclose(embedding, expected[key], atol=1e-5, rtol=0)


def assert_same_labels(one: PseudoLabels, other: PseudoLabels) -> None:
    """Of one picture, on any device: equal masks and levels, and embeddings to 1e-5."""
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.masks.cpu(), b.masks.cpu())
        assert torch.equal(a.level.cpu(), b.level.cpu())
        torch.testing.assert_close(a.embeddings.cpu(), b.embeddings.cpu(), atol=1e-5, rtol=0)
