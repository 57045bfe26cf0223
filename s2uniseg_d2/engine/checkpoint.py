"""Checkpoints that are written whole, load without running code, and refuse what is no S2-UniSeg."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import nn

from s2uniseg_d2.core.tensor_files import READ_ERRORS, refuse_broken
from s2uniseg_d2.downloads import local_file

from .checkpoint_files import (
    FINAL,
    LAST,
    NUMBERED,
    damage_of,
    prune,
    read_checkpoint,
    remove_partials,
    resume_candidates,
    write_whole,
)

logger = logging.getLogger(__name__)

_CONTAINERS = ("model", "blobs")  # where tensors stand in a file, if not by themselves: PyTorch's habit, and Caffe2's


class SafeCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, reading files of tensors without running anything in them.

    Detectron2's own runs what a ``.pkl`` of its model zoo names, and fetches an address without looking at what comes;
    here :func:`~.checkpoint_files.read_checkpoint` reads all files, and an address must name the hash of its file.

    A file of another model is refused when less than half of this model's tensors are in it, instead of training or
    evaluating random weights in silence; so is one with NaN or infinity in a tensor of this model. Files
    are written whole or not at all.

    Args:
        model: whose weights are saved and loaded.
        save_dir: the run's folder, which all processes see; "" saves nothing.
        keep: how many periodic checkpoints stay, the newest; 0 keeps all. Others are never removed.
        checkpointables: see Detectron2's.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", *, keep: int = 0, **checkpointables: Any) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.keep = keep

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load the file at ``path``, or at an address with a hash (:mod:`~s2uniseg_d2.downloads`); "" loads nothing.

        Raises:
            ValueError: if there is no such file, it cannot be read safely, or does not fit the model.
            OSError: if it cannot be fetched.
        """
        path = local_file(path)
        if path and not Path(path).is_file():
            raise ValueError(f"weights file does not exist: {path}")
        try:
            # past Detectron2's own step, which takes a path for an address: "?" in a name is part of the name here
            return dict(super(DetectionCheckpointer, self).load(path, *args, **kwargs))
        except READ_ERRORS as error:
            if path and path in str(error):
                raise  # it says what is wrong with the file
            # PyTorch's words for a state that is another optimizer's or model's
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"weights file {path} cannot be loaded into this model ({type(error).__name__}: {reason})"
            ) from error

    def save(self, name: str, *, is_last: bool = True, **kwargs: Any) -> None:
        """Write ``name.pth`` and, unless ``is_last`` is false, make it the one that a run goes on from.

        Raises:
            OSError: if it cannot be written; what was there before is there still.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        path = Path(self.save_dir) / f"{name}.pth"
        content = {"model": self.model.state_dict(), **kwargs}
        content |= {key: value.state_dict() for key, value in self.checkpointables.items()}
        logger.info("Saving checkpoint to %s", path)
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_partials(path.parent)
        write_whole(path, lambda file: torch.save(content, file))
        if is_last:
            self.tag_last_checkpoint(path.name)
        if number := NUMBERED.fullmatch(path.name):
            prune(path.parent, int(number[1]), self.keep)

    def copy_final(self, iteration: int) -> None:
        """Make the final checkpoint out of the periodic one of the last iteration, if it alone is there.

        Raises:
            OSError: if it cannot be written.
        """
        final, periodic = Path(self.save_dir) / FINAL, Path(self.save_dir) / f"model_{iteration:07d}.pth"
        if periodic.is_file() and not final.is_file():
            with periodic.open("rb") as source:
                write_whole(final, lambda file: shutil.copyfileobj(source, file))
            self.tag_last_checkpoint(final.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Make a file the one that a run goes on from."""
        write_whole(Path(self.save_dir) / LAST, lambda file: file.write(last_filename_basename.encode()))

    def has_checkpoint(self) -> bool:
        """Whether there is anything to go on from."""
        return bool(resume_candidates(Path(self.save_dir)))

    def get_checkpoint_file(self) -> str:
        """The checkpoint to go on from if it is sound; "" if there is none."""
        return next(map(str, resume_candidates(Path(self.save_dir))), "")

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the newest sound checkpoint of the run with all its states, or the weights at ``path``.

        The main process chooses for all.

        Raises:
            ValueError: if there are checkpoints and none is sound, or not all processes see the one chosen.
        """
        # the main process looks and all follow: they may see different folders, and must not part here
        found = self._newest_sound() if resume and comm.is_main_process() else None
        chosen, damaged = comm.all_gather(found)[0] or ("", [])
        if not chosen and damaged:
            raise ValueError(f"no checkpoint in {self.save_dir} can be gone on from: {'; '.join(damaged)}")
        if not chosen:
            return dict(self.load(path, checkpointables=[]))
        for what in damaged:
            logger.warning("%s; going on from %s", what, chosen)
        blind = comm.all_gather(Path(chosen).is_file()).count(False)
        if blind:
            raise ValueError(f"{blind} processes do not see {chosen}: OUTPUT_DIR must be a folder that all share")
        return dict(self.load(chosen))

    def _newest_sound(self) -> tuple[str, list[str]]:
        """The best checkpoint that is sound, or "", and what is wrong with the better ones."""
        damaged: list[str] = []
        for path in resume_candidates(Path(self.save_dir)):
            reason = damage_of(path)
            if reason is None:
                return str(path), damaged
            damaged.append(f"checkpoint {path} cannot be used: {reason}")
        return "", damaged

    def _load_file(self, filename: str) -> dict[str, Any]:
        content = read_checkpoint(Path(filename))
        key = next((key for key in _CONTAINERS if key in content), None)
        state = content[key] if key else content
        if not isinstance(state, dict):
            raise ValueError(f"weights file {filename} must hold tensors by name, got {type(state).__name__}")
        self._refuse_foreign(filename, state)
        return content if key == "model" else {"model": state}

    def _refuse_foreign(self, filename: str, state: Any) -> None:
        ours = self.model.state_dict()
        tensors = {str(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}
        known = [name for name, value in tensors.items() if name in ours and ours[name].shape == value.shape]
        logger.info("%s: %d of this model's %d tensors are in it", filename, len(known), len(ours))
        if 2 * len(known) < len(ours):
            examples = ", ".join(list(tensors)[:3]) or "no tensors"
            raise ValueError(
                f"weights file {filename} does not fit this model: {len(known)} of {len(ours)} tensors have its names "
                f"and shapes (it holds {examples}); a DINO checkpoint of the ViT alone goes to MODEL.VIT.WEIGHTS"
            )
        if others := [name for name, value in state.items() if not (isinstance(name, str) and _is_plain(value))]:
            raise ValueError(
                f"weights file {filename} must hold dense tensors by name, got {type(state[others[0]]).__name__} under "
                f"{others[0]!r} and {len(others) - 1} more such"
            )
        refuse_broken({name: tensors[name] for name in known}, f"weights file {filename}")


def _is_plain(value: Any) -> bool:
    return (
        isinstance(value, torch.Tensor) and value.layout == torch.strided and not (value.is_quantized or value.is_meta)
    )
