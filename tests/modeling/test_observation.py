from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from s2uniseg_d2.core.observer import StepObserver
from s2uniseg_d2.core.structures import Match, QueryPrediction, TargetMasks
from s2uniseg_d2.modeling.observation import observe_distillation, observe_group


@pytest.fixture
def observer():
    observer = StepObserver()
    observer.begin(torch.device("cpu"))
    return observer


def figures(observer):
    return {name: value.tolist() for name, value in observer.take().means.items()}


def test_a_group_tells_who_has_a_partner_and_how_masks_differ(observer):
    # two views, two queries, 8 x 8 pixels of which every fourth row and column is seen
    masks = torch.full((2, 2, 8, 8), 7.0)
    masks[0, 0, ::4, ::4] = 100.0
    masks[0, 1, ::4, ::4] = -100.0
    masks[1, :, ::4, ::4] = 100.0
    objectness = torch.tensor([[[0.0, 0.0], [math.log(3), 0.0]], [[100.0, 0.0], [-100.0, 0.0]]])
    one, two = torch.tensor([0, 1]), torch.tensor([0, 0])
    targets = TargetMasks.join([torch.ones(1, 8, 8, dtype=torch.bool), torch.ones(2, 8, 8, dtype=torch.bool)])
    observe_group(observer, "ins", QueryPrediction(masks, objectness, masks), targets, Match(one, two, two))
    found = figures(observer)
    assert found["match/ins_queries"] == 2 / 4
    assert found["match/ins_masks"] == pytest.approx(2 / 3)
    assert found["objectness/ins_matched"] == pytest.approx((0.5 + 1.0) / 2)
    assert found["objectness/ins_unmatched"] == pytest.approx((0.75 + 0.0) / 2)
    assert found["spread/ins_views"] == pytest.approx((0.0 + 0.5) / 2)
    assert found["spread/ins_queries"] == pytest.approx((0.5 + 0.0) / 2)


def test_one_view_says_nothing_about_views(observer):
    masks, empty = torch.zeros(1, 2, 4, 4), torch.empty(0, dtype=torch.int64)
    targets = TargetMasks.join([torch.ones(0, 4, 4, dtype=torch.bool)])
    observe_group(observer, "sem", QueryPrediction(masks, torch.zeros(1, 2, 2), masks), targets, Match(*[empty] * 3))
    found = figures(observer)
    assert found == {
        "match/sem_queries": 0.0,
        "objectness/sem_unmatched": 0.5,
        "spread/sem_queries": 0.0,
    }


def test_entropies_are_those_of_the_sharpened_and_centred_distributions(observer):
    student = torch.zeros(3, 4)
    teacher = torch.tensor([[4.0, 0, 0, 0], [0, 4.0, 0, 0], [1.0, 1.0, 1.0, 1.0]])
    observe_distillation(observer, student, teacher, torch.zeros(1, 4), (0.1, 0.01))
    found = figures(observer)
    assert found["query_sd/student_entropy"] == pytest.approx(math.log(4))
    assert found["query_sd/teacher_entropy"] == pytest.approx(math.log(4) / 3)
    assert found["assignment/student"] == pytest.approx([0.25] * 4)
    assert found["assignment/teacher"] == pytest.approx([1.25 / 3, 1.25 / 3, 0.25 / 3, 0.25 / 3])
    observer.begin(torch.device("cpu"))
    observe_distillation(observer, teacher, teacher, torch.tensor([[9.0, 0, 0, 0]]), (0.01, 0.01))
    found = figures(observer)
    assert found["assignment/teacher"][0] == pytest.approx(0.0)
    assert found["assignment/student"][0] == pytest.approx(1.25 / 3)


class Refuse(TorchDispatchMode):
    """Refuses whatever would make the host wait for a GPU."""

    waiting = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in self.waiting:
            raise AssertionError(f"{function} waits for the device")
        return function(*args, **(kwargs or {}))


def test_looking_waits_for_nothing(observer):
    masks, one = torch.randn(2, 3, 8, 8), torch.tensor([0, 1])
    targets = TargetMasks.join([torch.ones(1, 8, 8, dtype=torch.bool)] * 2)
    with Refuse():
        prediction = QueryPrediction(masks, torch.randn(2, 3, 2), masks)
        observe_group(observer, "ins", prediction, targets, Match(one, one, one * 0))
        observe_distillation(observer, torch.randn(2, 4), torch.randn(2, 4), torch.zeros(1, 4), (0.1, 0.04))
        with pytest.raises(AssertionError, match="waits for the device"):
            masks.sum().item()


def test_nothing_is_looked_at_outside_of_a_step():
    observer = StepObserver()
    observe_group(observer, "ins", None, None, None)
    observe_distillation(observer, None, None, None, (0.1, 0.1))
    assert observer.take().means == {}
