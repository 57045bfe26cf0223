from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from s2uniseg_d2.core.labelers import batched, batched_emission, batched_identify, uniap
from s2uniseg_d2.core.labelers.batched import BatchVoters
from s2uniseg_d2.core.labelers.batched_identify import BatchIdentifier
from s2uniseg_d2.core.labelers.uniap import UniAP, UniAPConfig
from s2uniseg_d2.core.ops import edges, partitions, vectors
from s2uniseg_d2.core.ops.transfer import ask
from tests.benchmarks.uniap_maps import make_features
from tests.core.labelers.maps import KINDS, assert_same_labels, draw, make_config, make_map


@pytest.mark.parametrize("kind", KINDS)
def test_the_batch_gives_the_masks_of_single_pictures(kind):
    generator = torch.Generator().manual_seed(100 + KINDS.index(kind))
    for _ in range(25):
        features, config = make_map(kind, generator), make_config(generator)
        assert_same_labels(UniAP(config, batched=True)(features)[0], UniAP(config, batched=False)(features)[0])


@pytest.mark.parametrize("until_stable", [False, True])
def test_pictures_of_several_kinds_and_sizes_share_a_batch(until_stable):
    generator = torch.Generator().manual_seed(1)
    for _ in range(12):
        features = torch.zeros(4, 6, 9, 8)
        sizes = []
        for image, kind in enumerate(("smooth", "integers", "constant", "noisy")):
            rows, columns = draw(generator, 1, 9), draw(generator, 1, 8)
            field = torch.randn(6, rows, columns, generator=generator) + (kind == "smooth") * 2
            field = torch.ones_like(field) if kind == "constant" else field
            features[image, :, :rows, :columns] = field.round() + 0.5 if kind == "integers" else field
            features[image, :, rows:] = float("nan")
            sizes.append((rows, columns))
        config = UniAPConfig(min_tokens=1, drop_whole=False, until_stable=until_stable, taus=(0.9, 0.6, 0.3, 0.0))
        found = UniAP(config, batched=True)(features, sizes)
        for image in range(4):
            assert_same_labels(found[image], UniAP(config)(features[image : image + 1], sizes[image : image + 1])[0])


def test_an_empty_batch_and_one_without_masks():
    assert UniAP(batched=True)(torch.ones(0, 3, 4, 4)) == []
    labels = UniAP(batched=True)(torch.eye(16).view(1, 16, 4, 4))[0]
    assert labels.instance.masks.shape == labels.semantic.masks.shape == (0, 4, 4)


@pytest.mark.parametrize("most", [1, 3, 20])
def test_the_largest_masks_of_each_picture_are_kept(most):
    features = torch.randn(3, 4, 9, 9, generator=torch.Generator().manual_seed(9)) + 1
    sizes = [(9, 9), (5, 9), (1, 1)]
    config = UniAPConfig(min_tokens=1, max_masks=most)
    for image, found in enumerate(UniAP(config, batched=True)(features, sizes)):
        assert len(found.instance.masks) == (most if image < 2 else 0)
        assert_same_labels(found, UniAP(config)(features[image : image + 1], sizes[image : image + 1])[0])


def test_a_large_batch_goes_in_parts(monkeypatch):
    features = torch.randn(5, 4, 6, 6, generator=torch.Generator().manual_seed(7)) + 1
    whole = UniAP(batched=True)(features)
    seen = []
    together = UniAP._label_batch
    monkeypatch.setattr(
        UniAP, "_label_batch", lambda self, maps, sizes: seen.append(len(maps)) or together(self, maps, sizes)
    )
    monkeypatch.setattr(uniap, "MOST_TOGETHER", 2 * 4 * 36)
    for one, other in zip(whole, UniAP(batched=True)(features), strict=True):
        assert_same_labels(one, other)
    assert seen == [2, 2, 1]


@pytest.mark.parametrize("scale", [1e-310, 1e300])
def test_features_of_any_size_have_a_direction(scale):
    features = torch.randn(1, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(8)) + 1
    config = UniAPConfig(min_tokens=1)
    assert_same_labels(UniAP(config, batched=True)(features * scale)[0], UniAP(config, batched=True)(features)[0])


def test_chunks_do_not_matter(monkeypatch):
    features = torch.nn.functional.avg_pool2d(
        torch.randn(2, 16, 12, 12, generator=torch.Generator().manual_seed(2)), 3, 1
    )
    whole = UniAP(batched=True)(features)
    monkeypatch.setattr(edges, "TEMPORARY", 700)
    for one, other in zip(whole, UniAP(batched=True)(features), strict=True):
        assert_same_labels(one, other)


def test_a_batch_asks_the_host_no_more_than_one_picture_and_twice_a_layer(monkeypatch):
    features = torch.randn(1, 8, 12, 12, generator=torch.Generator().manual_seed(4)) + 1
    asked = []
    for module in (batched, batched_identify):
        monkeypatch.setattr(module, "ask", lambda *values: asked.append(len(values)) or ask(*values))
    for pictures in (1, 6):
        labels = UniAP(UniAPConfig(min_tokens=1), batched=True)(features.repeat(pictures, 1, 1, 1))
        assert len(labels[0].instance.masks) > 20
        # Of a layer's instances beside the semantic pooling of the layer before: edges left to Eq. 2, and what merges.
        assert asked == [1, 1, *[2, 2] * 4, 1, 1]
        asked.clear()


class HostReads(TorchDispatchMode):
    """Counts what makes the host wait on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        asks = {"_local_scalar_dense", "nonzero", "unique_dim", "_unique2", "masked_select", "equal", "bincount"}
        if name in asks or (name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def test_nothing_but_questions_waits_for_the_device_around_the_kernels(monkeypatch):
    """Operations that have kernels are replaced by what they return, so that what is left is what a GPU runs."""
    features = torch.randn(2, 8, 12, 12, generator=torch.Generator().manual_seed(4)) + 1
    with monkeypatch.context() as patch, HostReads() as counted:
        for module in (edges, partitions, vectors):
            for name, function in vars(module).items():
                if hasattr(function, "__wrapped__"):
                    for user in (batched, batched_identify, batched_emission, partitions):
                        if hasattr(user, name):
                            patch.setattr(user, name, unseen(function, counted))
        labels = UniAP(UniAPConfig(min_tokens=1), batched=True)(features)
    assert len(labels[0].instance.masks) > 20
    # Whether features are finite, asked before anything else.
    assert counted.names == ["_local_scalar_dense"]


def unseen(function, counted):
    def call(*args, **kwargs):
        before = len(counted.names)
        result = function(*args, **kwargs)
        del counted.names[before:]
        return result

    return call


def test_bounds_leave_few_edges_to_the_voters(monkeypatch):
    measured = []
    listed = batched_identify.list_flagged
    monkeypatch.setattr(
        batched_identify,
        "list_flagged",
        lambda flagged, total, *words: measured.append(total) or listed(flagged, total, *words),
    )
    UniAP(batched=True)(make_features("smooth", 32, 96, 0))
    edges = 2 * 32 * 31
    assert 0 < sum(measured) < edges / 3


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("width", [5, 256, 300])
def test_moments_and_spread_are_those_of_all_voters(alike, width):
    generator = torch.Generator().manual_seed(width)
    rows = torch.randn(2, 11, width, dtype=torch.float64, generator=generator)
    weights = torch.rand(2, 11, dtype=torch.float64, generator=generator)
    weights = torch.full_like(weights, 1 / 11) if alike else weights
    voters = BatchVoters.of(rows, weights, alike)
    expected = torch.einsum("bkc,bkd,bk->bcd", rows, rows, weights)
    torch.testing.assert_close(voters.moments, expected, rtol=0, atol=1e-12)
    apart = torch.randn(2, 3, width, dtype=torch.float64, generator=generator)
    expected = ((apart @ rows.mT).abs() * weights[:, None]).sum(dim=2)
    torch.testing.assert_close(voters.disagree(apart), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "pool", "alike"), [((8, 8), 1, True), ((8, 7), 1, False), ((8, 8), 4, True), ((8, 8), 16, False)]
)
def test_voters_are_known_to_be_alike(size, pool, alike):
    features = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    voters = batched.lay_out(features, [(8, 8), size], pool).voters
    assert voters.alike == alike
    if alike:
        torch.testing.assert_close(voters.weights, torch.full_like(voters.weights, 1 / voters.weights.shape[1]))


def test_tensor_cores_are_allowed_for_and_only_where_they_are():
    precision = torch.get_float32_matmul_precision()
    with batched_identify.reduced_products(torch.device("cpu")):
        assert torch.get_float32_matmul_precision() == precision
    with batched_identify.reduced_products(torch.device("cuda")):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == precision


def test_layers_end_where_every_picture_is_one_region(monkeypatch):
    rounds = []
    group = BatchIdentifier.group
    monkeypatch.setattr(
        BatchIdentifier,
        "group",
        lambda self, jobs: rounds.append([(job.level, job.edges is None) for job in jobs]) or group(self, jobs),
    )
    features = torch.ones(2, 4, 6, 6)
    features[1, :1, :, 3:] = -1  # halves of cosine 0.5, hence of similarity 0.5
    config = UniAPConfig(taus=(0.8, 0.7, 0.4, 0.2), drop_whole=False)
    labels = UniAP(config, batched=True)(features)
    assert rounds == [[(0, False)], [(1, False), (0, True)], [(2, False), (1, True)], [(2, True)]]
    assert [image.instance.level.tolist() for image in labels] == [[0], [0, 0, 2]]
    for image in range(2):
        assert_same_labels(labels[image], UniAP(config)(features[image : image + 1])[0])
