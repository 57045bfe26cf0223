"""The choice between tensor operations and Triton kernels, which a GPU runs with far fewer launches."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, wraps
from importlib import import_module
from typing import Any, TypeVar

import torch

_LOGGER = logging.getLogger(__name__)
_Function = TypeVar("_Function", bound=Callable[..., Any])


def runs_as_kernel(module: str) -> Callable[[_Function], _Function]:
    """Let the function of the same name in a module of kernels stand in where :func:`has_kernels` says so.

    Args:
        module: name of a module beside this one. Its functions take and return what the decorated ones do, whose first
            argument is a tensor on the device of all others, or a tuple that begins with one.
    """

    def decorate(function: _Function) -> _Function:
        @wraps(function)
        def call(first: Any, *args: Any, **kwargs: Any) -> Any:
            device = (first if isinstance(first, torch.Tensor) else first[0]).device
            if not has_kernels(device):
                return function(first, *args, **kwargs)
            kernel = getattr(import_module(f"{__package__}.{module}"), function.__name__)
            # Triton launches on the current device.
            away = device.type == "cuda" and device.index != torch.cuda.current_device()
            with torch.cuda.device(device) if away else nullcontext():
                return kernel(first, *args, **kwargs)

        return call  # type: ignore[return-value]

    return decorate


def has_kernels(device: torch.device) -> bool:
    """Whether Triton's kernels run on a device."""
    return device.type == "cuda" and _builds_kernels(device)


@cache
def _builds_kernels(device: torch.device) -> bool:
    """Whether Triton is there and builds kernels for a GPU; it needs a C compiler too. Tried once."""
    try:
        kernels = import_module(f"{__package__}.edge_kernels")
        with torch.cuda.device(device):
            node = torch.zeros(2, 1, dtype=torch.int64, device=device)
            kernels.join_components(node[0], node, torch.ones(1, dtype=torch.int8, device=device))
    except _build_errors() as error:
        _LOGGER.warning("Triton builds no kernels here, so that UniAP on %s takes longer: %s", device, error)
        return False
    return True


def _build_errors() -> tuple[type[Exception], ...]:
    """What Triton raises where it is missing, or the GPU or the compiler is none that it can use."""
    errors = (ImportError, OSError, RuntimeError, subprocess.SubprocessError)
    try:
        return (*errors, import_module("triton.errors").TritonError)
    except (ImportError, AttributeError):  # older Tritons raise RuntimeError
        return errors
