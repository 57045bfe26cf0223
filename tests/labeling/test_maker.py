from __future__ import annotations

import numpy as np
import pytest
import torch

from s2uniseg_d2.labeling.maker import PseudoMaskMaker
from s2uniseg_d2.modeling import S2UniSeg
from tests.labeling.words import WORDS
from tests.tiny import tiny_config


def picture(height, width, seed=0):
    """Two halves and some noise."""
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 40, (height, width, 3), dtype=np.uint8)
    image[:, width // 2 :] += 150
    return image


def same(first, second, atol=0.0):
    for one, other in zip(first, second, strict=True):
        assert (one.masks == other.masks).all()
        assert (one.levels == other.levels).all()
        np.testing.assert_allclose(one.scores, other.scores, atol=atol)
        np.testing.assert_allclose(one.embeddings, other.embeddings, atol=atol)


@pytest.mark.parametrize("size", [(60, 90), (200, 70), (7, 5), (1, 1), (3, 500)])
def test_masks_have_the_pictures_size(maker, size):
    for found in maker(picture(*size)):
        assert found.masks.dtype == np.bool_
        assert found.masks.shape == (len(found.levels), *size)
        assert found.areas.tolist() == found.masks.sum(axis=(1, 2)).tolist()
        assert (found.areas > 0).all()
        assert found.embeddings.shape == (len(found.levels), 48)
        assert (found.levels.dtype, found.scores.dtype, found.embeddings.dtype) == (np.int64, np.float32, np.float32)
        assert (found.scores >= 0).all()
        assert (found.scores <= 1).all()
        np.testing.assert_allclose(np.linalg.norm(found.embeddings, axis=1), 1, atol=1e-5)


def test_a_picture_that_ends_inside_a_cell_covers_a_part_of_it(maker):
    grid = maker.label_grids([maker.resize(picture(60, 90))], [(60, 90)])[0]
    assert maker.resize(picture(60, 90)).shape[:2] == (43, 64)
    assert grid.valid == (10.75, 16.0)
    assert grid.labels.instance.masks.shape[1:] == (11, 16)


def test_a_picture_does_not_depend_on_its_batch(maker):
    images = [picture(60, 90, 0), picture(90, 60, 1), picture(64, 96, 2), picture(60, 90, 3), picture(20, 90, 4)]
    together = maker.label(images)
    for image, found in zip(images, together, strict=True):
        same(maker(image), found, atol=1e-5)


def test_the_masks_are_those_of_the_training_step(maker):
    """What the trainer learns from is what the command writes, for a picture of the size that the teacher sees."""
    torch.manual_seed(0)
    model = S2UniSeg(tiny_config()).eval()
    own = PseudoMaskMaker(model.teacher_backbone, model.labeler, image_size=96)
    image = picture(96, 64)
    labels = model.label([{"image": torch.from_numpy(image.transpose(2, 0, 1).copy())}])[0]
    for expected, found in zip(labels, own(image), strict=True):
        blown = expected.masks.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2).numpy()
        assert (found.masks == blown).all()
        assert (found.levels == expected.level.numpy()).all()
        np.testing.assert_allclose(found.embeddings, expected.embeddings.numpy(), atol=1e-5)


def test_coarse_tokens_cover_the_same_picture(maker):
    coarse = PseudoMaskMaker(maker.encoder, maker.labeler, feature_stride=16, image_size=64)
    found = coarse(picture(64, 48)).instance
    assert found.masks.shape[1:] == (64, 48)
    changes = found.masks[:, :, 1:] != found.masks[:, :, :-1]
    assert not changes[:, :, [x for x in range(47) if (x + 1) % 16]].any()


@pytest.mark.parametrize("upscale", ["bilinear", "edges"])
def test_smooth_upscalings_keep_every_mask(maker, upscale):
    blocks = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    image = blocks.repeat(32, axis=0).repeat(30, axis=1)
    plain = maker(image)
    smooth = PseudoMaskMaker(maker.encoder, maker.labeler, image_size=64, upscale=upscale)(image)
    for one, other in zip(plain, smooth, strict=True):
        assert len(one.masks) == len(other.masks)
        assert (one.masks == other.masks).mean() > 0.9
    assert (plain.instance.masks != smooth.instance.masks).any()


def test_the_result_is_repeatable(maker):
    again = PseudoMaskMaker.from_pretrained("", overrides=WORDS)
    image = picture(50, 70)
    same(maker(image), again(image))


def test_image_size_counts(maker):
    larger = PseudoMaskMaker.from_pretrained("", overrides=WORDS, image_size=160)
    assert maker.resize(picture(30, 60)).shape == (32, 64, 3)
    assert larger.resize(picture(30, 60)).shape == (80, 160, 3)
    assert larger.settings() == {**maker.settings(), "image_size": 160}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"image_size": 100}, "image_size must be a positive multiple of 32, got 100"),
        ({"image_size": 0}, "image_size must be a positive multiple of 32, got 0"),
        ({"feature_stride": 8}, "feature_stride must be 4 or 16, got 8"),
        ({"upscale": "cubic"}, "upscale must be one of nearest, bilinear, edges, got 'cubic'"),
        ({"device": "abacus"}, "device must be one that is there, such as cpu or cuda, got 'abacus'"),
        ({"device": "cuda:99"}, "device must be one that is there, such as cpu or cuda, got 'cuda:99'"),
    ],
)
def test_bad_arguments_are_refused(maker, words, message):
    with pytest.raises(ValueError, match=message):
        PseudoMaskMaker(maker.encoder, maker.labeler, **words)


def test_what_is_no_picture_is_refused(maker):
    with pytest.raises(ValueError, match=r"image must be uint8 of shape \(H, W, 3\)"):
        maker(np.zeros((5, 5, 3), dtype=np.float32))


def test_damaged_weights_are_reported(maker):
    broken = PseudoMaskMaker.from_pretrained("", overrides=WORDS)
    with torch.no_grad():
        broken.encoder.trunk.vit.norm.bias[0] = float("nan")
    with pytest.raises(FloatingPointError, match="features are not finite"):
        broken(picture(32, 32))
