from __future__ import annotations

import pytest
import torch

from s2uniseg_d2.core.inference import semantic_inference
from s2uniseg_d2.core.semantic_scores import SemanticScores, mean_scores, semantic_scores


def draw(seed, queries=7, size=(5, 6)):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randn(queries, *size, generator=generator)
    return masks, torch.randn(queries, 2, generator=generator), torch.randint(0, 4, (queries,), generator=generator)


def test_the_winner_is_semantic_inference():
    for seed in range(20):
        inputs = draw(seed)
        assert torch.equal(semantic_scores(*inputs).winner(), semantic_inference(*inputs))


def test_scores_by_hand():
    masks = torch.tensor([0.0, 2.0, -1.0]).view(3, 1, 1)
    objectness = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    scores = semantic_scores(masks, objectness, torch.tensor([5, 2, 5]))
    weight, inside = objectness.softmax(1)[:, 0], masks.flatten().sigmoid()
    assert scores.labels.tolist() == [2, 5]
    expected = torch.stack([weight[1] * inside[1], weight[0] * inside[0] + weight[2] * inside[2]])
    torch.testing.assert_close(scores.scores.flatten(), expected)


def test_a_tie_goes_to_the_smallest_class():
    scores = SemanticScores(torch.tensor([3, 8, 9]), torch.tensor([0.2, 0.7, 0.7]).view(3, 1, 1))
    assert scores.winner().item() == 8


def test_the_mean_with_itself_changes_nothing_and_classes_of_one_side_count_half():
    first = semantic_scores(*draw(1))
    same = mean_scores(first, first)
    assert torch.equal(same.labels, first.labels)
    torch.testing.assert_close(same.scores, first.scores)
    one = SemanticScores(torch.tensor([1, 4]), torch.tensor([0.9, 0.1]).view(2, 1, 1))
    other = SemanticScores(torch.tensor([2, 4]), torch.tensor([0.5, 0.7]).view(2, 1, 1))
    mean = mean_scores(one, other)
    assert mean.labels.tolist() == [1, 2, 4]
    torch.testing.assert_close(mean.scores.flatten(), torch.tensor([0.45, 0.25, 0.4]))


def test_a_mirror_image_turned_twice_is_the_picture():
    scores = semantic_scores(*draw(2))
    assert torch.equal(scores.mirrored().scores[..., 0], scores.scores[..., -1])
    assert torch.equal(scores.mirrored().mirrored().scores, scores.scores)


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_inputs_that_do_not_fit_are_refused(wrong):
    inputs = list(draw(0))
    inputs[wrong] = inputs[wrong][1:]
    with pytest.raises(ValueError, match="one row per query"):
        semantic_scores(*inputs)
    with pytest.raises(ValueError, match="one query at least"):
        semantic_scores(*(value[:0] for value in draw(0)))
    with pytest.raises(ValueError, match="grids must be equal"):
        mean_scores(semantic_scores(*draw(0)), semantic_scores(*draw(0, size=(5, 5))))
