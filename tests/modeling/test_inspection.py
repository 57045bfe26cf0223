from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model

from s2uniseg_d2.core.structures import QueryPrediction
from s2uniseg_d2.modeling.inspection import NO_PARTNER, inspect_views
from s2uniseg_d2.modeling.s2uniseg import GROUPS
from tests.tiny import random_batch, tiny_config


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = build_model(tiny_config())
    model.copy_student_to_teacher()
    return model


@pytest.fixture
def item(model):
    item = random_batch()[0]
    (item["pseudo"],) = model.label([item])
    return item


@pytest.mark.parametrize("is_training", [True, False])
def test_looking_changes_nothing(model, item, is_training):
    model.train(is_training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    inspect_views(model, item)
    assert model.training == is_training
    assert model.backbone.training == is_training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_student_that_predicts_a_teachers_mask_is_its_partner(model, item, monkeypatch):
    targets = model.crop_targets([item])
    counts = targets["ins"].masks.counts
    wanted = torch.zeros(2, 10, 16, 16, dtype=torch.bool)
    wanted[0, 2] = targets["ins"].masks.masks[1]
    wanted[1, 4] = targets["ins"].masks.masks[counts[0]]
    objectness = torch.tensor([0.0, 1.0]).expand(2, 10, 2).clone()
    objectness[0, 2] = objectness[1, 4] = torch.tensor([9.0, 0.0])
    prediction = QueryPrediction(wanted.float() * 20 - 10, objectness, torch.randn(2, 10, 32))
    monkeypatch.setattr(model.sem_seg_head, "forward", lambda features: (None, prediction))
    first, second = inspect_views(model, item)
    clusters = model.student_head(model.query_proj(prediction.queries)).argmax(dim=-1)
    for view, place, query in ((first, 1, 2), (second, 0, 4)):
        pairs = view.instance
        assert torch.equal(pairs.partners[place], pairs.masks[place])
        assert pairs.partner_clusters[place] == clusters[0 if query == 2 else 1, query]
        assert torch.equal(view.best[0], pairs.masks[place])
        assert len(view.best) == 6
    assert [len(view.instance.masks) for view in (first, second)] == list(counts)


def test_every_mask_has_a_cluster_and_as_many_have_partners_as_there_are_queries(model, item):
    views = inspect_views(model, item, top=3)
    for group, kind in GROUPS.items():
        targets, queries = model.crop_targets([item])[group], model.sem_seg_head.slices[group]
        pairs = [getattr(view, kind) for view in views]
        expected = (model.teacher_head(targets.embeddings) - model.center.center).argmax(dim=-1)
        assert torch.equal(torch.cat([pair.clusters for pair in pairs]), expected)
        assert torch.equal(torch.cat([pair.masks for pair in pairs]), targets.masks.masks)
        for pair in pairs:
            matched = int((pair.partner_clusters != NO_PARTNER).sum())
            assert matched == min(len(pair.masks), queries.stop - queries.start)
    assert all(view.best.shape == (3, 16, 16) for view in views)


def test_a_picture_without_masks_is_shown_too(model, item):
    item["pseudo"] = type(item["pseudo"])(*(type(kind)(*(value[:0] for value in kind)) for kind in item["pseudo"]))
    for view in inspect_views(model, item):
        assert view.instance.masks.shape == view.instance.partners.shape == (0, 16, 16)
        assert len(view.best) == 6
