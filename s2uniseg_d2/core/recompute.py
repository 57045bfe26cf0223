"""Trading time for memory: activations that are computed again in the backward pass rather than kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def call(function: Callable[..., Any], *args: Any, recomputes: bool) -> Any:
    """``function(*args)``; with ``recomputes`` only ``args`` are kept for the backward pass, which calls it again.

    Results and gradients are the same: the second call sees the same random numbers and the same mixed precision. It
    costs a forward pass more. Where no gradient is wanted nothing differs.

    Args:
        function: a module, or a function of modules, that changes no state, such as batch statistics.
        args: of the function.
        recomputes: whether to trade.
    """
    if recomputes and torch.is_grad_enabled():
        return checkpoint(function, *args, use_reentrant=False)
    return function(*args)
