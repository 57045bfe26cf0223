"""Figures of real steps, and collapses made by hand in a real model."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from s2uniseg_d2.core.structures import QueryPrediction
from s2uniseg_d2.engine.hooks import LabelledLoader
from s2uniseg_d2.engine.observation import ObservationHook, find_collapses, scalars_of
from tests.tiny import random_batch, tiny_config

LEVELS = 5


@pytest.fixture
def model():
    return build(1)


def build(seed, **more):
    torch.manual_seed(seed)
    model = build_model(tiny_config(**more))
    model.copy_student_to_teacher()
    return model


def watch(model, caplog, *, steps=1, period=1, max_iter=100):
    """Take steps without an optimizer; returns the scalars of the last one and what was warned of."""
    hook = ObservationHook(period)
    with EventStorage() as storage, caplog.at_level(logging.WARNING, logger="s2uniseg_d2.engine.observation"):
        optimizer = SimpleNamespace(gradient_norm=torch.tensor(0.25))
        hook.trainer = SimpleNamespace(model=model, storage=storage, optimizer=optimizer, max_iter=max_iter)
        for hook.trainer.iter in range(steps):
            storage.iter = hook.trainer.iter
            hook.before_step()
            (batch,) = LabelledLoader([random_batch(seed=hook.trainer.iter)], model, None, LEVELS)
            model(batch)
            hook.after_step()
    return {name: value for name, (value, _) in storage.latest().items()}, [r.getMessage() for r in caplog.records]


@pytest.mark.parametrize("seed", range(3))
def test_a_model_of_random_weights_is_no_collapse(caplog, seed):
    figures, warned = watch(build(seed), caplog)
    assert warned == []
    assert all(math.isfinite(value) for value in figures.values())
    assert figures["labels/instance_masks"] == sum(figures[f"labels/instance_level_{i}"] for i in range(LEVELS))
    assert figures["grad_norm"] == 0.25
    assert {
        "seconds/load",
        "seconds/teacher",
        "seconds/labels",
        "seconds/student",
        "seconds/matching",
    } <= figures.keys()
    assert figures["memory/resident_gib"] > 0.1
    assert 1.0 <= figures["query_sd/teacher_clusters"] <= 16.0
    assert 0.0 <= figures["query_sd/teacher_information"] <= math.log(16)


def test_a_group_that_learns_no_masks_is_not_looked_at(caplog):
    figures, _ = watch(build(1, MODEL__LOSS__KINDS="('instance',)"), caplog)
    assert "spread/ins_queries" in figures
    assert not any(name.startswith(("spread/sem", "match/sem", "objectness/sem")) for name in figures)


def test_one_cluster_is_named(model, caplog):
    with torch.no_grad():
        model.center.center[0, 3] = -100.0
    figures, warned = watch(model, caplog)
    (message,) = warned
    assert message.startswith("iteration 0: collapse to one cluster: the teacher's queries use 1.00 clusters in effect")
    assert figures["query_sd/teacher_clusters"] == pytest.approx(1.0)
    assert figures["query_sd/teacher_entropy"] == pytest.approx(0.0, abs=1e-6)


def test_one_mask_of_all_queries_is_named(model, caplog):
    predictor = model.sem_seg_head.predictor
    with torch.no_grad():
        for embedding in (predictor.query_feat, predictor.query_embed, predictor.query_type):
            embedding.weight[:] = embedding.weight[:1]
    _, warned = watch(model, caplog)
    assert [message.split(": ", 1)[1] for message in warned] == [
        f"collapse to one mask: all {group} queries of a view predict the same mask" for group in ("ins", "sem")
    ]


def test_a_teacher_without_masks_is_named(caplog):
    _, warned = watch(build(1, MODEL__UNIAP__TAUS="(-0.999, -1.0)"), caplog)
    assert any("collapse to one mask: the teacher finds 0.00 instance masks a picture" in line for line in warned)


def test_the_same_masks_for_every_view_are_named(model, caplog):
    def repeat_the_first(head, inputs, predictions):
        return tuple(QueryPrediction(*(value[:1].expand_as(value) for value in layer)) for layer in predictions)

    model.sem_seg_head.register_forward_hook(repeat_the_first)
    _, warned = watch(model, caplog)
    for group in ("ins", "sem"):
        expected = f"collapse to a constant output: {group} queries predict the same masks in every view"
        assert any(expected in line for line in warned)


def test_the_same_distribution_for_every_query_is_named(model, caplog):
    with torch.no_grad():
        model.student_head.mlp[4].weight.zero_()
        model.student_head.mlp[4].bias.fill_(1.0)
        model.student_head.last_layer.parametrizations.weight.original1.fill_(1.0)
    figures, warned = watch(model, caplog)
    (message,) = warned
    assert "collapse to a constant output: the student gives all queries the same distribution" in message
    # all prototypes alike: no cluster has taken over, and yet nothing is told apart
    assert figures["query_sd/student_clusters"] == pytest.approx(16.0, rel=1e-3)
    assert figures["query_sd/student_information"] == pytest.approx(0.0, abs=1e-4)


def test_a_collapse_that_lasts_is_named_when_the_times_in_a_row_have_doubled(model, caplog):
    with torch.no_grad():
        model.center.center[0, 3] = -100.0
    model.center.momentum = 1.0
    _, warned = watch(model, caplog, steps=9)
    first = "collapse to one cluster: the teacher's queries use 1.00 clusters in effect"
    assert [line.split(":")[0] for line in warned] == [f"iteration {number}" for number in (0, 1, 3, 7)]
    assert all(first in line for line in warned)
    ends = [line.rpartition("; ")[2] for line in warned[1:]]
    assert ends == [f"seen {times} times in a row" for times in (2, 4, 8)]
    assert "in a row" not in warned[0]


def test_a_collapse_that_was_over_counts_anew(caplog):
    hook = ObservationHook(1)
    sound, one_mask, fewer = {}, {"labels/instance_masks": 1.0}, {"labels/instance_masks": 0.5}
    two = {**one_mask, "spread/ins_queries": 0.0}
    for number, figures in enumerate((one_mask, fewer, one_mask, sound, one_mask, two)):
        hook.trainer = SimpleNamespace(iter=number)
        hook._warn(find_collapses(figures))
    starts = [(int(line.split()[1].rstrip(":")), "in a row" in line) for line in caplog.messages]
    assert starts == [(0, False), (1, True), (4, False), (5, False), (5, True)]


def test_a_collapse_is_named_once_a_period_and_figures_come_at_its_end(model, caplog):
    with torch.no_grad():
        model.center.center[0, 3] = -100.0
    model.center.momentum = 1.0
    figures, warned = watch(model, caplog, steps=3, period=2, max_iter=3)
    assert [line.split(":")[0] for line in warned] == ["iteration 1", "iteration 2"]
    assert "grad_norm" in figures
    assert model.observer.take() == ({}, {})


def test_evaluation_leaves_no_trace(model, caplog):
    model.eval()
    model.predict(random_batch())
    model.label(random_batch())
    assert model.observer.take() == ({}, {})


def test_an_assignment_becomes_an_effective_number():
    means = {"assignment/student": torch.tensor([0.5, 0.5, 0.0]), "query_sd/student_entropy": torch.tensor(0.0)}
    figures = scalars_of(means)
    assert figures["query_sd/student_clusters"] == pytest.approx(2.0)
    assert figures["query_sd/student_information"] == pytest.approx(math.log(2))
