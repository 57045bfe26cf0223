"""The kernels pass the tests of what they stand in for, and label pictures, in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from s2uniseg_d2.core.labelers.uniap import UniAP, UniAPConfig
from s2uniseg_d2.core.ops import kernels
from s2uniseg_d2.core.ops.kernels import runs_as_kernel
from tests.core.labelers.maps import KINDS, assert_same_labels, make_config, make_map
from tests.core.ops.conftest import INTERPRETS

interpreted = pytest.mark.skipif(not INTERPRETS, reason="runs in the process that another test starts")
outside = pytest.mark.skipif(INTERPRETS, reason="this is the process that it starts")


@outside
@pytest.mark.parametrize("name", ["edges", "partitions", "vectors", "kernels"])
def test_the_kernels_pass_in_a_process_that_interprets_them(repository, name):
    pytest.importorskip("triton", reason="Triton, which comes with PyTorch for CUDA, is not there")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist",
         str(Path(__file__).with_name(f"test_{name}.py"))],
        cwd=repository,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


@interpreted
def test_what_is_tested_here_are_the_kernels(monkeypatch):
    monkeypatch.setattr("s2uniseg_d2.core.ops.edge_kernels.bound_edges", None)
    with pytest.raises(TypeError, match="not callable"):
        UniAP(batched=True)(torch.ones(1, 2, 3, 3))


@interpreted
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_give_the_masks_of_single_pictures(kind):
    generator = torch.Generator().manual_seed(300 + KINDS.index(kind))
    for _ in range(3):
        features, config = make_map(kind, generator), make_config(generator)
        assert_same_labels(UniAP(config, batched=True)(features)[0], UniAP(config, batched=False)(features)[0])


@interpreted
@pytest.mark.parametrize("until_stable", [False, True])
def test_kernels_label_pictures_of_several_sizes_in_one_batch(until_stable):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(3, 6, 6, 5, generator=generator) + 1
    features[1] = features[1].round() + 0.5
    sizes = [(6, 5), (3, 5), (5, 2)]
    features[1, :, 3:], features[2, :, :, 2:] = float("nan"), float("inf")
    config = UniAPConfig(min_tokens=1, drop_whole=False, until_stable=until_stable, taus=(0.9, 0.6, 0.3, 0.0))
    found = UniAP(config, batched=True)(features, sizes)
    for image in range(3):
        assert_same_labels(found[image], UniAP(config)(features[image : image + 1], sizes[image : image + 1])[0])


@outside
@pytest.mark.parametrize("error", [ImportError("no Triton"), RuntimeError("no compiler"), "of Triton"])
def test_a_gpu_without_kernels_is_told_of_once(monkeypatch, caplog, error):
    if error == "of Triton":
        error = pytest.importorskip("triton.errors", reason="this Triton raises RuntimeError").TritonError("sm_60")
    real = kernels.import_module

    def refuse(name):
        if name.endswith(".edge_kernels"):
            raise error
        return real(name)

    monkeypatch.setattr(kernels, "import_module", refuse)
    kernels._builds_kernels.cache_clear()
    device = torch.device("cuda", 0)
    with caplog.at_level("WARNING"):
        assert not kernels.has_kernels(device)
        assert not kernels.has_kernels(device)
    kernels._builds_kernels.cache_clear()
    assert [record.message.startswith("Triton builds no kernels here") for record in caplog.records] == [True]


def test_a_triton_without_errors_of_its_own_or_none_at_all_adds_none(monkeypatch):
    def refuse(name):
        raise ImportError

    monkeypatch.setattr(kernels, "import_module", refuse)
    errors = kernels._build_errors()
    assert ImportError in errors
    assert all(error.__module__ in ("builtins", "subprocess") for error in errors)


def test_a_function_runs_as_its_kernel_where_there_are_some(monkeypatch):
    @runs_as_kernel("products")
    def multiply(a, b):
        """Something else."""
        return "no kernel"

    a, b = torch.full((2, 1, 1), 3.0)
    monkeypatch.setattr(kernels, "has_kernels", lambda device: False)
    assert multiply(a, b) == multiply((a, 0), b) == "no kernel"
    monkeypatch.setattr(kernels, "has_kernels", lambda device: device == a.device)
    assert float(multiply(a, b)) == 9
    assert (multiply.__name__, multiply.__doc__) == ("multiply", "Something else.")


@outside
def test_the_cpu_has_no_kernels():
    assert not kernels.has_kernels(torch.device("cpu"))
