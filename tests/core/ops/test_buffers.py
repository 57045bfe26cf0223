from __future__ import annotations

import numpy as np
import pytest
import torch

from s2uniseg_d2.core.ops import buffers

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (3, 4, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool, torch.int64, torch.bfloat16])
@pytest.mark.parametrize("large", [1, 10**9])
def test_memory_has_the_shape_and_type_and_can_be_written(monkeypatch, shape, dtype, large):
    monkeypatch.setattr(buffers, "LARGE", large)
    tensor = buffers.empty(shape, dtype, CPU)
    assert (tensor.shape, tensor.dtype, tensor.is_contiguous()) == (shape, dtype, True)
    assert torch.equal(tensor.fill_(1), torch.ones(shape, dtype=dtype))


def test_only_large_tensors_of_the_cpu_come_from_numpy(monkeypatch):
    asked = []
    monkeypatch.setattr(np, "empty", lambda size, dtype: asked.append(size) or np.zeros(size, dtype))
    buffers.empty((buffers.LARGE // 4 - 1,), torch.float32, CPU)
    buffers.empty((buffers.LARGE // 4,), torch.float32, torch.device("meta"))
    assert asked == []
    buffers.empty((buffers.LARGE // 4,), torch.float32, CPU)
    assert asked == [buffers.LARGE]
