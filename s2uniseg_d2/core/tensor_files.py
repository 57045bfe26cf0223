"""Files of tensors from anybody, read without running anything that stands in them."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import pickletools
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from s2uniseg_d2.core.restricted_pickle import read_plain_pickle

# What torch's reader raises for bytes that are no checkpoint, a part of one, or one with foreign objects in it.
READ_ERRORS = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    struct.error,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)
_SHOWN = 3
# what PyTorch itself writes for tensors
_OWN_MODULES = ("torch", "collections", "argparse")
_SLACK_BYTES = 1 << 20  # directories and padding of a zip file


class TensorFileError(ValueError):
    """A file of tensors cannot be read; the text is the reason alone, for a sentence that names the file."""


def read_tensor_file(path: Path, *, mmap: bool = False) -> Any:
    """What a file of tensors holds, on the CPU, whatever it ends in; nothing in it is run.

    ``.safetensors`` are tensors by name. ``.pkl``, the format of Detectron2's and Caffe2's model zoos, goes through
    :mod:`~s2uniseg_d2.core.restricted_pickle`, and its arrays become tensors. Anything else is PyTorch's own, of today
    or of before 1.6, read with ``weights_only=True``. TorchScript archives hold a program, and files of PyTorch's first
    format cannot be read without running them: both are refused. So are zip files that unpack to more than they are.

    Args:
        path: an existing file.
        mmap: leave tensors on the disk until they are used, where the format can.

    Raises:
        TensorFileError: if the file is damaged, of another kind, or asks for anything but data, which is named.
    """
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        if path.suffix == ".pkl":
            return _to_tensors(read_plain_pickle(path))
        is_zip = _check_zip(path)
        with warnings.catch_warnings(), _namespace_is_safe():
            warnings.simplefilter("ignore")  # of other pickle protocols, and of archives that are refused next
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and is_zip)
    except TensorFileError:
        raise
    except READ_ERRORS as error:
        raise TensorFileError(_reason(path, error)) from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def broken_tensors(content: Any) -> list[str]:
    """The dotted names of tensors with NaN or infinity, in dicts and lists of any depth; names in the order found.

    Of sparse and quantized tensors and of those without values nothing is said.
    """
    found, seen, waiting = [], set(), [("", content)]
    while waiting:
        name, item = waiting.pop()
        if isinstance(item, torch.Tensor):
            found += [name] if _is_broken(item) else []
        elif isinstance(item, (Mapping, list, tuple)) and id(item) not in seen:
            seen.add(id(item))  # a file's lists may hold themselves
            pairs = list(item.items() if isinstance(item, Mapping) else enumerate(item))
            waiting += [(f"{name}.{key}" if name else str(key), value) for key, value in reversed(pairs)]
    return found


def _is_broken(tensor: torch.Tensor) -> bool:
    has_values = tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_quantized)
    if not has_values or not (tensor.is_floating_point() or tensor.is_complex()):
        return False
    storage = tensor.untyped_storage()
    if tensor.numel() * tensor.element_size() > storage.nbytes():
        # a file may say that few values fill a shape of any size: those few are looked at
        tensor = tensor.as_strided((storage.nbytes() // tensor.element_size(),), (1,), 0)
    return not bool(tensor.detach().isfinite().all())


def refuse_broken(tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Let no NaN or infinity come out of a file into a model, which would spread it to all others.

    Args:
        tensors: by name.
        source: what to call their file in the message.

    Raises:
        ValueError: if any tensor holds one; names the first of them.
    """
    if broken := broken_tensors(tensors):
        raise ValueError(
            f"{source} holds NaN or infinity in {len(broken)} of {len(tensors)} tensors "
            f"({', '.join(broken[:_SHOWN])}): the training diverged or the file is damaged, take an earlier one"
        )


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise TensorFileError("it needs the package safetensors, which is not installed") from error
    try:
        tensors: dict[str, torch.Tensor] = load_file(path, device="cpu")
    except (SafetensorError, *READ_ERRORS) as error:
        raise TensorFileError(f"it cannot be read as safetensors ({_first_line(error)})") from error
    return tensors


def _to_tensors(content: Any) -> Any:
    """Arrays of numbers as tensors, in dicts of dicts; texts and all else as they are."""
    if isinstance(content, dict):
        return {key: _to_tensors(value) for key, value in content.items()}
    if isinstance(content, np.ndarray) and content.dtype.kind in "biufc":
        return torch.from_numpy(content.astype(content.dtype.newbyteorder("=")))
    return content


def _check_zip(path: Path) -> bool:
    """Whether a file is a zip file, once it is known not to grow in memory: PyTorch never packs its parts."""
    if not zipfile.is_zipfile(path):
        if tarfile.is_tarfile(path):
            raise TensorFileError("it is a tar file, PyTorch's first format, which cannot be read without running it")
        return False
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        names = {part.filename.rpartition("/")[2] for part in parts}
        if "constants.pkl" in names:
            raise TensorFileError("it is a TorchScript archive, which holds a program; save the weights alone")
        unpacked, stored = sum(part.file_size for part in parts), path.stat().st_size
        if unpacked > stored + _SLACK_BYTES:
            raise TensorFileError(f"its {stored:,} bytes unpack to {unpacked:,}, as no file of PyTorch's does")
    return True


def _namespace_is_safe() -> AbstractContextManager[Any]:
    """DINO's full checkpoints hold their command line as an ``argparse.Namespace``, plain data."""
    if hasattr(torch.serialization, "safe_globals"):
        return torch.serialization.safe_globals([argparse.Namespace])
    # torch 2.4 has no such context; the class stays on its list
    torch.serialization.add_safe_globals([argparse.Namespace])
    return nullcontext()


def _reason(path: Path, error: BaseException) -> str:
    """Why a file was refused: the foreign names in its pickles, or else the reader's words.

    PyTorch's own text advises to read the file unsafely, which nobody should.
    """
    foreign = list(dict.fromkeys(_foreign_names(path))) if isinstance(error, pickle.UnpicklingError) else []
    if foreign:
        more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
        return (
            f"it asks for {', '.join(foreign[:_SHOWN])}{more}: objects that are not safe to load; refused, nothing of "
            f"it was run"
        )
    text = str(error)
    if text.startswith("Weights only load failed"):
        lines = [line.strip() for line in text.partition("WeightsUnpickler error:")[2].splitlines() if line.strip()]
        return f"its pickle is damaged or not of tensors ({lines[0] if lines else type(error).__name__})"[:300]
    return _first_line(error)


def _foreign_names(path: Path) -> Iterator[str]:
    """Names that the pickles of a file ask for and PyTorch's tensors do not need, read without loading anything."""
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                yield from _names_in_pickles(file)
            return
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".pkl"):
                    with archive.open(name) as part:
                        yield from _names_in_pickles(part)
    except READ_ERRORS:
        return  # what was found up to the damage is told


def _names_in_pickles(file: IO[bytes]) -> Iterator[str]:
    while True:
        texts: list[str] = []
        for opcode, argument, _ in pickletools.genops(file):
            name = ""
            if opcode.name in ("GLOBAL", "INST"):
                name = str(argument).replace(" ", ".")
            elif opcode.name == "STACK_GLOBAL":
                name = ".".join(texts[-2:])
            elif isinstance(argument, str):
                texts = [*texts[-1:], argument]
            if name and name.partition(".")[0] not in _OWN_MODULES:
                yield name


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}"[:300] if lines else type(error).__name__
