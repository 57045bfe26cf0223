"""Two processes must train as one does, whatever masks their pictures have."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
import torch

from tests.engine.sharing import RUNS, STEPS, train_all
from tests.engine.test_train_net import command, write_truth
from tests.tiny import SHARED, tiny_words, write_pictures

pytestmark = pytest.mark.slow

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def runs(repository, tmp_path_factory):
    """What one process and two find, the two started as torchrun starts them."""
    folder = tmp_path_factory.mktemp("runs")
    pictures = write_pictures(folder / "pictures", count=4)
    for file in write_pictures(folder / "others", count=3, size=(64, 96)).iterdir():
        file.rename(pictures / f"wide{file.name}")
    environment = os.environ | {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.engine.sharing", str(folder)],
            env=environment | group | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one = train_all(folder)
        for worker in workers:
            _, errors = worker.communicate(timeout=300)
            assert worker.returncode == 0, errors.decode()[-3000:]
    finally:
        torch.set_num_threads(threads)
        for worker in workers:
            worker.kill()
            worker.communicate()
    return one, torch.load(folder / "found.pth", weights_only=True)


def assert_equal_runs(losses, state, wanted_losses, start, wanted_state):
    """Losses to 1e-5, and weights but for those few behind a ReLU or a maximum that rounding has tipped."""
    assert len(losses) == len(wanted_losses) == STEPS
    for mine, theirs in zip(losses, wanted_losses, strict=True):
        assert "loss_objectness_sem_1" in mine
        torch.testing.assert_close(mine, theirs, **TOLERANCE)
    names = [name for name, value in wanted_state.items() if value.is_floating_point()]
    mine, before, theirs = (
        torch.cat([values[name].flatten() for name in names]) for values in (state, start, wanted_state)
    )
    assert (mine - theirs).norm() < 0.01 * (theirs - before).norm()
    assert ((mine - theirs).abs() > 1e-5).float().mean() < 0.005


@pytest.mark.parametrize("name", [*RUNS, "accumulated"])
def test_two_processes_have_the_losses_and_weights_of_one(runs, name):
    one, two = runs
    assert_equal_runs(two["losses"][name], two["states"][name][0], *one[name])


@pytest.mark.parametrize("name", [*RUNS, "accumulated"])
def test_student_teacher_and_centre_are_the_same_in_all_processes(runs, name):
    first, second = runs[1]["states"][name]
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_accumulated_gradients_train_as_the_whole_batch_does(runs):
    losses, _, state = runs[0]["accumulated"]
    assert_equal_runs(losses, state, *runs[0]["even"])


def test_the_runs_learn_and_differ(runs):
    one, _ = runs
    for name in RUNS:
        losses, start, state = one[name]
        assert losses[0]["loss_mask_ins"] != losses[-1]["loss_mask_ins"] or name == "no masks at all"
        assert state["center.center"].any() == (name != "no masks at all")
        for part in ("backbone", "teacher_backbone"):
            weight = f"{part}.trunk.vit.blocks.3.mlp.fc2.weight"
            assert (state[weight] - start[weight]).abs().max() > 2e-5 or name == "no masks at all"
    assert one["even"][0][0]["loss_mask_ins"] != one["uneven masks"][0][0]["loss_mask_ins"]


def test_the_command_shares_a_run_on_the_cpu_among_processes(repository, tmp_path):
    pictures = write_pictures(tmp_path / "pictures")
    truth = write_truth(pictures, tmp_path / "truth.json")
    settings = SHARED | {
        "MODEL__VIT_ADAPTER__NORM": "SyncBN",
        "DATASETS__TRAIN": f"('folder:{pictures}',)",
        "DATASETS__TEST": f"('coco:{truth}:{pictures}',)",
        "OUTPUT_DIR": tmp_path / "out",
        "SOLVER__MAX_ITER": 2,
        "VIS_PERIOD": 1,
    }
    command(repository, "--num-gpus", 2, "--dist-url", "auto", *tiny_words(**settings))
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "Process 0 of 2" in log
    recorded = {}
    for line in (tmp_path / "out" / "metrics.json").read_text().splitlines():
        recorded.update(json.loads(line))
    assert {"total_loss", "segm_agnostic/AR@100"} <= set(recorded)
    assert (tmp_path / "out" / "pictures" / "views_0000002.png").is_file()
    weights = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["model"]
    assert weights["backbone.trunk.norm1.running_var"].ne(1.0).any()
