"""Pickles of plain data (numbers, texts, containers, numpy arrays), read without running anything that they name."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# numpy's names of types whose arrays are rows of bytes and no more: numbers, truth values and texts; none with objects.
_CODE = re.compile(r"[<>|=]?(?:[biufc]\d{1,2}|[SU]\d{1,9}|\?)")
_BYTE_ORDERS = ("<", ">", "|", "=")
_MAX_DEPTH = 64  # of containers in containers
# Opcodes of code's pickles, not of data's: registered extensions, objects by reference, buffers elsewhere.
_FOREIGN = {"EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "NEXT_BUFFER", "READONLY_BUFFER"}
_MEMO = {"PUT", "BINPUT", "LONG_BINPUT"}
_FAULTS = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    RecursionError,
    NotImplementedError,
)


class UnsafePickleError(ValueError):
    """A pickle asks for something that is no plain data.

    Attributes:
        wanted: what it asks for, ``module.name`` of a global.
    """

    def __init__(self, message: str, wanted: str = "") -> None:
        super().__init__(message)
        self.wanted = wanted


def read_plain_pickle(path: str | PathLike[str]) -> Any:
    """What a pickle file holds: numbers, texts, bytes, lists, tuples, sets, dicts, numpy arrays and scalars.

    Detectron2's and Caffe2's model files (``.pkl``) are of this kind; Python 2's texts are read as Latin-1, as
    Detectron2 does. An ``OrderedDict`` comes out as a dict. Nothing that the file names is imported or called: the few
    names that numpy writes for its arrays stand for functions of this module, and arrays are made here of their bytes,
    after shape and type are checked. All other names end the reading.

    Args:
        path: the file.

    Raises:
        UnsafePickleError: if the file names anything else; the message says what.
        ValueError: if the file cannot be read, or is damaged or no pickle.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"pickle file {path} cannot be read: {error.strerror or error}") from error
    return parse_plain_pickle(data, f"pickle file {path}")


def parse_plain_pickle(data: bytes, name: str) -> Any:
    """The same for bytes in memory.

    Args:
        data: the pickle.
        name: what to call it in messages.

    Raises:
        UnsafePickleError: see :func:`read_plain_pickle`.
        ValueError: likewise.
    """
    try:
        _check_opcodes(data, name)
        return _Finisher().finish(_Reader(data, name).load(), 0)
    except UnsafePickleError:
        raise
    except _FAULTS as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{name} is damaged or no pickle of plain data ({type(error).__name__}: {reason})") from error


def _check_opcodes(data: bytes, name: str) -> None:
    """Refuse what no plain data need, and places in the memo that would take memory beyond the file's own size."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in _FOREIGN:
            raise UnsafePickleError(
                f"{name} must hold plain data, but asks for a foreign object ({opcode.name} {argument}): refused, "
                f"nothing of it was run",
                opcode.name,
            )
        if opcode.name in _MEMO and int(argument or 0) > len(data):
            raise ValueError(f"its memo must not be larger than the file, got place {argument}")


class _Reader(pickle.Unpickler):
    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self._name = name

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in of this module for a name that numpy's arrays or plain containers need."""
        known = _STAND_INS.get((module, name))
        if known is None:
            wanted = f"{module}.{name}"
            raise UnsafePickleError(
                f"{self._name} must hold plain data and numpy arrays, but asks for {wanted}: refused, nothing of it "
                f"was run",
                wanted,
            )
        return known


class _StandIn:
    """What a pickle may call in place of the function it names.

    A pickle can set attributes of all objects that it gets hold of. These have none, and no class is handed out.
    """

    __slots__ = ("_make",)
    _make: Callable[..., Any]

    def __init__(self, make: Callable[..., Any]) -> None:
        object.__setattr__(self, "_make", make)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name} cannot be set")

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)


class _Type:
    """A numpy type that is named but not made yet; of its state only the byte order counts."""

    __slots__ = ("_code", "_order")

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str):
            raise ValueError(f"a type must be named by a text, got {type(code).__name__}")
        self._code, self._order = code, "="

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in _BYTE_ORDERS or any(part is not None for part in state[2:5]):
            raise ValueError(f"type {self._code} must be a plain one of numbers, got the state {str(state)[:60]}")
        self._order = order

    def make(self) -> np.dtype[Any]:
        if not _CODE.fullmatch(self._code):
            raise ValueError(f"arrays must be of numbers or texts, got the type {self._code[:60]!r}")
        dtype = np.dtype(self._code)
        if dtype.itemsize == 0:
            raise ValueError(f"arrays must have values of at least one byte, got the type {self._code!r}")
        return dtype if self._order in ("|", "=") else dtype.newbyteorder("<" if self._order == "<" else ">")


class _Array:
    """An array that is named but not made yet."""

    __slots__ = ("_state",)

    def __init__(self) -> None:
        self._state: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise ValueError(f"an array's state must have 5 parts, got {str(state)[:60]}")
        self._state = state[-4:]

    def make(self) -> NDArray[Any]:
        if not self._state:
            raise ValueError("an array lacks its content")
        shape, dtype, is_fortran, content = self._state
        return _make_array(content, dtype, shape, "F" if is_fortran else "C")


class _Ordered(dict[Any, Any]):
    """An ordered dict, whose attributes (PyTorch keeps versions there) are left out."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Take nothing."""


class _Buffer(NamedTuple):
    """An array of a pickle of protocol 5; a NamedTuple, which a pickle cannot change."""

    content: Any
    dtype: Any
    shape: Any
    order: Any


def _bytes(content: Any) -> bytes:
    if isinstance(content, str):
        return content.encode("latin1")
    if not isinstance(content, (bytes, bytearray)):
        raise ValueError(f"an array's content must be bytes, got {type(content).__name__}")
    return bytes(content)


def _make_array(content: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
    if not isinstance(dtype, _Type) or order not in ("C", "F"):
        raise ValueError(f"an array must have a type and an order, got {str(dtype)[:60]} and {str(order)[:60]}")
    sizes = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    if not all(isinstance(size, int) and size >= 0 for size in sizes):
        raise ValueError(f"an array's shape must be whole numbers from 0, got {str(shape)[:60]}")
    made, raw = dtype.make(), _bytes(content)
    if math.prod(sizes) * made.itemsize != len(raw):
        raise ValueError(f"an array of {sizes} must have that many values of {made.itemsize} bytes, got {len(raw)}")
    # a copy, which may be written to, as arrays of numpy's own reader
    return np.frombuffer(raw, dtype=made).reshape(sizes, order=order).copy(order="K")


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _scalar(dtype: Any, content: Any) -> Any:
    return _make_array(content, dtype, (), "C")[()]


def _ordered(items: Any = ()) -> _Ordered:
    return _Ordered((key, value) for key, value in items)


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Python 3 writes bytes so into pickles that Python 2 can read."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes must be written as a Latin-1 text, got {encoding!r}")
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    return b""


def _set(items: Any = ()) -> set[Any]:
    return set(items)


def _frozenset(items: Any = ()) -> frozenset[Any]:
    return frozenset(items)


def _refuse_to_be_called(*_: Any) -> Any:
    raise ValueError("an array's class cannot be called by itself")


_NDARRAY = _StandIn(_refuse_to_be_called)
_STAND_INS: dict[tuple[str, str], _StandIn] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _StandIn(_Type),
    ("collections", "OrderedDict"): _StandIn(_ordered),
    ("_codecs", "encode"): _StandIn(_encode),
}
for _core in ("numpy.core", "numpy._core"):
    _STAND_INS[f"{_core}.multiarray", "_reconstruct"] = _StandIn(_reconstruct)
    _STAND_INS[f"{_core}.multiarray", "scalar"] = _StandIn(_scalar)
    _STAND_INS[f"{_core}.numeric", "_frombuffer"] = _StandIn(_Buffer)
for _builtins in ("builtins", "__builtin__"):
    _STAND_INS[_builtins, "bytes"] = _StandIn(_empty_bytes)  # so does Python 3 write none at all for Python 2
    _STAND_INS[_builtins, "set"] = _StandIn(_set)
    _STAND_INS[_builtins, "frozenset"] = _StandIn(_frozenset)


class _Finisher:
    """Puts arrays in place of what stands for them; what is shared in the file is shared in what comes out."""

    def __init__(self) -> None:
        self._done: dict[int, tuple[Any, Any]] = {}

    def finish(self, item: Any, depth: int) -> Any:
        if item is None or isinstance(item, (bool, int, float, complex, str, bytes, bytearray, np.generic)):
            return item
        if id(item) in self._done:
            return self._done[id(item)][1]
        if depth > _MAX_DEPTH:
            raise ValueError(f"containers must not be deeper than {_MAX_DEPTH} in each other, nor in themselves")
        made = self._make(item, depth + 1)
        self._done[id(item)] = item, made  # holding the item keeps its id its own
        return made

    def _make(self, item: Any, depth: int) -> Any:
        if isinstance(item, _Array):
            return item.make()
        if isinstance(item, _Buffer):
            return _make_array(*item)
        if isinstance(item, dict):
            return {self.finish(key, depth): self.finish(value, depth) for key, value in dict.items(item)}
        for kind in (list, tuple, set, frozenset):
            if type(item) is kind:
                return kind(self.finish(part, depth) for part in item)
        raise ValueError(f"a pickle of plain data must not hold a {type(item).__name__} by itself")
