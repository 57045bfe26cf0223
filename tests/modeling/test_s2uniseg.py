from __future__ import annotations

import copy

import pytest
import torch
from detectron2.modeling import build_model

import s2uniseg_d2.modeling  # noqa: F401  (registers)
from s2uniseg_d2.core.structures import PseudoLabels, PseudoMasks
from tests.tiny import SHARED, random_batch, tiny_config


def empty_masks(side, embed_dim=48):
    return PseudoMasks(
        torch.zeros(0, side, side, dtype=torch.bool), torch.zeros(0, embed_dim), torch.zeros(0, dtype=torch.int64)
    )


def square_masks(side, embed_dim=48):
    masks = torch.zeros(3, side, side, dtype=torch.bool)
    masks[0, :8, :8] = masks[1, 6:, 6:] = masks[2, 2:16, 3:9] = True
    embeddings = torch.nn.functional.normalize(torch.randn(3, embed_dim, generator=torch.Generator().manual_seed(3)))
    return PseudoMasks(masks, embeddings, torch.arange(3))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model(tiny_config())


def labelled(batch, make=square_masks):
    for item in batch:
        item["pseudo"] = PseudoLabels(make(24), make(24))
    return batch


def test_a_training_step_gives_every_trainable_parameter_a_gradient(model):
    losses = model(labelled(random_batch()))
    assert set(losses) == {
        f"loss_{loss}_{group}{layer}"
        for loss in ("mask", "dice", "objectness")
        for group in ("ins", "sem")
        for layer in ("", "_0", "_1")
    } | {"loss_query_sd"}
    sum(losses.values()).backward()
    without = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert not without
    # at initialisation offsets and attention weights do not depend on the query, and injectors are switched off
    asleep = ("injector", "sampling_offsets", "attention_weights", "query_norm", "in_proj", "level_embed")
    silent = [
        name
        for name, value in model.named_parameters()
        if value.requires_grad and not value.grad.any() and not any(word in name for word in asleep)
    ]
    assert not silent


@pytest.mark.parametrize("which", ["all", "one picture"])
def test_no_masks_give_finite_losses_and_gradients_for_all(model, which):
    batch = labelled(random_batch())
    for item in batch[: 1 if which == "one picture" else None]:
        item["pseudo"] = PseudoLabels(empty_masks(24), empty_masks(24))
    losses = model(batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    for name, value in model.named_parameters():
        if value.requires_grad:
            assert value.grad is not None, name
            assert torch.isfinite(value.grad).all(), name


def test_masks_of_a_kind_that_is_not_learned_touch_neither_the_other_group_nor_the_queries_distilled():
    found = {}
    for kinds in ("('instance', 'semantic')", "('instance',)", "('semantic',)"):
        torch.manual_seed(0)
        model = build_model(tiny_config(MODEL__LOSS__KINDS=kinds))
        batch = labelled(random_batch())
        found[kinds] = model(batch), model.count_normalizers(batch).all_pairs
    (both, pairs), (instance, few), (semantic, others) = found.values()
    assert not instance["loss_mask_sem"].any()
    assert not semantic["loss_dice_ins"].any()
    assert both["loss_mask_sem"].all()
    torch.testing.assert_close(instance["loss_mask_ins"], both["loss_mask_ins"])
    torch.testing.assert_close(semantic["loss_mask_sem"], both["loss_mask_sem"])
    assert float(few + others) == float(pairs)
    sum(instance.values()).backward()


def test_a_batch_without_labels_is_refused(model):
    with pytest.raises(ValueError, match="PseudoLabelHook adds them"):
        model(random_batch())


def test_the_teacher_labels_the_valid_part_of_every_picture(model):
    batch = random_batch()
    labels = model.label(batch)
    assert [tuple(kind.masks.shape[1:]) for label in labels for kind in label] == [(24, 24)] * 2 + [(24, 16)] * 2
    for label in labels:
        for kind in label:
            assert kind.masks.dtype == torch.bool
            assert kind.embeddings.shape == (len(kind.masks), 48)
            assert not kind.embeddings.requires_grad


def test_a_picture_has_the_same_labels_in_any_company(model):
    batch = random_batch(3)
    batch = [batch[0], batch[1], random_batch(seed=1)[1], batch[2]]
    together = model.label(batch)
    model.pictures_at_once = 1
    for labels, others in zip(together, model.label(batch), strict=True):
        assert all(torch.equal(kind.masks, other.masks) for kind, other in zip(labels, others, strict=True))
    model.pictures_at_once = 0
    masks = [kind.masks for kind in together[2]]
    for item, labels in zip(batch, together, strict=True):
        (alone,) = model.label([item])
        for kind, other in zip(labels, alone, strict=True):
            assert torch.equal(kind.masks, other.masks)
            torch.testing.assert_close(kind.embeddings, other.embeddings)
    # offline labels are embedded alike
    batch[2]["pseudo"] = PseudoLabels(*(kind._replace(embeddings=torch.zeros(0, 0)) for kind in together[2]))
    (embedded,) = model.embed(batch[2:3])
    for kind, other, mask in zip(embedded, together[2], masks, strict=True):
        assert torch.equal(kind.masks, mask)
        torch.testing.assert_close(kind.embeddings, other.embeddings, atol=1e-5, rtol=0)


def test_native_tokens_label_at_stride_4_as_well():
    torch.manual_seed(0)
    labels = build_model(tiny_config(MODEL__UNIAP__FEATURE_STRIDE=16, MODEL__UNIAP__MIN_TOKENS=1)).label(random_batch())
    for label in labels:
        blocks = label.instance.masks.unflatten(-1, (-1, 4)).unflatten(1, (-1, 4))
        assert torch.equal(blocks.any(dim=(2, 4)), blocks.all(dim=(2, 4)))


def test_the_teacher_is_never_trained_and_follows_by_momentum(model):
    assert not any(value.requires_grad for value in model.teacher_backbone.parameters())
    assert not any(value.requires_grad for value in model.teacher_head.parameters())
    model.train()
    assert not model.teacher_backbone.training
    before = copy.deepcopy(model.teacher_backbone.state_dict())
    with torch.no_grad():
        for value in model.backbone.parameters():
            value.add_(1.0)
    model.update_teacher(0.75)
    for name, value in model.teacher_backbone.named_parameters():
        torch.testing.assert_close(value, before[name] + 0.25)
    model.copy_student_to_teacher()
    for name, value in model.teacher_backbone.state_dict().items():
        assert torch.equal(value, model.backbone.state_dict()[name]), name


@pytest.mark.parametrize("predictor", ["decoder", "uniap"])
def test_predictions_have_the_pictures_own_size(predictor):
    torch.manual_seed(0)
    model = build_model(tiny_config(MODEL__INFERENCE__PREDICTOR=predictor)).eval()
    batch = random_batch()
    results = model(batch)
    for item, result in zip(batch, results, strict=True):
        size = (item["height"], item["width"])
        instances = result["instances"]
        assert instances.image_size == size
        assert tuple(instances.pred_masks.shape[1:]) == size
        assert len(instances) <= 100
        assert ((instances.scores >= 0) & (instances.scores <= 1)).all()
        assert tuple(result["sem_seg_labels"].shape) == size
        assert (result["sem_seg_labels"] < 16).all()
        panoptic_map, segments = result["panoptic_seg"]
        assert tuple(panoptic_map.shape) == size
        assert {int(i) for i in panoptic_map.unique()} - {0} == {segment["id"] for segment in segments}
        for segment in segments:
            assert segment["area"] == int((panoptic_map == segment["id"]).sum())


def test_switching_objectness_off_leaves_it_out_of_the_score():
    torch.manual_seed(0)
    model = build_model(tiny_config(MODEL__LOSS__OBJECTNESS_WEIGHT=0.0)).eval()
    before = model(random_batch())[0]["instances"].scores
    with torch.no_grad():
        model.sem_seg_head.predictor.class_embed.bias.add_(torch.tensor([-5.0, 5.0]))
    torch.testing.assert_close(model(random_batch())[0]["instances"].scores, before)


def test_same_seed_same_losses():
    def losses():
        torch.manual_seed(0)
        model = build_model(tiny_config())
        return model(labelled(random_batch()))

    first, second = losses(), losses()
    assert all(torch.equal(first[name], second[name]) for name in first)


def uneven_batch():
    """Four pictures: many masks, none at all, some, and more masks than queries."""
    batch = labelled(random_batch(2) + random_batch(2, seed=1), lambda side: square_masks(side, 64))
    for draw, item in enumerate(batch):
        item["draw"] = 8 + draw
    batch[1]["pseudo"] = PseudoLabels(empty_masks(24, 64), empty_masks(24, 64))
    many = PseudoMasks(*(torch.cat([value] * 5) for value in square_masks(24, 64)))
    batch[3]["pseudo"] = PseudoLabels(many, many)
    return batch


@pytest.mark.parametrize("sizes", [(2, 2), (1, 3), (1, 1, 1, 1)])
def test_the_parts_of_a_batch_add_up_to_the_whole(sizes):
    batch = uneven_batch()
    found = []
    for parts in ((4,), sizes):
        torch.manual_seed(0)
        model = build_model(tiny_config(**SHARED))
        normalizers = model.count_normalizers(batch)
        total = {}
        for number, (start, size) in enumerate(zip((sum(parts[:i]) for i in range(len(parts))), parts, strict=True)):
            losses = model(batch[start : start + size], normalizers, is_last=number == len(parts) - 1)
            sum(losses.values()).backward()
            for name, loss in losses.items():
                total[name] = total.get(name, 0.0) + loss.detach()
        gradients = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
        found.append((total, gradients, model.center.center.clone()))
    (whole, gradients, center), (added, others, other_center) = found
    torch.testing.assert_close(added, whole, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(others, gradients, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(other_center, center)
    assert center.any()


def test_the_divisors_count_what_is_matched(model):
    batch = uneven_batch()
    targets = model.crop_targets(batch)
    normalizers = model.count_normalizers(batch)
    for group, queries in (("ins", 6), ("sem", 4)):
        counts = targets[group].masks.counts
        assert max(counts) > queries
        assert min(counts) == 0
        pairs = sum(min(queries, count) for count in counts)
        assert normalizers.pairs[group] == pairs
        assert normalizers.weights[group].item() == pytest.approx(pairs + 0.1 * (8 * queries - pairs))
    assert normalizers.all_pairs == sum(normalizers.pairs.values())
