from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from pycocotools import mask as mask_coding

from s2uniseg_d2.evaluation import coco_results
from s2uniseg_d2.evaluation.coco_results import encode_instances, encode_masks

from .conftest import make_instances


@pytest.fixture
def instances():
    generator = np.random.default_rng(0)
    masks = generator.uniform(size=(9, 13, 7)) < 0.4
    masks[3] = False
    masks[4] = True
    return make_instances(masks, generator.uniform(size=9), np.arange(9), (13, 7))


@pytest.mark.parametrize("chunk", [1, 200, 1 << 25])
def test_results_are_those_of_detectron2(instances, chunk, monkeypatch):
    monkeypatch.setattr(coco_results, "_CHUNK_PIXELS", chunk)
    arrays = Instances((13, 7), **(instances.get_fields() | {"pred_masks": instances.pred_masks.numpy()}))
    assert encode_instances(instances, 5) == instances_to_coco_json(arrays, 5)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (6, 5), (40, 30)])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 1.0])
def test_codes_are_those_of_pycocotools(size, share):
    masks = np.random.default_rng(size[0]).uniform(size=(7, *size)) < share
    expected = mask_coding.encode(np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8))
    for kind in (torch.bool, torch.uint8):
        found = encode_masks(torch.as_tensor(masks).to(kind))
        assert [code["counts"].encode() for code in found] == [code["counts"] for code in expected]
        assert [code["size"] for code in found] == [list(size)] * 7


def test_masks_are_optional_and_nothing_is_nothing(instances):
    fields = {name: value for name, value in instances.get_fields().items() if name != "pred_masks"}
    boxes = encode_instances(Instances((13, 7), **fields), 5)
    assert len(boxes) == 9
    assert all("segmentation" not in result for result in boxes)
    assert encode_instances(instances[:0], 5) == encode_masks(torch.zeros(0, 13, 7, dtype=torch.bool)) == []


def test_scores_must_be_finite(instances):
    instances.scores[2] = float("nan")
    with pytest.raises(ValueError, match="scores of image_id 5 must be finite, got nan"):
        encode_instances(instances, 5)
