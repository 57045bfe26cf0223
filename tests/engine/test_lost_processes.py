"""What a run says when a process that it needs is gone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest
import torch
from torch import distributed
from torch.utils.data import DataLoader

from s2uniseg_d2.data.loaders import build_test_loader, build_train_loader
from s2uniseg_d2.engine.lost_processes import is_loss, naming_losses
from tests.tiny import tiny_config, write_pictures

# Python 3.12 and later warn where torch's workers are forked
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class Sleepers(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index:
            os.kill(os.getpid(), self.sent)
        return index


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (signal.SIGKILL, "a data worker died .*DataLoader worker"),
        (signal.SIGSTOP, "DATALOADER.TIMEOUT_S = 1 sec"),
    ],
)
def test_a_worker_that_dies_or_hangs_is_named_and_not_waited_for(sent, message):
    data = Sleepers()
    data.sent = sent
    cfg = tiny_config(DATALOADER__TIMEOUT_S=1)
    before = signal.getsignal(signal.SIGCHLD)
    start = time.monotonic()
    with pytest.raises(OSError, match=message), naming_losses(cfg):
        list(DataLoader(data, num_workers=1, timeout=cfg.DATALOADER.TIMEOUT_S))
    assert not multiprocessing.active_children()
    assert time.monotonic() - start < 60
    assert signal.getsignal(signal.SIGCHLD) is before or before is signal.SIG_DFL


def test_other_errors_stay_what_they_are():
    error = RuntimeError("shapes do not match, gloo")
    assert not is_loss(error)
    assert not is_loss(ValueError("DataLoader timed out after 1 seconds"))
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
        assert build_train_loader(cfg).timeout == limit
        assert build_test_loader(cfg, f"folder:{pictures}").timeout == limit


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [("DATALOADER__TIMEOUT_S", -1, "must not be negative"), ("PROCESSES__TIMEOUT_S", 0, "must be positive")],
)
def test_time_limits_are_checked(key, value, rule):
    with pytest.raises(ValueError, match=rule):
        tiny_config(**{key: value})
