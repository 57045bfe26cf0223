"""The Python call: weights in, results in the picture's size out."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from s2uniseg_d2 import segmenter as module
from s2uniseg_d2.data.mapper import InferenceMapper
from s2uniseg_d2.data.pictures import read_picture
from s2uniseg_d2.segmenter import Segmenter
from tests.checkpoint import write_checkpoint
from tests.tiny import tiny_config, tiny_words, write_pictures


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), count=1, size=(120, 170)) / "0.png"


@pytest.fixture(scope="module")
def segmenter(weights):
    return Segmenter.from_pretrained(weights, score_threshold=0)


def test_results_are_those_that_an_evaluation_judges(segmenter, weights, path):
    model = build_model(tiny_config()).eval()
    model.load_state_dict(torch.load(weights, weights_only=True)["model"])
    expected = model.predict([InferenceMapper(longest_px=96)({"file_name": str(path)})])[0]
    found = segmenter.segment(read_picture(path))
    assert len(found.instances) > 0
    for name in ("pred_masks", "scores", "pred_classes"):
        assert torch.equal(found.instances.get(name), expected["instances"].get(name)), name
    assert torch.equal(found.semantic, expected["sem_seg_labels"])
    assert torch.equal(found.panoptic, expected["panoptic_seg"][0])
    assert found.segments == expected["panoptic_seg"][1]


def test_the_call_gives_instances_in_the_pictures_size(segmenter, path):
    instances = segmenter(read_picture(path))
    assert isinstance(instances, Instances)
    assert instances.image_size == (120, 170)
    assert instances.pred_masks.shape == (len(instances), 120, 170)
    assert instances.pred_masks.dtype == torch.bool
    assert isinstance(instances.pred_boxes, Boxes)
    assert 0 <= instances.pred_classes.min() <= instances.pred_classes.max() < segmenter.num_clusters == 16
    assert segmenter.semantic(read_picture(path)).shape == (120, 170)
    assert segmenter.panoptic(read_picture(path))[0].shape == (120, 170)


def test_the_threshold_leaves_out_low_scores(segmenter, weights, path):
    scores = segmenter(read_picture(path)).scores
    least = float(scores.median())
    kept = Segmenter.from_pretrained(weights, score_threshold=least)(read_picture(path)).scores
    assert kept.tolist() == scores[scores >= least].tolist()
    assert 0 < len(kept) < len(scores)


def test_supervision_takes_the_instances(segmenter, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        supervision = pytest.importorskip("supervision")
    instances = segmenter(read_picture(path))
    detections = supervision.Detections.from_detectron2({"instances": instances})
    assert len(detections) == len(instances) > 0
    assert (detections.mask == instances.pred_masks.numpy()).all()
    assert (detections.class_id == instances.pred_classes.numpy()).all()
    assert (detections.xyxy == instances.pred_boxes.tensor.numpy()).all()
    assert (detections.confidence == instances.scores.numpy()).all()


def test_a_great_picture_is_predicted_smaller_and_enlarged(weights, path, monkeypatch):
    words = ["MODEL.INFERENCE.OBJECT_THRESHOLD", "0.0", "MODEL.INFERENCE.OVERLAP_THRESHOLD", "0.0"]
    segmenter = Segmenter.from_pretrained(weights, score_threshold=0, overrides=words)
    picture = read_picture(path)
    monkeypatch.setattr(module, "LARGEST_PX", 85)
    found = segmenter.segment(picture)
    monkeypatch.undo()
    assert found.instances.pred_masks.shape[1:] == found.semantic.shape == found.panoptic.shape == (120, 170)
    assert found.instances.image_size == (120, 170)
    whole = segmenter.segment(picture)
    assert 0.95 < (found.instances.pred_masks == whole.instances.pred_masks).float().mean() < 1
    assert found.segments
    for segment in found.segments:
        assert segment["area"] == int((found.panoptic == segment["id"]).sum())
    for mask, box in zip(found.instances.pred_masks, found.instances.pred_boxes, strict=True):
        rows, columns = mask.nonzero().T
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_uniap_predicts_with_levels_from_a_vit_alone(path, tmp_path):
    words = tiny_words(MODEL__UNIAP__TAUS="(0.9,0.6)", MODEL__UNIAP__FEATURE_STRIDE=16)
    first, again = (Segmenter.from_pretrained("", predictor="uniap", overrides=words) for _ in range(2))
    instances = first(read_picture(path))
    assert len(instances) == len(instances.levels) > 0
    assert set(instances.levels.tolist()) <= {0, 1}
    assert first.score_threshold == 0
    assert "no decoder is trained" in first.source
    assert torch.equal(instances.pred_classes, again(read_picture(path)).pred_classes)  # the random head is seeded


def test_uniap_keeps_the_fine_levels_too(path):
    words = tiny_words(MODEL__UNIAP__TAUS="(0.99,0.6)", MODEL__UNIAP__FEATURE_STRIDE=16, MODEL__UNIAP__MIN_TOKENS=1)
    limited = [*words, "TEST.DETECTIONS_PER_IMAGE", "2"]
    instances = Segmenter.from_pretrained("", predictor="uniap", overrides=limited)(read_picture(path))
    assert {0, 1} <= set(instances.levels.tolist())
    few = [*words, "MODEL.UNIAP.MAX_MASKS", "2"]
    assert len(Segmenter.from_pretrained("", predictor="uniap", overrides=few)(read_picture(path))) == 2


def test_a_picture_of_any_shape_is_segmented(segmenter):
    for shape in ((1, 1, 3), (2, 300, 3), (300, 2, 3)):
        found = segmenter.segment(np.zeros(shape, dtype=np.uint8))
        assert found.semantic.shape == found.panoptic.shape == found.instances.image_size == shape[:2]


def test_uniap_takes_the_teacher_of_a_checkpoint(weights, path, tmp_path):
    trained = Segmenter.from_pretrained(weights, predictor="uniap")
    state = torch.load(weights, weights_only=True)["model"]
    loaded = trained.model.state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state if name.startswith("teacher_backbone."))


def test_what_only_training_needs_may_be_missing(weights, path, tmp_path):
    def drop(state):
        for name in [name for name in state if name.startswith(("student_head.", "backbone.trunk.spatial"))]:
            del state[name]

    lean = Segmenter.from_pretrained(write_checkpoint(tmp_path, drop), score_threshold=0)
    full = Segmenter.from_pretrained(weights, score_threshold=0)
    assert torch.equal(lean(read_picture(path)).pred_masks, full(read_picture(path)).pred_masks)


def poison(state):
    state[next(name for name in state if name.startswith("sem_seg_head"))].view(-1)[0] = float("nan")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds NaN or infinity in 1 of \d+ tensors .sem_seg_head.*training diverged"):
        Segmenter.from_pretrained(write_checkpoint(tmp_path, poison))


def test_another_config_is_refused(weights, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(tiny_config(MODEL__QUERY_HEAD__MASK_DIM=16).dump())
    with pytest.raises(ValueError, match=r"does not fit the config: \d+ of the \d+ tensors .* config.yaml in"):
        Segmenter.from_pretrained(weights, config_file=other)


def test_a_missing_part_is_refused(tmp_path):
    def drop(state):
        del state["query_proj.bias"]

    with pytest.raises(ValueError, match=r"1 of the \d+ tensors that a prediction needs .* \(query_proj.bias\)"):
        Segmenter.from_pretrained(write_checkpoint(tmp_path, drop))


@pytest.mark.parametrize(
    ("weights", "settings", "message"),
    [
        ("nowhere.pth", {}, "weights must be a checkpoint of train_net.py, a file that exists, got 'nowhere.pth'"),
        ("", {"predictor": "uniapp"}, "predictor must be one of decoder, uniap, got 'uniapp'"),
        ("vit_enormous", {"predictor": "uniap"}, "weights must be '', the name of a timm model or a file that exists"),
        ("", {"predictor": "uniap", "device": "abacus"}, "device must be one that is there"),
        ("", {"predictor": "uniap", "score_threshold": 2}, r"score_threshold must lie in \[0, 1\], got 2"),
        ("", {"predictor": "uniap", "image_size": 8}, "longest_px must be at least 32, got 8"),
    ],
)
def test_bad_arguments_are_named(weights, settings, message):
    with pytest.raises(ValueError, match=message):
        Segmenter.from_pretrained(weights, overrides=tiny_words(), **settings)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "model.pth").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="is no readable PyTorch checkpoint"):
        Segmenter.from_pretrained(tmp_path / "model.pth", overrides=tiny_words())


def test_a_picture_must_be_rgb(segmenter):
    with pytest.raises(ValueError, match=r"image must be uint8 of shape \(H, W, 3\)"):
        segmenter(np.zeros((4, 4), dtype=np.uint8))
