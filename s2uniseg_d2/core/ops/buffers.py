"""Memory for large tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Bytes from which glibc asks the system for memory each time; smaller blocks it often has at hand, touched already.
LARGE = 2**25


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return an uninitialised tensor, on huge pages where it is large and the system lends them.

    The first touch of a page of 4 KiB can cost several times what is done with it, on virtual machines above all. NumPy
    asks Linux for pages of 2 MiB for its arrays, PyTorch does not by itself.

    Args:
        shape: of the tensor.
        dtype: any.
        device: where it lives; anywhere but on the CPU this is ``torch.empty``.
    """
    size = torch.Size(shape).numel() * dtype.itemsize
    if device.type != "cpu" or size < LARGE:
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(size, dtype=np.uint8)).view(dtype).view(shape)
