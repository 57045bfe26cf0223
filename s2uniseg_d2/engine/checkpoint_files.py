"""The files of checkpoints: written whole or not at all, found again, and the old ones removed."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from s2uniseg_d2.core.tensor_files import TensorFileError, broken_tensors, read_tensor_file

LAST = "last_checkpoint"  # the file that names the newest checkpoint
FINAL = "model_final.pth"
NUMBERED = re.compile(r"model_(\d{7,})\.pth")


class _Remembering:
    """A binary file that remembers why a write failed: PyTorch's writer replaces the reason by one of its own."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._handle.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._handle.flush()


def write_whole(path: Path, write: Callable[[Any], object]) -> None:
    """Let ``write`` fill a file that takes the place of ``path`` when it is whole and on the disk.

    A kill or a power cut at any moment leaves the old file or the new one; what is left of a killed write is a hidden
    ``.partial`` file, which :func:`remove_partials` removes.

    Raises:
        OSError: if it cannot be written, a full disk for instance; names the file and the reason. The old file stays.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        try:
            with partial.open("wb") as handle:
                watched = _Remembering(handle)
                try:
                    write(watched)
                except RuntimeError as error:
                    raise watched.error or error from error
                handle.flush()
                os.fsync(handle.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        raise OSError(f"{path} could not be written: {error.strerror or error}") from error


def _sync_folder(folder: Path) -> None:
    """Make a renaming last; some systems cannot open a folder and need not."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_partials(folder: Path) -> None:
    """Remove what killed writes of checkpoints have left."""
    for partial in folder.glob(".model_*.pth.partial"):
        partial.unlink(missing_ok=True)


def numbered_checkpoints(folder: Path) -> dict[int, Path]:
    """The periodic checkpoints of a run by their iteration, newest first."""
    found = ((NUMBERED.fullmatch(path.name), path) for path in folder.glob("model_*.pth"))
    by_iteration = {int(match[1]): path for match, path in found if match}
    return dict(sorted(by_iteration.items(), reverse=True))


def prune(folder: Path, newest: int, keep: int) -> None:
    """Remove all periodic checkpoints before iteration ``newest`` but the last ``keep - 1``; ``keep`` 0 removes none.

    What the folder holds decides, not what this process wrote, so that a resumed run prunes alike. Checkpoints after
    ``newest`` are those of a run that was taken back to an earlier one, and stay.
    """
    if keep:
        older = [path for iteration, path in numbered_checkpoints(folder).items() if iteration < newest]
        for path in older[keep - 1 :]:
            path.unlink(missing_ok=True)


def resume_candidates(folder: Path) -> list[Path]:
    """Where a run can go on from, best first: what ``last_checkpoint`` names, periodic ones, the final one."""
    tag = folder / LAST
    named = tag.read_text(encoding="utf-8", errors="replace").strip() if tag.is_file() else ""
    tagged = [folder / Path(named).name] if named else []
    rest = [path for path in (*numbered_checkpoints(folder).values(), folder / FINAL) if path not in tagged]
    return [*tagged, *(path for path in rest if path.is_file())]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a file of tensors holds (``.pth``, ``.pkl`` or ``.safetensors``), read without running code.

    Raises:
        ValueError: if the file does not exist, is no such file, asks for anything but data, or holds no dictionary.
    """
    if not path.is_file():
        raise ValueError(f"weights file does not exist: {path}")
    try:
        content = read_tensor_file(path)
    except TensorFileError as error:
        raise ValueError(f"weights file {path} is no readable PyTorch checkpoint: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"weights file {path} must hold a dictionary, got {type(content).__name__}")
    return content


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and values: equal tensors, equal text, whatever file they are in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(values.shape)} {values.dtype}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def damage_of(path: Path) -> str | None:
    """Why a run cannot go on from a checkpoint, in words; None if it can.

    Checks the sums that PyTorch writes and does not look at, so that flipped bits are found as well, and that no
    tensor, of the optimizer's neither, holds NaN or infinity.
    """
    if not path.is_file():
        return "it does not exist"
    if path.stat().st_size == 0:
        return "it is empty"
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        return f"it is cut short or overwritten ({error})"
    if wrong:
        return f"its part {wrong} does not match its checksum"
    try:
        content = read_checkpoint(path)
    except ValueError as error:
        return str(error)
    if broken := broken_tensors(content):
        return f"it holds NaN or infinity in {len(broken)} tensors ({', '.join(broken[:3])})"
    return None if "trainer" in content else "it holds weights alone, not the state of a run"
