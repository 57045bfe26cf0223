from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2uniseg_d2.core.inference import instance_inference, panoptic_inference, semantic_inference

SURE, UNSURE = [6.0, -6.0], [-6.0, 6.0]


def objects(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows).reshape(-1, 2)


def regions(*parts: tuple[slice, slice], value: float = 8.0, size: tuple[int, int] = (8, 8)) -> torch.Tensor:
    masks = torch.full((len(parts), *size), -value)
    for mask, part in zip(masks, parts, strict=True):
        mask[part] = value
    return masks


def random_queries(q: int, seed: int, size: tuple[int, int] = (6, 7), classes: int = 4):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(q, *size, generator=generator) * 3,
        torch.randn(q, 2, generator=generator) * 2,
        torch.randint(0, classes, (q,), generator=generator),
    )


TOP, BOTTOM = (slice(0, 4), slice(None)), (slice(4, 8), slice(None))
LEFT = (slice(None), slice(0, 4))
NONE = (torch.zeros(0, 8, 8), torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))

# ---- instances


def test_instances_follow_the_formula():
    masks, objectness, classes = random_queries(5, 0)
    found = instance_inference(masks, objectness, classes)
    wanted = []
    for mask, row, label in zip(masks, objectness, classes, strict=True):
        inside = mask > 0
        score = row.softmax(0)[0] * mask.sigmoid()[inside].mean()
        wanted.append((score.item(), inside, label.item()))
    wanted.sort(key=lambda entry: -entry[0])
    assert found.scores.tolist() == pytest.approx([score for score, _, _ in wanted], rel=1e-5)
    assert found.classes.tolist() == [label for _, _, label in wanted]
    assert torch.equal(found.masks, torch.stack([mask for _, mask, _ in wanted]))


def test_top_k_takes_the_best_and_equal_scores_keep_the_order():
    masks = regions(TOP, TOP, BOTTOM)
    found = instance_inference(masks, objects(SURE, SURE, SURE), torch.tensor([3, 1, 2]), top_k=2)
    assert found.classes.tolist() == [3, 1]
    found = instance_inference(masks, objects(UNSURE, SURE, SURE), torch.tensor([3, 1, 2]), top_k=2)
    assert found.classes.tolist() == [1, 2]
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


def test_empty_masks_are_dropped_and_do_not_take_a_place():
    masks = torch.stack([torch.full((8, 8), -1.0), regions(TOP)[0], torch.zeros(8, 8)])
    for top_k in (1, 100):
        found = instance_inference(masks, objects(SURE, UNSURE, SURE), torch.tensor([0, 1, 2]), top_k=top_k)
        assert found.classes.tolist() == [1]


def test_boxes_are_tight():
    found = instance_inference(regions((slice(2, 5), slice(1, 7))), objects(SURE), torch.tensor([0]))
    assert found.boxes.tolist() == [[1, 2, 7, 5]]


@pytest.mark.parametrize(("queries", "top_k"), [(NONE, 100), ((regions(TOP), objects(SURE), torch.tensor([0])), 0)])
def test_nothing_in_or_wanted_gives_empty_instances(queries, top_k):
    found = instance_inference(*queries, top_k=top_k)
    assert [tuple(part.shape) for part in found] == [(0, 8, 8), (0,), (0,), (0, 4)]
    assert found.masks.dtype == torch.bool
    assert found.classes.dtype == torch.int64


def test_instances_from_half_precision_have_float32_scores():
    masks, objectness, classes = random_queries(5, 0, (300, 300))
    found = instance_inference(masks.half(), objectness.half(), classes)
    full = instance_inference(masks.half().float(), objectness.half().float(), classes)
    assert found.scores.dtype == torch.float32
    assert torch.equal(found.scores, full.scores)


# ---- semantics


def dense_semantics(masks, objectness, classes, num_classes: int) -> torch.Tensor:
    """All K maps at once."""
    weights = torch.nn.functional.one_hot(classes, num_classes).double() * objectness.double().softmax(1)[:, :1]
    return torch.einsum("qk,qhw->khw", weights, masks.double().sigmoid()).argmax(0)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 10_000))
def test_semantics_equal_the_dense_sum_over_all_classes(q, seed):
    queries = random_queries(q, seed)
    assert torch.equal(semantic_inference(*queries), dense_semantics(*queries, num_classes=4))


def test_queries_of_one_class_add_up():
    masks = torch.tensor([1.0, 0.5, 0.5]).reshape(3, 1, 1)
    label = semantic_inference(masks, objects(SURE, SURE, SURE), torch.tensor([2, 7, 7]))
    assert label.item() == 7
    assert label.dtype == torch.int64


def test_objectness_weighs_and_ties_go_to_the_smallest_class():
    masks = torch.zeros(2, 3, 3)
    assert (semantic_inference(masks, objects(UNSURE, SURE), torch.tensor([1, 5])) == 5).all()
    assert (semantic_inference(masks, objects(SURE, SURE), torch.tensor([511, 5])) == 5).all()
    nothing = torch.full((2, 3, 3), float("-inf"))
    assert (semantic_inference(nothing, objects(SURE, SURE), torch.tensor([511, 5])) == 5).all()


def test_semantics_need_a_query():
    with pytest.raises(ValueError, match="masks must hold at least one query"):
        semantic_inference(*NONE)


# ---- panoptic


def slow_panoptic(ins, sem, object_threshold: float, overlap_threshold: float):
    """The rules on a dense stack of weighted probabilities."""
    masks, objectness, classes = (torch.cat(parts) for parts in zip(ins, sem, strict=True))
    scores = objectness.softmax(1)[:, 0]
    kept = [i for i in range(len(masks)) if scores[i] > object_threshold]
    output, segments = torch.zeros(masks.shape[1:], dtype=torch.int32), []
    if not kept:
        return output, segments
    winner = (scores[kept, None, None] * masks[kept].sigmoid()).argmax(0)
    for i, query in enumerate(kept):
        own = masks[query].sigmoid() >= 0.5
        final = own & (winner == i)
        if not final.any() or (winner == i).sum() / own.sum() < overlap_threshold:
            continue
        thing, label = query < len(ins[0]), classes[query].item()
        known = [s for s in segments if not thing and not s["isthing"] and s["category_id"] == label]
        if known:
            segment = known[0]
            segment["area"] += int(final.sum())
            segment["score"] = max(segment["score"], scores[query].item())
        else:
            segment = {"id": len(segments) + 1, "isthing": thing, "category_id": label}
            segment |= {"score": scores[query].item(), "area": int(final.sum())}
            segments.append(segment)
        output[final] = segment["id"]
    return output, segments


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.5, 0.8]))
def test_panoptic_equals_the_slow_rules(q_ins, q_sem, seed, threshold):
    ins, sem = random_queries(q_ins, seed, classes=2), random_queries(q_sem, seed + 1, classes=2)
    got, segments = panoptic_inference(*ins, *sem, object_threshold=threshold, overlap_threshold=threshold)
    wanted, wanted_segments = slow_panoptic(ins, sem, threshold, threshold)
    assert torch.equal(got, wanted)
    assert [s | {"score": pytest.approx(s["score"])} for s in wanted_segments] == segments


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_map_and_segments_agree(seed):
    ins, sem = random_queries(5, seed), random_queries(5, seed + 1)
    panoptic, segments = panoptic_inference(*ins, *sem, object_threshold=0.2, overlap_threshold=0.2)
    assert panoptic.dtype == torch.int32
    areas = {int(i): int((panoptic == i).sum()) for i in panoptic.unique() if i}
    assert areas == {s["id"]: s["area"] for s in segments}
    assert [s["id"] for s in segments] == list(range(1, len(segments) + 1))
    stuff = [s["category_id"] for s in segments if not s["isthing"]]
    assert len(stuff) == len(set(stuff))


def test_things_stay_apart_and_stuff_of_one_class_merges():
    masks = regions((slice(0, 2), slice(None)), (slice(2, 4), slice(None)))
    more = regions((slice(4, 6), slice(None)), (slice(6, 8), slice(None)))
    panoptic, segments = panoptic_inference(
        masks, objects(SURE, SURE), torch.tensor([5, 5]), more, objects([3.0, -3.0], SURE), torch.tensor([5, 5])
    )
    assert [(s["id"], s["isthing"], s["category_id"], s["area"]) for s in segments] == [
        (1, True, 5, 16),
        (2, True, 5, 16),
        (3, False, 5, 32),
    ]
    assert segments[2]["score"] == segments[0]["score"]  # the higher of the two
    assert panoptic[:, 0].tolist() == [1, 1, 2, 2, 3, 3, 3, 3]


def test_thresholds_may_be_nought_and_one():
    found = [
        panoptic_inference(
            regions(TOP), objects([9.0, 0.0]), torch.tensor([0]), *NONE, object_threshold=0.0, overlap_threshold=value
        )[1]
        for value in (0.0, 1.0)
    ]
    assert [len(segments) for segments in found] == [1, 1]
    for name in ("object_threshold", "overlap_threshold"):
        with pytest.raises(ValueError, match=rf"{name} must lie in \[0, 1\], got 1\.1"):
            panoptic_inference(regions(TOP), objects([9.0, 0.0]), torch.tensor([0]), *NONE, **{name: 1.1})


def test_no_query_above_the_threshold_leaves_void():
    for rows in ([UNSURE, UNSURE], [[0.0, 0.0], [0.0, 0.0]]):  # exactly at a threshold of 0.5 is not above it
        panoptic, segments = panoptic_inference(
            regions(TOP, BOTTOM), objects(*rows), torch.tensor([0, 1]), *NONE, object_threshold=0.5
        )
        assert not panoptic.any()
        assert segments == []
    assert panoptic_inference(*NONE, *NONE)[1] == []


def test_a_tie_goes_to_the_instance_query():
    queries = regions(TOP), objects(SURE), torch.tensor([4])
    panoptic, segments = panoptic_inference(*queries, *queries)
    assert [s["isthing"] for s in segments] == [True]
    assert (panoptic[:4] == 1).all()
    assert not panoptic[4:].any()


def test_a_segment_that_lost_too_much_of_itself_is_dropped():
    strong, weak = regions(LEFT), regions((slice(None), slice(None)), value=4.0)
    panoptic, segments = panoptic_inference(
        strong, objects(SURE), torch.tensor([0]), weak, objects(SURE), torch.tensor([1]), overlap_threshold=0.6
    )
    assert [s["category_id"] for s in segments] == [0]
    assert not panoptic[:, 4:].any()
    _, segments = panoptic_inference(
        strong, objects(SURE), torch.tensor([0]), weak, objects(SURE), torch.tensor([1]), overlap_threshold=0.5
    )
    assert [s["area"] for s in segments] == [32, 32]  # exactly at the threshold stays


def test_a_mask_without_own_pixels_makes_no_segment():
    panoptic, segments = panoptic_inference(torch.full((1, 8, 8), -3.0), objects(SURE), torch.tensor([0]), *NONE)
    assert not panoptic.any()
    assert segments == []


@pytest.mark.parametrize("threshold", ["object_threshold", "overlap_threshold"])
def test_thresholds_out_of_range_are_refused(threshold):
    with pytest.raises(ValueError, match=rf"{threshold} must lie in \[0, 1\], got 1.5"):
        panoptic_inference(*NONE, *NONE, **{threshold: 1.5})


def test_inputs_that_do_not_fit_are_refused():
    masks = regions(TOP, BOTTOM)
    with pytest.raises(ValueError, match=r"masks \(q, H, W\).*one row per query"):
        instance_inference(masks, objects(SURE), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="one row per query"):
        semantic_inference(masks, objects(SURE, SURE), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"sem_masks \(q, H, W\)"):
        panoptic_inference(*NONE, masks, objects(SURE), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="must share their grid"):
        panoptic_inference(*NONE, *random_queries(2, 0))
    with pytest.raises(ValueError, match="top_k must be at least 0, got -1"):
        instance_inference(*NONE, top_k=-1)
