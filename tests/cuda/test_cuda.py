"""What runs on a GPU, against the CPU or against itself; skipped where there is none."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from s2uniseg_d2.core.labelers.uniap import UniAP, UniAPConfig
from s2uniseg_d2.core.ops import kernels
from s2uniseg_d2.core.ops.components import connected_components
from tests.benchmarks.uniap_maps import make_features
from tests.core.labelers.maps import KINDS, assert_same_labels, make_config, make_map
from tests.tiny import tiny_words, write_pictures

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")


@pytest.mark.parametrize("kind", KINDS)
def test_uniap_gives_the_masks_of_the_cpu(kind):
    generator = torch.Generator().manual_seed(200 + KINDS.index(kind))
    for _ in range(15):
        features, config = make_map(kind, generator), make_config(generator)
        truth = UniAP(config)(features)[0]
        for batched in (True, False):
            assert_same_labels(UniAP(config, batched)(features.cuda())[0], truth)


@pytest.mark.parametrize("kind", ["smooth", "block", "scene"])
def test_uniap_gives_the_masks_of_the_cpu_on_wide_maps_of_a_batch(kind):
    features = torch.cat([make_features(kind, 64, 768, seed) for seed in range(3)])
    torch.set_float32_matmul_precision("high")
    try:
        found = UniAP()(features.cuda(), [(64, 64), (64, 48), (37, 64)])
    finally:
        torch.set_float32_matmul_precision("highest")
    for one, other in zip(found, UniAP()(features, [(64, 64), (64, 48), (37, 64)]), strict=True):
        assert_same_labels(one, other)


@pytest.mark.parametrize("kind", ["smooth", "block"])
def test_uniap_gives_the_masks_of_the_cpu_without_kernels(monkeypatch, kind):
    monkeypatch.setattr(kernels, "has_kernels", lambda device: False)
    features = torch.cat([make_features(kind, 32, 96, seed) for seed in range(2)])
    for one, other in zip(
        UniAP()(features.cuda(), [(32, 32), (32, 21)]), UniAP()(features, [(32, 32), (32, 21)]), strict=True
    ):
        assert_same_labels(one, other)


def test_uniap_runs_by_kernels():
    assert kernels.has_kernels(torch.device("cuda", 0))


def test_uniap_gives_the_same_to_the_last_bit():
    features = torch.cat([make_features(kind, 64, 768, 0) for kind in ("smooth", "scene")]).cuda()
    for config in (UniAPConfig(), UniAPConfig(voter_pool=2)):
        first = UniAP(config)(features)
        for _ in range(5):
            for labels, again in zip(first, UniAP(config)(features), strict=True):
                for one, other in zip(labels, again, strict=True):
                    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_components_are_those_of_the_cpu():
    generator = torch.Generator().manual_seed(0)
    for count, edges in ((1, 0), (50, 30), (5000, 4800), (5000, 20000)):
        pairs = torch.randint(count, (2, edges), generator=generator)
        assert torch.equal(connected_components(pairs.cuda(), count).cpu(), connected_components(pairs, count))


def run(repository, *words):
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=repository, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout + done.stderr


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_training_goes_on_after_its_checkpoint_and_its_weights_label_and_segment(repository, tmp_path, precision):
    pictures = write_pictures(tmp_path / "pictures")
    output = tmp_path / "run"
    words = tiny_words(
        MODEL__DEVICE="cuda",
        SOLVER__AMP__ENABLED=precision != "float32",
        SOLVER__AMP__DTYPE="float16" if precision == "float32" else precision,
        DATASETS__TRAIN=f"('folder:{pictures}',)",
        OUTPUT_DIR=output,
        SOLVER__CHECKPOINT_PERIOD=2,
    )
    run(repository, "train_net.py", *words)
    run(repository, "train_net.py", "--resume", *words, "SOLVER.MAX_ITER", 6)
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    losses = [line["total_loss"] for line in lines if "total_loss" in line]
    assert losses
    assert all(loss == loss and abs(loss) < 1e6 for loss in losses)
    weights = output / "model_final.pth"
    for device in ("cuda", "cpu"):
        labels = tmp_path / f"{device}.json"
        run(
            repository, "-m", "s2uniseg_d2.pseudo_masks", "--config-file", output / "config.yaml", "--weights", weights,
            "--input", pictures, "--output", labels, "--device", device,
        )  # fmt: skip
    counts = [len(json.loads((tmp_path / f"{device}.json").read_text())["annotations"]) for device in ("cuda", "cpu")]
    assert min(counts) > 0
    # The features differ by the rounding of two devices, so that a few masks may.
    assert abs(counts[0] - counts[1]) <= 0.2 * max(counts)
    run(
        repository, "-m", "s2uniseg_d2.demo", "--weights", weights, "--input", pictures, "--output", tmp_path / "demo",
        "--device", "cuda",
    )  # fmt: skip
