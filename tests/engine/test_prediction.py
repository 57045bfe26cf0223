from __future__ import annotations

import pytest
import torch
from detectron2.evaluation import inference_context
from detectron2.modeling import build_model

import s2uniseg_d2.modeling  # noqa: F401  (registers)
from s2uniseg_d2.core.semantic_scores import SemanticScores
from s2uniseg_d2.engine.prediction import Predictor
from tests.tiny import random_batch, tiny_config


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return build_model(tiny_config())


def mirror(batch):
    return [{**item, "image": item["image"].flip(-1)} for item in batch]


def predict(model, batch, **settings):
    with inference_context(model):
        return Predictor(model, **settings)(batch)


def test_without_the_mirror_image_it_is_the_model(model):
    batch = random_batch()
    with inference_context(model):
        expected = model(batch)
    for found, wanted in zip(predict(model, batch), expected, strict=True):
        assert torch.equal(found["sem_seg_labels"], wanted["sem_seg_labels"])
        assert found.keys() == wanted.keys()


def test_with_it_a_picture_and_its_mirror_image_have_the_same_labels(model):
    batch = random_batch(pictures=1)
    alone = [predict(model, b)[0]["sem_seg_labels"] for b in (batch, mirror(batch))]
    assert not torch.equal(alone[0], alone[1].flip(-1))
    both = [predict(model, b, flip=True)[0] for b in (batch, mirror(batch))]
    agreement = (both[0]["sem_seg_labels"] == both[1]["sem_seg_labels"].flip(-1)).float().mean()
    assert agreement > 0.999
    # nothing else changes, and the model is as it was
    assert torch.equal(both[0]["panoptic_seg"][0], predict(model, batch)[0]["panoptic_seg"][0])
    assert "sem_seg_scores" not in both[0]
    assert not model.prediction.gives_semantic_scores


def test_the_mirror_images_scores_are_turned_back(model, monkeypatch):
    def predict_colours(batch):
        labels = torch.tensor([3, 7])
        return [{"sem_seg_scores": SemanticScores(labels, item["image"][:2].float())} for item in batch]

    monkeypatch.setattr(model, "predict", predict_colours)
    batch = random_batch(pictures=1)
    found = Predictor(model, flip=True)(batch)[0]["sem_seg_labels"]
    red, green = batch[0]["image"][:2]
    assert torch.equal(found, torch.where(red >= green, 3, 7))


def test_labels_of_uniap_have_no_mean():
    model = build_model(tiny_config(MODEL__INFERENCE__PREDICTOR="uniap"))
    with pytest.raises(ValueError, match="flip and crf need the predictor 'decoder', got 'uniap'"):
        predict(model, random_batch(), flip=True)


def test_the_crf_reads_scores_and_picture(model):
    batch = random_batch(pictures=1, side=64)
    found = predict(model, batch, crf=True)[0]
    before = predict(model, batch)[0]
    assert found["sem_seg_labels"].shape == before["sem_seg_labels"].shape == (128, 128)
    assert found["sem_seg_labels"].dtype == before["sem_seg_labels"].dtype
    assert set(found["sem_seg_labels"].unique().tolist()) <= set(range(16))
    assert "sem_seg_scores" not in found
