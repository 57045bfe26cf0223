from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from s2uniseg_d2.core.labelers import batched
from s2uniseg_d2.core.labelers.uniap import UniAP, UniAPConfig
from s2uniseg_d2.core.structures import PseudoLabels
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


def test_chunks_do_not_matter(monkeypatch):
    features = torch.nn.functional.avg_pool2d(
        torch.randn(2, 16, 12, 12, generator=torch.Generator().manual_seed(2)), 3, 1
    )
    whole = UniAP(batched=True)(features)
    monkeypatch.setattr(batched, "TEMPORARY", 700)
    monkeypatch.setattr(batched, "QUERY_CHUNK", 7)
    for one, other in zip(whole, UniAP(batched=True)(features), strict=True):
        assert_same(one, other)


def test_a_long_path_settles_however_many_rounds_it_needs():
    count = 4096
    order = torch.randperm(count, generator=torch.Generator().manual_seed(3))
    edges = torch.stack([order[:-1], order[1:]]).sort(dim=0).values
    assert batched._settle_components(edges, torch.ones(count - 1, dtype=torch.bool), count).unique().tolist() == [0]
    cut = torch.ones(count - 1, dtype=torch.bool)
    cut[1000] = False
    assert batched._settle_components(edges, cut, count).unique().numel() == 2


class HostQuestions(TorchDispatchMode):
    """Counts what makes the host wait on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in {"_local_scalar_dense", "nonzero", "unique_dim", "_unique2", "masked_select", "equal"} or (
            name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        ):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def test_inside_a_layer_the_host_asks_only_whether_components_have_settled():
    features = torch.randn(3, 8, 6, 6, generator=torch.Generator().manual_seed(4)) + 1
    nodes, voters, edges, _ = batched.lay_out(list(features), 1)
    pool = batched.BatchPool(batched.Weighting(0.6, 0.4), batched.Region(0.07, "mean"))
    with HostQuestions() as questions:
        pool.group_edges(nodes, voters, edges, 0.8)
    assert questions.names == ["_local_scalar_dense"]
    with HostQuestions() as questions:
        pool.group_pairs(nodes, voters, 0.8)
    assert questions.names == ["_local_scalar_dense"]
