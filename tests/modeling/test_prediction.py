from __future__ import annotations

import torch

from s2uniseg_d2.core.structures import PseudoLabels, PseudoMasks, QueryPrediction
from s2uniseg_d2.modeling.prediction import PredictionSettings, predict_from_labels, predict_from_queries


def labels():
    """A left and a right half at level 0, a small square in the left one at level 1, on a 4 x 4 grid."""
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0, :, :2] = masks[1, :, 2:] = masks[2, 1:3, 1:2] = True
    embeddings = torch.eye(3)
    return PseudoMasks(masks, embeddings, torch.tensor([0, 0, 1]))


def predict(instance, semantic, top_k=100, **settings):
    features = torch.ones(3, 4, 4)
    features[0, :, 2:] = 0.1
    return predict_from_labels(
        PseudoLabels(instance, semantic),
        features,
        lambda embeddings: embeddings.argmax(dim=1) + 5,
        top_k=top_k,
        image_size=(16, 16),
        output_size=(32, 24),
        **settings,
    )


def test_masks_become_ranked_instances_at_the_pictures_size():
    result = predict(labels(), labels())["instances"]
    assert tuple(result.pred_masks.shape) == (3, 32, 24)
    assert result.pred_classes.tolist() == [7, 6, 5] or result.pred_classes.tolist() == [7, 5, 6]
    assert result.scores[0] > 0.5 >= result.scores[1] >= result.scores[2]
    left = result.pred_masks[result.pred_classes.tolist().index(5)]
    assert left[:, :12].all()
    assert not left[:, 12:].any()
    box = result.pred_boxes.tensor[result.pred_classes.tolist().index(5)]
    assert box.tolist() == [0.0, 0.0, 12.0, 32.0]


def test_the_best_are_kept():
    result = predict(labels(), labels(), top_k=1)["instances"]
    assert result.pred_classes.tolist() == [7]


def test_coarse_masks_lie_over_fine_ones_and_every_segment_is_described():
    result = predict(labels(), labels())
    panoptic_map, segments = result["panoptic_seg"]
    assert {segment["id"]: segment["area"] for segment in segments} == {
        i: int((panoptic_map == i).sum()) for i in (1, 2, 3)
    }
    assert {segment["category_id"]: segment["isthing"] for segment in segments} == {5: False, 6: False, 7: True}
    assert result["sem_seg_labels"].unique().tolist() == [5, 6, 7]
    assert (result["sem_seg_labels"] == 7).sum() == (panoptic_map == 3).sum()


def test_no_masks_give_an_empty_result():
    none = PseudoMasks(torch.zeros(0, 4, 4, dtype=torch.bool), torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    result = predict(none, none)
    assert len(result["instances"]) == 0
    assert (result["sem_seg_labels"] == -1).all()
    assert result["panoptic_seg"][1] == []
    assert not result["panoptic_seg"][0].any()


def predict_queries(settings):
    """Two instance queries that hold the same two squares, one semantic query for what lies around them."""
    masks = torch.full((3, 16, 16), -8.0)
    masks[:2, 1:6, 1:6] = masks[:2, 9:14, 8:14] = 8.0
    masks[1, 1, 1] = -8.0
    masks[2] = -masks[0]
    prediction = QueryPrediction(masks, torch.tensor([[4.0, 0.0], [3.0, 0.0], [4.0, 0.0]]), torch.zeros(3, 8))
    return predict_from_queries(
        prediction,
        torch.tensor([5, 6, 7]),
        {"ins": slice(0, 2), "sem": slice(2, 3)},
        settings,
        padded_size=(64, 64),
        image_size=(64, 64),
        output_size=(64, 64),
    )


def test_queries_stay_whole_and_double_unless_asked_otherwise():
    instances = predict_queries(PredictionSettings())["instances"]
    assert instances.pred_classes.tolist() == [5, 6]
    assert int(instances.pred_masks[0].sum()) > 800


def test_split_instances_without_duplicates_serve_instances_and_panoptic_segments_alike():
    result = predict_queries(PredictionSettings(splits_instances=True, duplicate_iou=0.7))
    instances = result["instances"]
    assert instances.pred_classes.tolist() == [5, 5]
    areas = sorted(int(mask.sum()) for mask in instances.pred_masks)
    assert 380 < areas[0] < 420
    assert 460 < areas[1] < 500
    _, segments = result["panoptic_seg"]
    assert [(segment["isthing"], segment["category_id"]) for segment in segments] == [(True, 5), (True, 5), (False, 7)]


def test_panoptic_duplicates_of_both_groups_do_not_drop_each_other():
    """A thing and two semantic queries say the same, each surest elsewhere; one semantic query holds the rest."""
    masks = torch.full((4, 16, 16), -8.0)
    masks[:3, 2:14, 2:14] = 2.0
    masks[0, 2:6, 2:14] = masks[1, 6:10, 2:14] = masks[2, 10:14, 2:14] = 5.0
    masks[2, 7:14, 2:14] = 5.0
    masks[3] = -masks[0]
    prediction = QueryPrediction(masks, torch.zeros(4, 2), torch.zeros(4, 8))
    found = {}
    for iou in (1.0, 0.7):
        settings = PredictionSettings(duplicate_iou=iou, uses_objectness=False)
        result = predict_from_queries(
            prediction,
            torch.tensor([5, 6, 7, 8]),
            {"ins": slice(0, 1), "sem": slice(1, 4)},
            settings,
            padded_size=(64, 64),
            image_size=(64, 64),
            output_size=(64, 64),
        )
        found[iou] = [(segment["isthing"], segment["category_id"]) for segment in result["panoptic_seg"][1]]
        assert result["instances"].pred_classes.tolist() == [5]
    assert found == {1.0: [(False, 8)], 0.7: [(False, 7), (False, 8)]}


def test_labels_that_overlap_a_better_one_are_left_out_alike():
    doubled = PseudoMasks(*(torch.cat([value, value[:1]]) for value in labels()))
    assert len(predict(doubled, labels())["instances"]) == 4
    assert len(predict(doubled, labels(), duplicate_iou=0.9)["instances"]) == 3
