from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model

from s2uniseg_d2.core.structures import PseudoLabels
from s2uniseg_d2.modeling.labelers import RegionVote, build_uniap
from tests.tiny import random_batch, tiny_config


def strip(labels):
    """The labels as a mapper delivers them."""
    return PseudoLabels(*(kind._replace(embeddings=torch.zeros(len(kind.level), 0)) for kind in labels))


def test_every_setting_reaches_uniap():
    words = {"SIGMA": 0.2, "OMEGA_F": 0.5, "OMEGA_S": 0.5, "MIN_TOKENS": 3, "REGION_AFFINITY": "sum"}
    config = build_uniap(tiny_config(**{f"MODEL__UNIAP__{key}": value for key, value in words.items()})).config
    assert {key: getattr(config, key.lower()) for key in words} == words


@pytest.mark.parametrize("stride", [4, 16])
@pytest.mark.parametrize("affinity", ["mean", "sum"])
def test_masks_that_uniap_made_get_the_embeddings_that_it_made(stride, affinity):
    torch.manual_seed(0)
    settings = {"FEATURE_STRIDE": stride, "REGION_AFFINITY": affinity, "MIN_TOKENS": 1, "SIGMA": 0.1}
    model = build_model(tiny_config(**{f"MODEL__UNIAP__{key}": value for key, value in settings.items()}))
    assert model.region_vote == RegionVote(0.1, affinity)
    batch = random_batch()
    batch[0]["image"] = batch[0]["image"][:, :90, :85]  # ends inside tokens of either stride
    online = model.label(batch)
    for item, labels in zip(batch, online, strict=True):
        item["pseudo"] = strip(labels)
    offline = model.embed(batch)
    assert sum(len(labels.instance.level) for labels in online) > 10
    for labels, again in zip(online, offline, strict=True):
        for kind, other in zip(labels, again, strict=True):
            assert torch.equal(kind.masks, other.masks)
            assert torch.equal(kind.level, other.level)
            torch.testing.assert_close(kind.embeddings, other.embeddings, atol=1e-5, rtol=0)


def test_pictures_without_masks_get_embeddings_of_the_teachers_width():
    torch.manual_seed(0)
    model = build_model(tiny_config())
    batch = random_batch(1)
    none = torch.zeros(0, 24, 24, dtype=torch.bool)
    empty = model.label(batch)[0].instance._replace(
        masks=none, embeddings=torch.zeros(0, 0), level=torch.zeros(0).long()
    )
    batch[0]["pseudo"] = PseudoLabels(empty, empty)
    (labels,) = model.embed(batch)
    assert labels.instance.embeddings.shape == labels.semantic.embeddings.shape == (0, 48)
