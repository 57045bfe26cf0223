"""What a run says when a process that it needs is gone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from multiprocessing import resource_sharer

import pytest
import torch
from torch import distributed
from torch.utils.data import DataLoader

from s2uniseg_d2.data.loaders import build_test_loader, build_train_loader
from s2uniseg_d2.data.workers import LATE, set_up_workers
from s2uniseg_d2.engine.lost_processes import is_loss, naming_losses
from tests.tiny import tiny_config, write_pictures

# Python 3.12 and later warn where torch's workers are forked
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class Sleepers(torch.utils.data.Dataset):
    """The second item's worker sends itself a signal: before it makes it, or when its tensor is fetched from it."""

    def __init__(self, sent, *, is_handing_over=False):
        self.sent, self.is_handing_over = sent, is_handing_over

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index and self.is_handing_over:
            resource_sharer._resource_sharer._serve = self.accept_and_send
        elif index:
            os.kill(os.getpid(), self.sent)
        return torch.full((3,), index) if index or not self.is_handing_over else index

    def accept_and_send(self):
        """What serves tensors in a worker: the one who fetches is accepted, and gets nothing."""
        with resource_sharer._resource_sharer._listener.accept():
            os.kill(os.getpid(), self.sent)
            time.sleep(60)  # another thread may take the signal


@pytest.mark.timeout(100)  # it would wait without end
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a socket, left in the middle of a wait
@pytest.mark.parametrize("is_handing_over", [False, True])
@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (signal.SIGKILL, "a data worker died .*DataLoader worker"),
        (signal.SIGSTOP, r"data worker 0 of 1 \(process \d+, stopped\) gave no batch in DATALOADER.TIMEOUT_S = 2 sec"),
    ],
)
def test_a_worker_that_dies_or_hangs_is_named_and_not_waited_for(sent, message, is_handing_over):
    cfg = tiny_config(DATALOADER__TIMEOUT_S=2)
    loader = DataLoader(Sleepers(sent, is_handing_over=is_handing_over), num_workers=1, batch_size=None)
    before = signal.getsignal(signal.SIGCHLD)
    start = time.monotonic()
    with pytest.raises(OSError, match=message), naming_losses(cfg):
        list(set_up_workers(loader, cfg))
    assert not multiprocessing.active_children()
    assert time.monotonic() - start < 60
    assert signal.getsignal(signal.SIGCHLD) is before or before is signal.SIG_DFL


def test_the_end_of_a_run_does_not_wait_for_a_worker_that_hangs():
    cfg = tiny_config()
    bystander = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
    bystander.start()
    with naming_losses(cfg):
        batches = iter(set_up_workers(DataLoader(Sleepers(0), num_workers=1), cfg))
        next(batches)
        (worker,) = set(multiprocessing.active_children()) - {bystander}
        os.kill(worker.pid, signal.SIGSTOP)
    assert not worker.is_alive()
    assert bystander.is_alive()  # of whoever called
    bystander.kill()
    bystander.join()


def test_other_errors_stay_what_they_are():
    error = RuntimeError("shapes do not match, gloo")
    assert not is_loss(error)
    assert not is_loss(ValueError(f"{LATE}data worker 0 of 1"))
    with pytest.raises(RuntimeError, match="shapes"), naming_losses(tiny_config()):
        raise error


def test_another_process_is_named(monkeypatch):
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    lost = pytest.raises(
        OSError, match=r"process 1 of 2 lost another one.*PROCESSES.TIMEOUT_S = 7 seconds \(.*closed by peer\)"
    )
    with lost, naming_losses(tiny_config(PROCESSES__TIMEOUT_S=7)):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer")


def test_loaders_wait_no_longer_than_they_may(tmp_path):
    pictures = write_pictures(tmp_path / "pictures")
    data = {"DATASETS__TRAIN": f"('folder:{pictures}',)", "DATALOADER__TIMEOUT_S": 5}
    for workers, limit in ((0, 0), (1, 5)):
        cfg = tiny_config(DATALOADER__NUM_WORKERS=workers, **data)
        for loader in (build_train_loader(cfg), build_test_loader(cfg, f"folder:{pictures}")):
            assert getattr(loader, "limit_s", 0) == limit


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [("DATALOADER__TIMEOUT_S", -1, "must not be negative"), ("PROCESSES__TIMEOUT_S", 0, "must be positive")],
)
def test_time_limits_are_checked(key, value, rule):
    with pytest.raises(ValueError, match=rule):
        tiny_config(**{key: value})
