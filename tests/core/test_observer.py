from __future__ import annotations

import pytest
import torch

from s2uniseg_d2.core.observer import StepObserver

CPU = torch.device("cpu")


def test_figures_are_means_over_all_steps_since_the_last_reading():
    observer = StepObserver()
    for value in (1.0, 3.0):
        observer.begin(CPU)
        observer.add("masks", 10 * value, 4)
        observer.add("loss", torch.tensor(value, requires_grad=True))
        observer.add("levels", torch.tensor([value, 0.0]).half(), 2)
        observer.add("nothing", torch.tensor(0.0), 0)
        observer.end()
    means = observer.take().means
    assert means.keys() == {"masks", "loss", "levels"}
    assert float(means["masks"]) == 40 / 8
    assert means["loss"].ndim == 0
    assert not means["loss"].requires_grad
    assert float(means["loss"]) == 2.0
    assert means["levels"].tolist() == [1.0, 0.0]
    assert observer.take().means == {}


def test_nothing_counts_outside_of_a_step():
    observer = StepObserver()
    observer.add("loss", 1.0)
    observer.lap("load")
    observer.begin(CPU)
    observer.end()
    observer.add("loss", 1.0)
    observer.lap("load")
    assert observer.take() == ({}, {})


def test_parts_share_a_step_between_them(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("s2uniseg_d2.core.observer.time.perf_counter", lambda: clock[0])
    observer = StepObserver()
    for _ in range(2):
        observer.begin(CPU)
        for part, seconds in (("load", 2.0), ("student", 4.0), ("load", 1.0)):
            clock[0] += seconds
            observer.lap(part)
        observer.end()
        clock[0] += 50.0  # between two steps
    assert observer.take().seconds == pytest.approx({"load": 3.0, "student": 4.0})


def test_sums_go_on_after_a_checkpoint():
    alone, first, second = StepObserver(), StepObserver(), StepObserver()
    for number, parts in enumerate(((alone, first), (alone, second))):
        for observer in parts:
            observer.begin(CPU)
            observer.add("masks", 3 + number, 2)
            observer.add("loss", torch.tensor([0.1, 0.7]) / (number + 3), 1 + number)
            observer.end()
        if number == 0:
            second.load_state_dict(first.state_dict(), CPU)
    for one, other in zip(alone.take().means.values(), second.take().means.values(), strict=True):
        assert torch.equal(one, other)


def test_ranks_add_up_what_they_saw(monkeypatch):
    distributed = torch.distributed
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    sent = []
    monkeypatch.setattr(distributed, "all_reduce", lambda vector: sent.append(vector.clone()) or vector.add_(1.0))
    observer = StepObserver()
    observer.begin(CPU)
    observer.add("masks", 5.0, 1)  # the other rank has 1 of 1
    observer.add("loss", torch.tensor([2.0, 4.0]), 3)
    means = observer.take().means
    assert len(sent) == 1
    assert float(means["masks"]) == 3.0
    assert means["loss"].tolist() == [0.75, 1.25]
