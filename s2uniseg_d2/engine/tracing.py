"""Finds the module whose output, or whose output's gradient, is the first that is not finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Found(NamedTuple):
    """A place where values stop being finite.

    Attributes:
        module: its name in the model; "" is the model itself.
        kind: its class.
        shape: of the tensor.
        wrong: how many of its values are not finite.
        origin: in words, whether weights or inputs were so already.
    """

    module: str
    kind: str
    shape: tuple[int, ...]
    wrong: int
    origin: str


class FiniteTrace:
    """Watches every module of a model while it is active; slow, for each output is read.

    ``output`` is the first output in the order of the forward pass, ``gradient`` the first gradient of an output in the
    order of the backward pass; None where all are finite. The inner module comes before the one that holds it.

    Args:
        model: to watch.
    """

    def __init__(self, model: nn.Module) -> None:
        self.output: Found | None = None
        self.gradient: Found | None = None
        self._model = model
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> FiniteTrace:
        for name, module in self._model.named_modules():
            self._handles.append(module.register_forward_hook(self._watch(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _watch(self, name: str) -> Any:
        def look(module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
            for tensor in _tensors(outputs):
                wrong = _count_wrong(tensor)
                if wrong and self.output is None:
                    origin = _origin(module, inputs)
                    self.output = Found(name, type(module).__name__, tuple(tensor.shape), wrong, origin)
                if tensor.requires_grad:
                    tensor.register_hook(self._look_back(name, module))

        return look

    def _look_back(self, name: str, module: nn.Module) -> Any:
        def look(gradient: Tensor) -> None:
            wrong = _count_wrong(gradient)
            if wrong and self.gradient is None:
                origin = "what follows it in the model gives such a gradient"
                self.gradient = Found(name, type(module).__name__, tuple(gradient.shape), wrong, origin)

        return look


def _tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


def _count_wrong(tensor: Tensor) -> int:
    return int((~torch.isfinite(tensor.detach())).sum())


def _origin(module: nn.Module, inputs: tuple[Any, ...]) -> str:
    weights = [name for name, value in module.named_parameters() if _count_wrong(value)]
    if weights:
        return f"its {weights[0]} is not finite"
    if any(_count_wrong(tensor) for tensor in _tensors(inputs)):
        return "its input is not finite, and comes from no module"
    return "its weights and its input are finite"
