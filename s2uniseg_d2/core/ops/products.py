"""Float32 matrix products on the CPU, by the faster of the two libraries that PyTorch ships."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

# Multiplications from which the other library pays.
WORTHWHILE = 2**18
# It prepares a kernel for each new shape, which takes longer than many a product: numbers of rows are rounded up, so
# that few shapes come up.
ROW_STEP = 16
# Up to so many rows the time grows with their number; they are rounded up to a multiple of this.
FEW_ROWS = 16
SHORT_ROW_STEP = 4
_PROBE = (64, 512, 48)


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b.

    PyTorch gives products of float32 matrices to MKL, which does not use AVX-512 on processors of other makers; oneDNN,
    to which it gives linear layers of compiled models, does. How much that saves differs between them, from nothing to
    more than half the time (``tests/benchmarks/bm_products.py``). Both round each product and sum to float32, so that
    the bound of :func:`.rounding.gamma` holds for both. Where oneDNN is missing, too old, or set to less than float32
    (by PyTorch's flags or its own environment), it is not used. The choice depends on the machine, the settings and the
    shapes alone.

    Args:
        a: ``(n, k)``.
        b: ``(k, m)``.

    Returns:
        ``(n, m)``, of the arguments' type.
    """
    n, k = a.shape
    m = b.shape[1]
    if a.dtype != torch.float32 or a.device.type != "cpu" or n * k * m < WORTHWHILE or not _prefers_linear():
        return a @ b
    missing = -n % (SHORT_ROW_STEP if n <= FEW_ROWS else ROW_STEP)
    product = _apply_linear(functional.pad(a, (0, 0, 0, missing)) if missing else _packed(a), _packed(b))
    return product[:n]


def _apply_linear(a: Tensor, b: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.T, None, "none", [], "")
    return product


def _packed(matrix: Tensor) -> Tensor:
    """The matrix, or a copy without gaps: oneDNN has no fast kernel for a part of a wider matrix."""
    return matrix if matrix.is_contiguous() or matrix.T.is_contiguous() else matrix.contiguous()


def _prefers_linear() -> bool:
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    precision = getattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision", "none")
    return _rounds_to_float32(torch.get_float32_matmul_precision(), str(precision))


@lru_cache
def _rounds_to_float32(*settings: str) -> bool:
    """Whether a linear layer keeps the digits of float32, asked once for each state of the settings."""
    n, k, m = _PROBE
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(n, k, generator=generator), torch.randn(k, m, generator=generator)
    try:
        product = _apply_linear(a, b)
    except (AttributeError, RuntimeError):
        return False
    # Half precision of any kind is off by some 2^-9 of the terms.
    error = (product.double() - a.double() @ b.double()).abs()
    return bool((error <= 2.0**-18 * (a.abs().double() @ b.abs().double())).all())
