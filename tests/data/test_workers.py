"""Data workers live as long as the step that needs them."""

from __future__ import annotations

import multiprocessing
import os
import signal

import pytest
from torch.utils.data import DataLoader, Dataset

from s2uniseg_d2.data.workers import set_up_workers
from tests.tiny import tiny_config

# Python 3.12 and later warn where torch's workers are forked
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class Signalled(Dataset):
    """Each item comes from a worker that has just got SIGTERM, as all processes of a SLURM job do."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGTERM)
        return index


def test_a_worker_takes_sigterm_as_the_process_that_started_it_does():
    begun = multiprocessing.Value("i", 0)

    def count(_):
        begun.value += 1

    previous = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        loader = DataLoader(Signalled(), num_workers=1, batch_size=None, worker_init_fn=count)
        assert list(set_up_workers(loader, tiny_config(DATALOADER__TIMEOUT_S=60))) == [0, 1]
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert begun.value == 1
    assert loader.limit_s == 60


def test_a_worker_ends_when_the_process_that_started_it_ends_it():
    previous = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        batches = iter(set_up_workers(DataLoader(Signalled(), num_workers=1), tiny_config()))
        next(batches)
        (worker,) = multiprocessing.active_children()
        # what Python does at its end, when it waits without a limit
        worker.terminate()
        worker.join(60)
        assert not worker.is_alive()
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_without_workers_nothing_is_set_up():
    loader = DataLoader(Signalled(), num_workers=0)
    assert set_up_workers(loader, tiny_config()) is loader
    assert (loader.timeout, loader.worker_init_fn) == (0, None)
