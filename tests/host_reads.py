"""Counting the places of a piece of work that read a tensor's values on the host, each a wait if it lay on a GPU."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

OPTIMIZERS = Path(torch.optim.__file__).parent
PACKAGE = Path(__file__).resolve().parents[1] / "s2uniseg_d2"
# operators whose result, or its size, depends on values
READERS = {
    torch.ops.aten._local_scalar_dense.default: "item",
    torch.ops.aten.nonzero.default: "nonzero",
    torch.ops.aten.masked_select.default: "masked_select",
    torch.ops.aten.repeat_interleave.Tensor: "repeat_interleave",
    torch.ops.aten._unique2.default: "unique",
    torch.ops.aten.unique_consecutive.default: "unique",
    torch.ops.aten.unique_dim.default: "unique",
    torch.ops.aten.equal.default: "equal",
}
INDEXERS = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)
# a no-op or a plain read of memory where the tensor is on the CPU, so no operator tells of them; and numbers of the
# host that are copied from ordinary memory, for which a GPU's queue is waited for too
METHODS = ("cpu", "tolist", "new_tensor")


class HostReads(TorchDispatchMode):
    """Counts, while it is active, ``(module, function, what)`` of every read; ``what`` is a method or an operator.

    ``module`` is a path below the package, "torch/optim" for an optimizer's own counters, "" elsewhere. A tensor that
    is on the CPU by design counts too: a CPU cannot tell. Reads inside a method that is counted are not counted again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sites: Counter[tuple[str, str, str]] = Counter()
        self._inside = False

    def __enter__(self):
        self._originals = {name: getattr(torch.Tensor, name) for name in METHODS}
        for name, original in self._originals.items():
            setattr(torch.Tensor, name, self._counting(name, original))
        return super().__enter__()

    def __exit__(self, *error):
        for name, original in self._originals.items():
            setattr(torch.Tensor, name, original)
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in READERS:
            self._note(READERS[func])
        elif func in INDEXERS and any(index is not None and index.dtype == torch.bool for index in args[1]):
            self._note("mask index")
        return func(*args, **(kwargs or {}))

    def _counting(self, name, original):
        def method(*args, **kwargs):
            if self._inside:
                return original(*args, **kwargs)
            self._note(name)
            self._inside = True
            try:
                return original(*args, **kwargs)
            finally:
                self._inside = False

        return method

    def _note(self, what: str) -> None:
        if self._inside:
            return
        frame = sys._getframe(1)
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.parent == OPTIMIZERS:
                self.sites["torch/optim", frame.f_code.co_name, what] += 1
                return
            if path.is_relative_to(PACKAGE):
                self.sites[path.relative_to(PACKAGE).as_posix(), frame.f_code.co_name, what] += 1
                return
            frame = frame.f_back
        self.sites["", "", what] += 1
