from __future__ import annotations

import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from s2uniseg_d2.core.labelers.base import Labeler
from s2uniseg_d2.core.labelers.uniap import TAU_PRESETS, UniAP, UniAPConfig
from tests.core.labelers.maps import make_map


def canonical(partition: torch.Tensor) -> list[int]:
    """Labels renumbered by first appearance."""
    seen: dict[int, int] = {}
    return [seen.setdefault(label, len(seen)) for label in partition.flatten().tolist()]


def six_regions(side: int) -> torch.Tensor:
    """Six equal orthogonal regions, 2 x 3 of them, on side x side tokens."""
    row = torch.arange(side)[:, None] * 2 // side
    column = torch.arange(side) * 3 // side
    return torch.eye(6)[row * 3 + column].permute(2, 0, 1)[None]


def test_two_regions_give_two_components_and_then_their_masks():
    features = torch.zeros(1, 4, 6, 8)
    features[:, 0, :, :3] = 1
    features[:, 1, :, 3:] = 1
    uniap: Labeler = UniAP(UniAPConfig(taus=(0.8, 0.6)))
    labels = uniap(features)[0]
    left = torch.zeros(6, 8, dtype=torch.bool)
    left[:, :3] = True
    for masks in labels:
        assert torch.equal(masks.masks, torch.stack([left, ~left]))
        assert masks.level.tolist() == [0, 0]
        assert torch.allclose(masks.embeddings, torch.eye(4)[:2], atol=1e-4)


def test_scattered_regions_are_one_semantic_mask_and_two_instance_masks():
    features = torch.zeros(1, 2, 4, 9)
    features[:, 0] = 1
    features[:, :, :, 3:6] = torch.tensor([0.0, 1.0])[:, None, None]
    labels = UniAP(UniAPConfig(taus=(0.8,)))(features)[0]
    assert labels.instance.masks.flatten(1).sum(1).tolist() == [12, 12, 12]
    assert labels.semantic.masks.flatten(1).sum(1).tolist() == [24, 12]


def test_bilinear_enlargement_collapses_and_nearest_does_not():
    tokens = six_regions(8)
    first = UniAP(UniAPConfig()).partitions(functional.interpolate(tokens, scale_factor=4, mode="nearest"))[0, 0]
    assert first.max() + 1 == 6
    first = UniAP(UniAPConfig()).partitions(functional.interpolate(tokens, scale_factor=4, mode="bilinear"))[0, 0]
    assert first.max() + 1 == 1


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), kind=st.sampled_from(["smooth", "noisy", "regions", "block", "duplicates"]))
def test_layers_coarsen_and_masks_are_disjoint_unions(seed, kind):
    features = make_map(kind, torch.Generator().manual_seed(seed))
    uniap = UniAP(UniAPConfig(min_tokens=1, drop_whole=False))
    partitions = uniap.partitions(features)[0]
    for fine, coarse in pairwise(partitions):
        pairs = torch.unique(torch.stack([fine.flatten(), coarse.flatten()]), dim=1)
        assert pairs.shape[1] == fine.max() + 1
    for partition in partitions:
        assert canonical(partition) == partition.flatten().tolist()
    labels = uniap(features)[0]
    for masks in labels:
        per_level = [masks.masks[masks.level == level].sum(0) for level in range(5)]
        assert (per_level[0] == 1).all()
        assert all((cover <= 1).all() for cover in per_level)
        assert torch.unique(masks.masks.flatten(1), dim=0).shape[0] == masks.masks.shape[0]
        assert torch.allclose(
            torch.linalg.vector_norm(masks.embeddings, dim=1), torch.ones(len(masks.level)), atol=1e-6
        )
        assert (masks.level.diff() >= 0).all()


@pytest.mark.parametrize("kind", ["smooth", "regions", "block", "integers"])
@pytest.mark.parametrize("dims", [(2,), (3,), (2, 3)])
def test_a_flipped_map_gives_the_flipped_partition(kind, dims):
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        features = make_map(kind, generator)
        straight = UniAP().partitions(features).flip(dims)[0]
        flipped = UniAP().partitions(features.flip(dims))[0]
        for a, b in zip(straight, flipped, strict=True):
            assert canonical(a) == canonical(b)


def test_transposed_and_rescaled_tokens_change_nothing():
    generator = torch.Generator().manual_seed(1)
    features = make_map("smooth", generator)
    partitions = UniAP().partitions(features)
    scale = 2.0 ** torch.randint(-60, 60, features.shape[2:], generator=generator)
    assert torch.equal(UniAP().partitions(features * scale), partitions)
    transposed = UniAP().partitions(features.transpose(2, 3))
    for a, b in zip(partitions[0], transposed[0], strict=True):
        assert canonical(a.T) == canonical(b)


def test_a_batch_is_its_pictures_one_by_one():
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(3, 8, 6, 7, generator=generator) + 0.5
    sizes = [(6, 7), (4, 5), (1, 1)]
    uniap = UniAP(UniAPConfig(min_tokens=2))
    whole = uniap(features, sizes)
    for image, size in enumerate(sizes):
        assert torch.equal(uniap.partitions(features, sizes)[image], uniap.partitions(features[[image]], [size])[0])
        alone = uniap(features[[image]], [size])[0]
        for a, b in zip(
            (*whole[image].instance, *whole[image].semantic), (*alone.instance, *alone.semantic), strict=True
        ):
            assert torch.equal(a, b)


def test_empty_results_keep_their_shapes():
    labels = UniAP()(torch.ones(2, 3, 4, 5))
    assert len(labels) == 2
    for masks in (*labels[0], *labels[1]):
        assert (masks.masks.shape, masks.masks.dtype) == ((0, 4, 5), torch.bool)
        assert (masks.embeddings.shape, masks.embeddings.dtype) == ((0, 3), torch.float32)
        assert (masks.level.shape, masks.level.dtype) == ((0,), torch.int64)
    assert UniAP()(torch.ones(0, 3, 4, 5)) == []
    assert UniAP().partitions(torch.ones(0, 3, 4, 5)).shape == (0, 5, 4, 5)


def test_whole_masks_can_be_kept_and_appear_once():
    labels = UniAP(UniAPConfig(drop_whole=False))(torch.ones(1, 3, 4, 5))[0]
    assert labels.instance.masks.all()
    assert labels.instance.level.tolist() == labels.semantic.level.tolist() == [0]


def test_whole_means_all_valid_tokens():
    features = torch.ones(1, 3, 4, 5)
    assert not UniAP()(features, [(3, 5)])[0].instance.masks.numel()
    labels = UniAP(UniAPConfig(drop_whole=False))(features, [(3, 5)])[0]
    assert labels.instance.masks[0].sum(1).tolist() == [5, 5, 5, 0]


def test_small_masks_are_left_out_and_the_largest_kept():
    # Four orthogonal columns of 1, 2, 3 and 4 tokens' width, three rows.
    features = torch.eye(4)[torch.tensor([0, 1, 1, 2, 2, 2, 3, 3, 3, 3])].T[None, :, None].expand(1, 4, 3, 10)

    def sizes(**settings: int) -> list[int]:
        labels = UniAP(UniAPConfig(taus=(0.8,), **settings))(features)[0]
        assert torch.equal(labels.instance.masks, labels.semantic.masks)
        return labels.instance.masks.flatten(1).sum(1).tolist()

    assert sizes(min_tokens=3) == [3, 6, 9, 12]
    assert sizes(min_tokens=4) == [6, 9, 12]
    assert sizes(min_tokens=3, max_masks=2) == [9, 12]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_count_as_the_numbers_they_hold(dtype):
    features = (torch.randn(1, 8, 6, 6, generator=torch.Generator().manual_seed(3)) + 0.5).to(dtype)
    assert torch.equal(UniAP().partitions(features), UniAP().partitions(features.to(torch.float64)))
    assert UniAP(UniAPConfig(min_tokens=1))(features)[0].instance.embeddings.dtype == torch.float32


def test_autocast_reduced_precision_and_gradients_do_not_matter():
    features = torch.randn(1, 32, 9, 9, generator=torch.Generator().manual_seed(4)) + 0.4
    expected = UniAP(UniAPConfig(min_tokens=1))(features)[0].instance
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = UniAP(UniAPConfig(min_tokens=1))(features.requires_grad_())[0].instance
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert not found.embeddings.requires_grad
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)


def test_no_tensor_grows_with_the_square_of_the_tokens():
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for item in result if isinstance(result, tuple | list) else (result,):
                if isinstance(item, torch.Tensor):
                    # A view or an expanded scalar occupies no more than its storage.
                    self.numel = max(self.numel, item.untyped_storage().nbytes() // item.element_size())
            return result

    features = functional.avg_pool2d(torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(5)), 3, 1, 1)
    with Largest() as largest:
        UniAP()(features)
    assert largest.numel < 4096**2 // 4


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"taus": (0.8, 0.8)}, "taus must decrease strictly, got (0.8, 0.8)"),
        ({"taus": (0.4, 0.5)}, "taus must decrease strictly, got (0.4, 0.5)"),
        ({"taus": ()}, "taus must hold at least one threshold, got ()"),
        ({"taus": (1.1, 0.5)}, "taus must lie in [-1, 1], got (1.1, 0.5)"),
        ({"taus": (float("nan"),)}, "taus must lie in [-1, 1], got (nan,)"),
        ({"sigma": 0.0}, "sigma must be positive and finite, got 0.0"),
        ({"sigma": float("nan")}, "sigma must be positive and finite, got nan"),
        ({"omega_f": -0.5, "omega_s": 1.5}, "omega_f must be at least 0, got -0.5"),
        ({"omega_f": 1.5, "omega_s": -0.5}, "omega_s must be at least 0, got -0.5"),
        ({"omega_f": 0.6, "omega_s": 0.5}, "omega_f and omega_s must sum to 1, got 0.6 + 0.5"),
        ({"min_tokens": 0}, "min_tokens must be at least 1, got 0"),
        ({"max_masks": 0}, "max_masks must be at least 1, got 0"),
        ({"voter_pool": 3}, "voter_pool must be one of (1, 2, 4, 8, 16), got 3"),
        ({"region_affinity": "median"}, "region_affinity must be one of ('mean', 'sum'), got 'median'"),
    ],
)
def test_settings_out_of_range_are_named(settings_, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        UniAPConfig(**settings_)


def test_presets_are_the_threshold_rows_of_table_3():
    config = UniAPConfig()
    assert config.taus == TAU_PRESETS["paper"] == (0.8, 0.7, 0.6, 0.5, 0.4)
    assert (config.sigma, config.omega_f, config.omega_s, config.min_tokens) == (0.07, 0.6, 0.4, 5)
    assert (config.voter_pool, config.until_stable, config.max_masks, config.drop_whole) == (1, False, 1000, True)
    ends = {name: (taus[0], taus[-1], len(taus)) for name, taus in TAU_PRESETS.items()}
    assert ends == {"paper": (0.8, 0.4, 5), "fine": (0.9, 0.1, 9), "low": (0.5, 0.1, 5)}
    for taus in TAU_PRESETS.values():
        UniAPConfig(taus=taus)


def test_pooled_voters_are_few_and_stay_near_the_tokens():
    generator = torch.Generator().manual_seed(6)
    features = (
        functional.interpolate(torch.randn(1, 16, 6, 6, generator=generator), size=(24, 24), mode="bilinear") + 0.2
    )
    exact, pooled = (UniAP(UniAPConfig(voter_pool=pool)).partitions(features)[0] for pool in (1, 2))
    same = (exact.flatten(1)[:, 1:] == exact.flatten(1)[:, :-1]) == (
        pooled.flatten(1)[:, 1:] == pooled.flatten(1)[:, :-1]
    )
    assert same.float().mean() > 0.95


def test_bad_features_are_named():
    good = torch.ones(2, 3, 4, 5)
    for value, name in ((float("nan"), "NaN"), (float("inf"), "Inf"), (-float("inf"), "Inf")):
        bad = good.clone()
        bad[1, 2, 3, 1] = value
        with pytest.raises(
            ValueError, match=f"features must be finite and not zero, got {name} in picture 1 at row 3, column 1"
        ):
            UniAP()(bad)
        assert len(UniAP()(bad, [(4, 5), (3, 5)])) == 2
    bad = good.clone()
    bad[0, :, 2, 4] = 0
    with pytest.raises(ValueError, match="got a zero vector in picture 0 at row 2, column 4"):
        UniAP().partitions(bad)
    for shape in ((3, 4, 5), (1, 0, 4, 5), (1, 3, 0, 5)):
        with pytest.raises(ValueError, match=re.escape(f"(b, d, h, w), got torch.float32 {shape}")):
            UniAP()(torch.ones(shape))
    with pytest.raises(ValueError, match=r"float tensor .* got torch.int64"):
        UniAP()(good.long())


def test_bad_sizes_are_named():
    features = torch.ones(2, 3, 4, 5)
    with pytest.raises(ValueError, match=r"sizes must name \(rows, columns\) of each of 2 pictures, got 1"):
        UniAP()(features, [(4, 5)])
    for size in ((5, 5), (0, 5), (4, 6), (4, -1)):
        with pytest.raises(ValueError, match=re.escape(f"sizes must lie in [1, 4] x [1, 5], got {size} at 1")):
            UniAP()(features, [(4, 5), size])
