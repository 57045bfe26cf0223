from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from s2uniseg_d2.core.losses.normalizer import global_count

WORKER = """
import sys
import torch
from torch import distributed
from s2uniseg_d2.core.losses.normalizer import global_count
from s2uniseg_d2.core.losses.query_distillation import Center

rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
rows = torch.arange(12.0).reshape(4, 3)
mine = rows[:1] if rank == 0 else rows[1:]  # unequal numbers of rows
center = Center(3, momentum=0.0)
center.update(mine)
assert torch.allclose(center.center, rows.mean(0, keepdim=True)), center.center
assert global_count(len(mine), torch.device("cpu")).item() == 2.0
center.update(torch.zeros(0, 3))  # nothing anywhere
assert torch.allclose(center.center, rows.mean(0, keepdim=True)), center.center
assert global_count(0, torch.device("cpu")).item() == 1.0
assert global_count(1 - rank, torch.device("cpu")).item() == 1.0  # a mean of 0.5 is raised
center.update(rows[:2] if rank == 0 else torch.zeros(0, 3))  # one rank has nothing
assert torch.allclose(center.center, rows[:2].mean(0, keepdim=True)), center.center
distributed.destroy_process_group()
"""


@pytest.mark.parametrize(("count", "expected"), [(0, 1.0), (1, 1.0), (7, 7.0)])
def test_alone_it_is_the_count_or_one(count, expected):
    value = global_count(count, torch.device("cpu"))
    assert value.item() == expected
    assert value.dtype == torch.float32
    assert value.shape == ()


def test_negative_counts_are_refused():
    with pytest.raises(ValueError, match="count must be at least 0, got -1"):
        global_count(-1, torch.device("cpu"))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_two_ranks_share_counts_and_centre(tmp_path, repository: Path):
    environment = os.environ | {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WORKER]
    workers = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    try:
        for worker in workers:
            _, errors = worker.communicate(timeout=120)
            assert worker.returncode == 0, errors.decode()
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
