from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from s2uniseg_d2.core.labelers import uniap
from s2uniseg_d2.core.labelers.batched_identify import BatchIdentifier
from s2uniseg_d2.core.labelers.uniap import UniAP, UniAPConfig
from s2uniseg_d2.core.ops import edges
from s2uniseg_d2.core.structures import PseudoLabels
from tests.benchmarks.uniap_maps import make_features
from tests.core.labelers.maps import KINDS, draw, make_config, make_map


def assert_same(one: PseudoLabels, other: PseudoLabels) -> None:
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.masks, b.masks)
        assert torch.equal(a.level, b.level)
        torch.testing.assert_close(a.embeddings, b.embeddings, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_batch_gives_the_masks_of_single_pictures(kind):
    generator = torch.Generator().manual_seed(100 + KINDS.index(kind))
    for _ in range(25):
        features, config = make_map(kind, generator), make_config(generator)
        assert_same(UniAP(config, batched=True)(features)[0], UniAP(config, batched=False)(features)[0])


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
            assert_same(found[image], UniAP(config)(features[image : image + 1], sizes[image : image + 1])[0])


def test_an_empty_batch_and_one_without_masks():
    assert UniAP(batched=True)(torch.ones(0, 3, 4, 4)) == []
    labels = UniAP(batched=True)(torch.eye(16).view(1, 16, 4, 4))[0]
    assert labels.instance.masks.shape == labels.semantic.masks.shape == (0, 4, 4)


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
        assert_same(one, other)
    assert seen == [2, 2, 1]


@pytest.mark.parametrize("scale", [1e-310, 1e300])
def test_features_of_any_size_have_a_direction(scale):
    features = torch.randn(1, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(8)) + 1
    config = UniAPConfig(min_tokens=1)
    assert_same(UniAP(config, batched=True)(features * scale)[0], UniAP(config, batched=True)(features)[0])


def test_chunks_do_not_matter(monkeypatch):
    features = torch.nn.functional.avg_pool2d(
        torch.randn(2, 16, 12, 12, generator=torch.Generator().manual_seed(2)), 3, 1
    )
    whole = UniAP(batched=True)(features)
    monkeypatch.setattr(edges, "TEMPORARY", 700)
    for one, other in zip(whole, UniAP(batched=True)(features), strict=True):
        assert_same(one, other)


class HostQuestions(TorchDispatchMode):
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


def test_a_batch_asks_the_host_no_more_than_one_picture_and_some_dozen_times_a_layer():
    features = torch.randn(1, 8, 12, 12, generator=torch.Generator().manual_seed(4)) + 1
    questions = []
    for pictures in (1, 6):
        with HostQuestions() as counted:
            labels = UniAP(UniAPConfig(min_tokens=1), batched=True)(features.repeat(pictures, 1, 1, 1))
        assert len(labels[0].instance.masks) > 20
        questions.append(len(counted.names))
    assert questions[0] == questions[1]
    # Of a layer: edges left to Eq. 2 and their most of a picture, components settled, nodes left, edges left; twice.
    assert questions[0] <= 3 + 15 * 5


def test_bounds_leave_few_edges_to_the_voters(monkeypatch):
    measured = []
    measure = BatchIdentifier._measure
    monkeypatch.setattr(
        BatchIdentifier,
        "_measure",
        lambda self, means, edges: measured.append(edges.shape[1]) or measure(self, means, edges),
    )
    UniAP(batched=True)(make_features("smooth", 32, 96, 0))
    edges = 2 * 32 * 31
    assert 0 < sum(measured) < edges / 3


def test_layers_end_where_every_picture_is_one_region(monkeypatch):
    rounds = []
    group = BatchIdentifier.group_edges
    monkeypatch.setattr(
        BatchIdentifier, "group_edges", lambda self, *words: rounds.append(words[-1]) or group(self, *words)
    )
    features = torch.ones(2, 4, 6, 6)
    features[1, :1, :, 3:] = -1  # halves of cosine 0.5, hence of similarity 0.5
    config = UniAPConfig(taus=(0.8, 0.7, 0.4, 0.2), drop_whole=False)
    labels = UniAP(config, batched=True)(features)
    assert rounds == [0.8, 0.7, 0.4]
    assert [image.instance.level.tolist() for image in labels] == [[0], [0, 0, 2]]
    for image in range(2):
        assert_same(labels[image], UniAP(config)(features[image : image + 1])[0])
