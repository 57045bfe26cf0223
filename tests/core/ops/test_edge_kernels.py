"""What a GPU computes, by the interpreter that comes with Triton: it has to be chosen before Triton is imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from s2uniseg_d2.core.ops import edges

pytest.importorskip("triton", reason="Triton, which comes with PyTorch for CUDA, is not there")
INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETS, reason="runs in the process that the first test starts")

if INTERPRETS:
    from s2uniseg_d2.core.ops import edge_kernels


@pytest.mark.skipif(INTERPRETS, reason="this is the process that it starts")
def test_the_kernels_pass_in_a_process_that_interprets_them(repository):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__],
        cwd=repository,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "4 passed, 1 skipped" in done.stdout


@interpreted
@pytest.mark.parametrize("width", [1, 8, 23])
def test_products_are_those_of_the_rows(width):
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 9, width, dtype=torch.float64, generator=generator)
    pairs = torch.randint(9, (2, 14), generator=generator)
    expected = edges.edge_products(one, other, pairs)
    found = edge_kernels.edge_products(one.mT.contiguous().mT, other, pairs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    empty = edge_kernels.edge_products(one, other, pairs[:, :0])
    assert (empty.shape, empty.dtype) == ((0,), torch.float64)


@interpreted
def test_components_join_whatever_their_size_and_order():
    generator = torch.Generator().manual_seed(0)
    for count, number in ((1, 0), (1, 1), (3, 1), (300, 256), (300, 257), (300, 900)):
        pairs = torch.randint(count, (2, number), generator=generator)
        roots = torch.arange(count)
        for share in (0.3, 0.7):
            joined = torch.rand(number, generator=generator) < share
            found = edge_kernels.join_components(roots, pairs, joined)
            roots = edges.join_components(roots, pairs, joined)
            assert found.dtype == torch.int64
            assert torch.equal(found, roots), (count, number, share)
    path = torch.randperm(260, generator=generator)
    chain = torch.stack([path[:-1], path[1:]])
    found = edge_kernels.join_components(torch.arange(260), chain, torch.ones(259, dtype=torch.bool))
    assert found.unique().tolist() == [0]
