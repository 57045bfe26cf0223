from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from s2uniseg_d2.core.ops.dense_crf import CRFSettings, dense_crf


def two_halves(size=24, noise=0):
    """A picture of two colours, and unsure probabilities with salt and pepper."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.full((3, size, size), 40)
    picture[:, :, size // 2 :] = 200
    picture += torch.randint(-noise, noise + 1, picture.shape, generator=generator)
    truth = (torch.arange(size) >= size // 2).expand(size, size)
    said = truth ^ (torch.rand(size, size, generator=generator) < 0.2)
    first = torch.where(said, 0.3, 0.7)
    return picture.to(torch.uint8), truth, torch.stack([first, 1 - first])


def mean_field_by_hand(probabilities, picture, settings):
    """The update of the paper, pixel by pixel and pair by pair."""
    classes, height, width = probabilities.shape
    unary = np.log(probabilities.numpy().reshape(classes, -1).T.astype(np.float64))
    places = [(y, x, picture[:, y, x].numpy().astype(float)) for y in range(height) for x in range(width)]
    near, alike = np.zeros((2, len(places), len(places)))
    for i, (y, x, a) in enumerate(places):
        for j, (v, u, b) in enumerate(places):
            distance = (y - v) ** 2 + (x - u) ** 2
            near[i, j] = math.exp(-distance / 2 / settings.near_std_px**2)
            colours = ((a - b) ** 2).sum() / 2 / settings.alike_std_rgb**2
            alike[i, j] = math.exp(-distance / 2 / settings.alike_std_px**2 - colours)
    near, alike = (k / np.sqrt(np.outer(k.sum(1), k.sum(1))) for k in (near, alike))
    current = np.exp(unary) / np.exp(unary).sum(1, keepdims=True)
    for _ in range(settings.iterations):
        energy = unary + settings.near_weight * near @ current + settings.alike_weight * alike @ current
        current = np.exp(energy) / np.exp(energy).sum(1, keepdims=True)
    return torch.from_numpy(current.T.reshape(classes, height, width)).float()


def test_it_is_the_papers_update():
    generator = torch.Generator().manual_seed(1)
    picture = torch.randint(100, 112, (3, 5, 6), generator=generator, dtype=torch.uint8)
    given = torch.rand(3, 5, 6, generator=generator).softmax(0)
    settings = CRFSettings(iterations=3, alike_std_px=4.0)
    found = dense_crf(given, picture, settings, is_exact=True)
    torch.testing.assert_close(found, mean_field_by_hand(given, picture, settings), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("is_exact", [True, False])
def test_labels_come_to_follow_the_colours(is_exact):
    picture, truth, given = two_halves(noise=1)
    before = (given.argmax(0) == truth).float().mean()
    found = dense_crf(given, picture, is_exact=is_exact)
    assert before < 0.85
    assert (found.argmax(0) == truth).float().mean() > 0.99
    torch.testing.assert_close(found.sum(0), torch.ones(24, 24))


def test_without_iterations_or_weights_nothing_changes():
    picture, _, given = two_halves()
    torch.testing.assert_close(dense_crf(3 * given, picture, CRFSettings(iterations=0)), given)
    torch.testing.assert_close(dense_crf(given, picture, CRFSettings(near_weight=0, alike_weight=0)), given)


def test_the_lattice_agrees_with_all_pairs_on_a_photograph(shared_data):
    from PIL import Image

    with Image.open(shared_data / "coco64" / "images" / "000000000009.jpg") as file:
        picture = torch.from_numpy(np.array(file.convert("RGB").resize((40, 40)))).permute(2, 0, 1)
    noise = torch.randn(1, 6, 6, 6, generator=torch.Generator().manual_seed(0))
    given = torch.nn.functional.interpolate(noise, (40, 40), mode="bilinear")[0].mul(2).softmax(0)
    exact, found = (dense_crf(given, picture, is_exact=is_exact) for is_exact in (True, False))
    changed = (exact.argmax(0) != given.argmax(0)).float().mean()
    missed = (exact.argmax(0) != found.argmax(0)).float().mean()
    assert changed > 0.05
    assert missed < min(0.03, changed / 3)


def test_a_picture_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"picture must be \(3, H, W\) of the probabilities' size"):
        dense_crf(torch.ones(2, 4, 5), torch.zeros(3, 5, 4, dtype=torch.uint8))
