from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest

from s2uniseg_d2.engine.stopping import SIGNALS, Terminated, TerminationHook, how_to_go_on, passing_termination_on


class Trainer(SimpleNamespace):
    """Steps with a termination hook as Detectron2's loop does; ``signals`` says where one comes."""

    def __init__(self, folder, max_iter=4, signals=(), signum=signal.SIGTERM):
        self.signum = signum
        self.saved, self.steps = [], []
        self.iter, self.max_iter, self.signals = 0, max_iter, set(signals)
        self.checkpointer = SimpleNamespace(save_dir=str(folder), save=self.save)
        self.hook = TerminationHook()
        self.hook.trainer = self
        self.evaluated = []

    def save(self, name, *, iteration):
        assert self.steps == list(range(iteration + 1)), "a step is counted that was not taken"
        self.saved.append((name, iteration))

    def at(self, place):
        if (self.iter, place) in self.signals:
            os.kill(os.getpid(), self.signum)

    def train(self):
        self.hook.before_train()
        try:
            for iteration in range(self.max_iter):
                self.iter = iteration
                self.at("before")
                self.hook.before_step()
                self.at("step")
                self.steps.append(iteration)
                self.hook.after_step()
                self.at("evaluation")
                self.evaluated.append(self.iter)
                self.hook.after_evaluation.after_step()
                self.at("after")
        finally:
            self.hook.after_train()


@pytest.fixture(autouse=True)
def default():
    """Whatever a test does, the signal is what it was."""
    previous = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) is previous


@pytest.mark.parametrize("place", ["before", "step"])
def test_a_step_is_finished_saved_and_not_evaluated(tmp_path, place):
    trainer = Trainer(tmp_path, signals=[(1, place)])
    with pytest.raises(Terminated, match=r"stopped by SIGTERM after iteration 1; there is no checkpoint in .* yet"):
        trainer.train()
    assert trainer.saved == [("model_0000001", 1)]
    assert trainer.evaluated == [0]


def test_an_evaluation_is_cut_short(tmp_path):
    trainer = Trainer(tmp_path, signals=[(1, "evaluation")])
    with pytest.raises(Terminated, match="after iteration 1"):
        trainer.train()
    assert trainer.saved == [("model_0000001", 1)]
    assert trainer.evaluated == [0]


def test_between_two_steps_the_next_one_is_taken(tmp_path):
    trainer = Trainer(tmp_path, signals=[(1, "after")])
    with pytest.raises(Terminated, match="after iteration 2"):
        trainer.train()
    assert trainer.saved == [("model_0000002", 2)]


def test_the_last_step_ends_as_ever(tmp_path):
    trainer = Trainer(tmp_path, signals=[(3, "step")])
    trainer.train()
    assert trainer.saved == []
    assert trainer.evaluated == [0, 1, 2, 3]


def test_a_second_signal_changes_nothing(tmp_path):
    trainer = Trainer(tmp_path, signals=[(1, "before"), (1, "step")])
    with pytest.raises(Terminated):
        trainer.train()
    assert trainer.saved == [("model_0000001", 1)]


def test_all_processes_stop_when_one_is_asked_to(tmp_path, monkeypatch):
    stopping = "s2uniseg_d2.engine.stopping.comm"
    monkeypatch.setattr(f"{stopping}.all_gather", lambda value: [value, signal.SIGTERM])
    monkeypatch.setattr(f"{stopping}.is_main_process", lambda: False)
    trainer = Trainer(tmp_path)
    with pytest.raises(Terminated):
        trainer.train()
    assert trainer.saved == []  # the main process does


def test_the_status_is_that_of_a_terminated_process():
    assert Terminated("why").code == 143
    assert Terminated("why", signal.SIGUSR1).code == 128 + signal.SIGUSR1
    assert str(Terminated("why")) == "why"


def test_slurms_warning_stops_a_run_as_well(tmp_path):
    trainer = Trainer(tmp_path, signals=[(1, "step")], signum=signal.SIGUSR1)
    with pytest.raises(Terminated, match="stopped by SIGUSR1 after iteration 1") as stopped:
        trainer.train()
    assert stopped.value.code == 128 + signal.SIGUSR1
    assert trainer.saved == [("model_0000001", 1)]


def test_it_is_said_how_to_go_on(tmp_path):
    assert how_to_go_on(tmp_path) == f"there is no checkpoint in {tmp_path} yet: the same command starts anew"
    (tmp_path / "model_0000009.pth").touch()
    last = tmp_path / "model_0000009.pth"
    assert how_to_go_on(tmp_path) == f"the last checkpoint is {last}; the same command with --resume goes on from it"


def test_a_launcher_hands_the_signal_to_its_processes(monkeypatch):
    told = []
    monkeypatch.setattr("multiprocessing.active_children", lambda: [SimpleNamespace(pid=pid) for pid in (1001, 1002)])
    monkeypatch.setattr(os, "kill", lambda *words: told.append(words))
    with passing_termination_on(2):
        for signum in SIGNALS:
            signal.raise_signal(signum)
    assert told == [(pid, signum) for signum in SIGNALS for pid in (1001, 1002)]
    before = signal.getsignal(signal.SIGTERM)
    with passing_termination_on(1):
        assert signal.getsignal(signal.SIGTERM) is before
