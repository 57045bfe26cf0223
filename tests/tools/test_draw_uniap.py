"""The pictures of docs/uniap.md show what UniAP computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from s2uniseg_d2.core.labelers.uniap import UniAP, UniAPConfig
from s2uniseg_d2.core.ops.components import connected_components
from tools import draw_uniap


def random_tokens() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(4, 16, generator=generator)
    plan = torch.randint(4, (3, 4), generator=generator).repeat_interleave(3, 0).repeat_interleave(3, 1)
    return (kinds[plan] + 0.65 * torch.randn(9, 12, 16, generator=generator)).permute(2, 0, 1)


def test_edges_of_the_picture_are_those_that_uniap_joins():
    tokens, config = random_tokens(), UniAPConfig()
    found = draw_uniap.neighbour_similarities(tokens, config)
    assert found.edges.shape == (2, 9 * 11 + 8 * 12)
    groups = connected_components(found.edges[:, found.both >= config.taus[0]], 9 * 12)
    first_layer = UniAP(config).partitions(tokens[None])[0, 0].flatten()
    assert 10 < int(groups.max()) + 1 < 100
    assert torch.equal(groups, first_layer)


def test_a_region_keeps_its_colour_while_its_first_token_stays():
    fine = torch.tensor([[0, 1, 1], [2, 2, 3]])
    coarse = torch.tensor([[0, 1, 1], [2, 2, -1]])
    assert draw_uniap._by_first_token(fine).tolist() == [[0, 1, 1], [3, 3, 5]]
    assert draw_uniap._by_first_token(coarse).tolist() == [[0, 1, 1], [3, 3, -1]]


@pytest.mark.slow
def test_draws_the_pictures_of_the_page(repository, tmp_path):
    assert draw_uniap.main(["--output", str(tmp_path)]) == 0
    for name in ("uniap_identify.jpg", "uniap_layers.jpg"):
        drawn, kept = (
            np.asarray(Image.open(folder / name), float) for folder in (tmp_path, repository / "docs/pictures")
        )
        assert drawn.shape == kept.shape
        # another processor may decide a few of a thousand tokens otherwise
        assert np.abs(drawn - kept).mean() < 4
