from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from s2uniseg_d2.core.labelers import graph, identify, rows, spread, supernodes, voters
from s2uniseg_d2.core.labelers.uniap import UniAP, UniAPConfig
from s2uniseg_d2.core.ops import components, products
from s2uniseg_d2.core.ops.components import propagate_labels
from tests.core.labelers.maps import KINDS, assert_equals_oracle, make_config, make_map
from tests.oracles.uniap_dense import pool_densely


@pytest.mark.parametrize("kind", KINDS)
def test_identical_to_the_dense_transcription(kind):
    generator = torch.Generator().manual_seed(KINDS.index(kind))
    for _ in range(100):
        assert_equals_oracle(make_map(kind, generator), make_config(generator))


def test_identical_inside_the_valid_rectangle():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        features = make_map("smooth", generator)
        rows = int(torch.randint(1, features.shape[2] + 1, (), generator=generator))
        columns = int(torch.randint(1, features.shape[3] + 1, (), generator=generator))
        features[:, :, rows:] = float("nan")
        features[..., columns:] = 0
        assert_equals_oracle(features, make_config(generator), (rows, columns))


def test_identical_when_everything_is_chunked(monkeypatch):
    monkeypatch.setattr(voters, "ROW_CHUNK", 5)
    monkeypatch.setattr(voters, "VOTER_CHUNK", 7)
    monkeypatch.setattr(voters, "QUERY_CHUNK", 3)
    monkeypatch.setattr(voters, "ELECTION_CHUNK", 3)
    monkeypatch.setattr(voters, "DOUBLE_CHUNK", 4)
    monkeypatch.setattr(voters, "AFFINITY_BLOCK", 5)
    monkeypatch.setattr(voters, "FEW_QUERIES", 1)
    monkeypatch.setattr(graph, "BAND", 2)
    monkeypatch.setattr(spread, "EDGE_CHUNK", 6)
    monkeypatch.setattr(components, "FEW_EDGES", 3)
    monkeypatch.setattr(products, "WORTHWHILE", 1)
    monkeypatch.setattr(rows, "SHORT_SUM", 2)
    monkeypatch.setattr(rows, "ROW_CHUNK", 5)
    monkeypatch.setattr(voters, "GROUPS", 3)
    monkeypatch.setattr(spread, "BLOCK", 2)
    monkeypatch.setattr(supernodes, "ROW_CHUNK", 5)
    monkeypatch.setattr(identify, "EDGE_CHUNK", 6)
    monkeypatch.setattr(identify, "PAIR_ROWS", 2)
    monkeypatch.setattr(identify, "DENSE_FROM", 0)
    generator = torch.Generator().manual_seed(1)
    for kind in ("smooth", "regions", "integers", "block", "duplicates") * 4:
        assert_equals_oracle(make_map(kind, generator), make_config(generator))


@pytest.mark.parametrize("name", ["FEW_QUERIES", "LONGEST_STEADY"])
@pytest.mark.parametrize("value", [0, 1000])
def test_identical_whatever_way_the_votes_are_counted(monkeypatch, name, value):
    monkeypatch.setattr(voters, name, value)
    generator = torch.Generator().manual_seed(8)
    for kind in ("smooth", "noisy", "regions", "integers", "duplicates", "block") * 3:
        assert_equals_oracle(make_map(kind, generator), make_config(generator))


@pytest.mark.parametrize("coarse_from", [0, 1000])
def test_identical_with_and_without_the_coarse_bounds(monkeypatch, coarse_from):
    monkeypatch.setattr(identify, "COARSE_FROM", coarse_from)
    generator = torch.Generator().manual_seed(2)
    for kind in ("smooth", "noisy", "regions", "integers", "duplicates") * 4:
        assert_equals_oracle(make_map(kind, generator), make_config(generator))


@pytest.mark.parametrize("few", [0, 1000])
def test_identical_with_bounds_and_without_any(monkeypatch, few):
    monkeypatch.setattr(voters, "FEW", few)
    generator = torch.Generator().manual_seed(7)
    for kind in ("smooth", "noisy", "regions", "integers", "duplicates", "block") * 4:
        assert_equals_oracle(make_map(kind, generator), make_config(generator))


def test_identical_on_a_larger_map_where_float32_alone_would_not_do():
    generator = torch.Generator().manual_seed(3)
    features = torch.nn.functional.avg_pool2d(torch.randn(1, 48, 24, 24, generator=generator), 3, 1, 1) + 0.03
    assert_equals_oracle(features, UniAPConfig())


@settings(max_examples=150, deadline=None)
@given(
    values=hnp.arrays(
        np.int8, st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)), elements=st.integers(-2, 2)
    ),
    affinity=st.sampled_from(["mean", "sum"]),
    tau=st.sampled_from([1.0, 0.8, 0.6, 0.4, 0.2, 0.0]),
    min_tokens=st.integers(1, 4),
    voter_pool=st.sampled_from([1, 2, 4]),
    until_stable=st.booleans(),
)
def test_identical_on_any_small_integer_map(values, affinity, tau, min_tokens, voter_pool, until_stable):
    features = torch.from_numpy(values.astype(np.float32))[None]
    features[:, 0] += (features == 0).all(dim=1)
    config = UniAPConfig(
        taus=(tau, tau - 0.15, tau - 0.6),
        region_affinity=affinity,
        min_tokens=min_tokens,
        voter_pool=voter_pool,
        until_stable=until_stable,
    )
    assert_equals_oracle(features, config)


def test_blocks_that_start_as_one_node_have_merged_already():
    # Both blocks vote alike (one pooled voter), so that a second pass joins them although the first found no pair.
    features = torch.tensor([[1.0, 0.2], [0.3, 1.0]]).repeat_interleave(2, 0).T[None, :, :, None].expand(1, 2, 4, 2)
    config = UniAPConfig(taus=(0.9,), until_stable=True, voter_pool=4)
    assert UniAP(config).partitions(features).unique().tolist() == [0]
    assert_equals_oracle(features, config)


def edge_similarities(features: torch.Tensor) -> np.ndarray:
    """Eq. 3 of every pair of neighbours before the first layer, written out once more."""
    d, h, w = features.shape[1:]
    unit = features[0].double().numpy().reshape(d, -1).T
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    index = np.arange(h * w).reshape(h, w)
    i = np.concatenate([index[:, :-1].ravel(), index[:-1].ravel()])
    j = np.concatenate([index[:, 1:].ravel(), index[1:].ravel()])
    spread = np.abs((unit[i] - unit[j]) @ unit.T).mean(1)
    return 0.6 * (unit[i] * unit[j]).sum(1) + 0.4 * (1 - spread)


@pytest.mark.parametrize("kind", ["smooth", "noisy", "orthogonal", "integers", "duplicates", "block"])
def test_thresholds_that_equal_a_similarity_merge_its_edge(kind):
    generator = torch.Generator().manual_seed(4)
    for _ in range(8):
        features = make_map(kind, generator)
        values = np.unique(edge_similarities(features).round(13))
        for tau in np.clip(values[:: max(1, len(values) // 3)], -1, 1):
            assert_equals_oracle(features, UniAPConfig(taus=(float(tau),), min_tokens=1))


def test_a_similarity_that_equals_the_threshold_counts_as_similar():
    # Two orthogonal tokens: S^f = 0, S^s = 1 - mean(1, 1) = 0, hence S = 0.
    features = torch.eye(2)[None, :, None, :]
    assert UniAP(UniAPConfig(taus=(0.0,))).partitions(features).tolist() == [[[[0, 0]]]]
    assert UniAP(UniAPConfig(taus=(1e-6,))).partitions(features).tolist() == [[[[0, 1]]]]


def test_the_comparison_can_fail():
    generator = torch.Generator().manual_seed(5)
    features = make_map("smooth", generator)
    config = UniAPConfig(min_tokens=2)
    truth = pool_densely(features[0].numpy(), config)
    other = UniAP(UniAPConfig(taus=(0.95, 0.9, 0.85, 0.83, 0.82), min_tokens=2)).partitions(features)[0].numpy()
    assert (other != truth.partitions).any()


def test_identical_with_the_components_of_other_devices(monkeypatch):
    monkeypatch.setattr(identify, "connected_components", propagate_labels)
    generator = torch.Generator().manual_seed(6)
    for kind in ("smooth", "regions", "integers", "block", "one_row") * 3:
        assert_equals_oracle(make_map(kind, generator), make_config(generator))
