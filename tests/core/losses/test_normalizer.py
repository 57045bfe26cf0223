from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from s2uniseg_d2.core.losses.normalizer import mean_over_ranks

WORKER = """
import os
import sys
import torch
from torch import distributed
from s2uniseg_d2.core.losses.normalizer import mean_over_ranks
from s2uniseg_d2.core.losses.query_distillation import Center

rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
rows = torch.arange(12.0).reshape(4, 3)
mine = rows[:1] if rank == 0 else rows[1:]  # unequal numbers of rows
center = Center(3, momentum=0.0)
center.update(mine)
assert torch.allclose(center.center, rows.mean(0, keepdim=True)), center.center
means = mean_over_ranks([len(mine), 2 * rank], torch.device("cpu"))
assert means.tolist() == [2.0, 1.0], means
center.update(torch.zeros(0, 3))  # nothing anywhere
assert torch.allclose(center.center, rows.mean(0, keepdim=True)), center.center
center.update(rows[:2] if rank == 0 else torch.zeros(0, 3))  # one rank has nothing
assert torch.allclose(center.center, rows[:2].mean(0, keepdim=True)), center.center
center.update(mine, is_last=False)  # the parts of a step count together
center.update(mine[:1])
expected = (rows.sum(0, keepdim=True) + rows[:2].sum(0, keepdim=True)) / 6
assert torch.allclose(center.center, expected), center.center
os._exit(0)  # to leave the group in order hangs now and then under PyTorch 2.4, once the other rank is gone
"""


def test_alone_the_counts_are_their_own_means():
    means = mean_over_ranks([0, 1, 2.5], torch.device("cpu"))
    assert means.tolist() == [0.0, 1.0, 2.5]
    assert means.dtype == torch.float32


def test_negative_counts_are_refused():
    with pytest.raises(ValueError, match=r"counts must be at least 0, got \(2, -1\)"):
        mean_over_ranks([2, -1], torch.device("cpu"))


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
            _, errors = worker.communicate(timeout=300)
            assert worker.returncode == 0, errors.decode()
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
