"""How many processes a command asks for, and what each of them gets."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from s2uniseg_d2.engine import processes
from s2uniseg_d2.engine.processes import Processes, count_processes
from s2uniseg_d2.engine.run import _check_sharing
from tests.tiny import tiny_config

TORCHRUN = {
    "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500",
}  # fmt: skip


@pytest.fixture
def machine(monkeypatch):
    """Pretend that the machine has this many GPUs."""

    def set_up(gpus):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)

    return set_up


@pytest.mark.parametrize(
    ("gpus", "device", "asked", "expected"),
    [
        (8, "cuda", (8, 2), Processes(8, 2)),
        (8, "cuda", (0, 1), Processes(1, 1)),
        (8, "cpu", (1, 1), Processes(1, 1)),
        (0, "cpu", (2, 1), Processes(2, 1)),
        (0, "cpu", (2, 3), Processes(2, 3)),
        (0, "cuda", (8, 1), Processes(1, 1)),  # meant for GPUs
    ],
)
def test_num_gpus_counts_processes(machine, gpus, device, asked, expected):
    machine(gpus)
    assert count_processes(device, *asked, {}) == expected


def test_torchrun_has_decided_already(machine):
    machine(0)
    assert count_processes("cpu", 1, 1, TORCHRUN) == Processes(2, 2, by_torchrun=True)
    assert Processes(2, 2).total == 4
    machine(2)
    assert count_processes("cuda", 1, 1, TORCHRUN) == Processes(2, 2, by_torchrun=True)
    assert count_processes("cpu", 1, 1, TORCHRUN).by_torchrun


@pytest.mark.parametrize(
    ("gpus", "device", "asked", "environment", "message"),
    [
        (2, "cuda", (3, 1), {}, "--num-gpus asks for 3 GPUs, but 2 are available$"),
        (0, "cuda", (1, 2), {}, "--num-machines 2 found no GPU here: MODEL.DEVICE cpu trains on CPUs"),
        (2, "cpu", (2, 1), {}, "several processes on the CPU of a machine with GPUs need torchrun"),
        (2, "cpu", (-1, 1), {}, "--num-gpus must not be negative, got -1"),
        (1, "cuda", (1, 1), TORCHRUN, "torchrun's --nproc-per-node asks for 2 GPUs, but 1 are available$"),
        (0, "cuda", (1, 1), TORCHRUN, "0 are available; MODEL.DEVICE cpu trains on CPUs"),
    ],
)
def test_what_cannot_be_had_is_refused(machine, gpus, device, asked, environment, message):
    machine(gpus)
    with pytest.raises(ValueError, match=message):
        count_processes(device, *asked, environment)


def test_processes_share_the_cores_unless_told_otherwise(monkeypatch):
    chosen = []
    monkeypatch.setattr(processes.comm, "get_local_size", lambda: 2)
    monkeypatch.setattr(processes.os, "cpu_count", lambda: 7)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    processes.share_cores()
    monkeypatch.delenv("OMP_NUM_THREADS")
    processes.share_cores()
    assert chosen == [3]


def test_one_process_keeps_its_model_as_it_is():
    model = nn.Linear(1, 1)
    assert processes.parallelize(model) is model


@pytest.mark.parametrize(
    ("processes", "settings", "message"),
    [
        (3, {}, r"multiple of 3 \(3 processes, SOLVER.ACCUMULATION_STEPS 1\), got 2"),
        (1, {"SOLVER__ACCUMULATION_STEPS": 4}, r"multiple of 4 \(1 processes, SOLVER.ACCUMULATION_STEPS 4\), got 2"),
        (2, {"SOLVER__ACCUMULATION_STEPS": 2}, r"multiple of 4 \(2 processes, SOLVER.ACCUMULATION_STEPS 2\), got 2"),
        (2, {}, "NORM must be SyncBN or GN with several processes, got 'BN'"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused(processes, settings, message):
    with pytest.raises(ValueError, match=message):
        _check_sharing(tiny_config(**settings), processes, is_training=True)
    _check_sharing(tiny_config(**settings), processes, is_training=False)
