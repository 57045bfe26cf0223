from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2uniseg_d2.core.labelers import region_embedding
from s2uniseg_d2.core.labelers.region_embedding import embed_regions, token_shares
from s2uniseg_d2.core.labelers.uniap import UniAP, UniAPConfig
from tests.core.labelers.maps import KINDS, make_map


def literal(features, masks, sigma, affinity):
    """Eq. 5 with the dense affinity, in float64."""
    rows = torch.nn.functional.normalize(features.flatten(1).T.double(), dim=1)
    flat = masks.flatten(1).double()
    logits = flat @ (rows @ rows.T) / sigma
    if affinity == "mean":
        logits /= flat.sum(dim=1, keepdim=True)
    return torch.nn.functional.normalize(logits.softmax(dim=1) @ rows, dim=1)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(0, 10_000),
    st.sampled_from([0.07, 0.5, 0.005]),
    st.sampled_from(["mean", "sum"]),
    st.integers(0, 3),
)
def test_equals_what_uniap_gives_its_own_masks(kind, seed, sigma, affinity, padding):
    features = make_map(kind, torch.Generator().manual_seed(seed))
    rows, columns = features.shape[-2:]
    padded = torch.nn.functional.pad(features, (0, padding, 0, padding), value=7.0)
    config = UniAPConfig(sigma=sigma, region_affinity=affinity, min_tokens=1, drop_whole=False)
    for found in UniAP(config)(padded, [(rows, columns)])[0]:
        got = embed_regions(features[0], found.masks[:, :rows, :columns], sigma, affinity)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, found.embeddings, atol=1e-5, rtol=0)


@pytest.mark.parametrize("affinity", ["mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equals_the_dense_equation_for_any_mask_whatever_the_chunk(affinity, dtype, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(16, 9, 11, generator=generator).to(dtype)
    masks = torch.rand(30, 9, 11, generator=generator) > 0.7
    wanted = literal(features, masks, 0.07, affinity).float()
    torch.testing.assert_close(embed_regions(features, masks, 0.07, affinity), wanted, atol=1e-5, rtol=0)
    monkeypatch.setattr(region_embedding, "_CHUNK_VALUES", 4 * 99)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(embed_regions(features, masks, 0.07, affinity), wanted, atol=1e-5, rtol=0)


def test_shares_count_as_parts_of_a_token():
    features = torch.randn(8, 4, 6, generator=torch.Generator().manual_seed(1))
    whole = torch.zeros(1, 4, 6, dtype=torch.bool)
    whole[0, 1:3, 2:5] = True
    torch.testing.assert_close(embed_regions(features, 0.25 * whole, 0.07), embed_regions(features, whole, 0.07))
    shares = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(2))
    wanted = literal(features, shares, 0.07, "mean").float()
    torch.testing.assert_close(embed_regions(features, shares, 0.07), wanted, atol=1e-5, rtol=0)


def test_shares_of_tokens_at_the_rim_are_of_the_cells_that_are_there():
    masks = torch.zeros(1, 3, 5, dtype=torch.bool)
    masks[0, :2, 1] = masks[0, 2, 2] = masks[0, 2, 4] = True
    assert token_shares(masks, 2).tolist() == [[[0.5, 0.0, 0.0], [0.0, 0.5, 1.0]]]
    assert torch.equal(token_shares(masks, 1), masks.float())


def test_votes_that_cancel_are_zero_and_no_masks_give_no_rows():
    features = torch.tensor([[[1.0, -1.0]]])
    both = torch.ones(1, 1, 2, dtype=torch.bool)
    assert embed_regions(features, both, 0.07).tolist() == [[0.0]]
    none = embed_regions(torch.randn(5, 3, 4), torch.zeros(0, 3, 4, dtype=torch.bool), 0.07)
    assert none.shape == (0, 5)
    assert none.dtype == torch.float32


def test_no_gradient_flows():
    features = torch.randn(5, 3, 4, requires_grad=True)
    assert not embed_regions(features, torch.ones(1, 3, 4, dtype=torch.bool), 0.07).requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.randn(1, 5, 3, 4)}, r"features must be float of shape \(d, h, w\)"),
        ({"features": torch.ones(5, 3, 4, dtype=torch.int64)}, "features must be float .*, got torch.int64"),
        ({"masks": torch.ones(2, 4, 3, dtype=torch.bool)}, r"masks must be \(n, h, w\) on the grid \(3, 4\), got"),
        (
            {"masks": torch.stack([torch.ones(3, 4), torch.zeros(3, 4)]) > 0},
            "must each hold a token, got none in mask 1",
        ),
        ({"sigma": 0.0}, "sigma must be positive and finite, got 0.0"),
        ({"sigma": float("nan")}, "sigma must be positive"),
        ({"sigma": float("inf")}, "sigma must be positive and finite, got inf"),
        ({"affinity": "max"}, r"affinity must be one of \('mean', 'sum'\), got 'max'"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    arguments = {
        "features": torch.randn(5, 3, 4),
        "masks": torch.ones(2, 3, 4, dtype=torch.bool),
        "sigma": 0.07,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        embed_regions(**arguments)


def test_votes_that_float32_cannot_tell_apart_are_counted_in_float64():
    generator = torch.Generator().manual_seed(3)
    middle, sides = torch.randn(64, 1, generator=generator), torch.randn(64, 6, generator=generator)
    features = torch.cat([middle + sides, middle - sides], dim=1)[:, None]
    masks = torch.ones(1, 1, 12, dtype=torch.bool)
    wanted = literal(features, masks, 1e-6, "mean").float()
    torch.testing.assert_close(embed_regions(features, masks, 1e-6), wanted, atol=1e-5, rtol=0)
