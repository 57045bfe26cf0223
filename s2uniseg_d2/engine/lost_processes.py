"""Processes that a run needs and that die or hang: named in a sentence, and not waited for at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import distributed

from s2uniseg_d2.data.workers import LATE, end_workers


def is_loss(error: BaseException) -> bool:
    """Whether an error says that a data worker or another process of the run is gone."""
    return isinstance(error, RuntimeError) and _kind_of(error) is not None


def explain_loss(error: RuntimeError, cfg: CfgNode) -> str | None:
    """What was lost and what to look at, in words; None for any other error.

    PyTorch and gloo raise plain ``RuntimeError``, so that their words decide.

    Args:
        error: caught around a step, a checkpoint or an evaluation: PyTorch raises it wherever the main thread is.
        cfg: reads the time limits.
    """
    words = " ".join(str(error).split())
    kind = _kind_of(error)
    if kind == "late":
        return (
            f"{words.removeprefix(LATE)} gave no batch in DATALOADER.TIMEOUT_S = {cfg.DATALOADER.TIMEOUT_S} seconds: "
            "it hangs, or the disk that it reads from"
        )
    if kind == "worker":
        return f"a data worker died ({words}); if memory was short, fewer DATALOADER.NUM_WORKERS take less"
    if kind == "peer":
        return (
            f"process {comm.get_rank()} of {comm.get_world_size()} lost another one, which died or gave no sign in "
            f"PROCESSES.TIMEOUT_S = {cfg.PROCESSES.TIMEOUT_S} seconds ({words[-200:]})"
        )
    return None


def _kind_of(error: BaseException) -> str | None:
    words = str(error)
    if words.startswith(LATE):
        return "late"
    if words.startswith("DataLoader worker") and ("killed by signal" in words or "exited unexpectedly" in words):
        return "worker"
    shared = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    if shared and (isinstance(error, distributed.DistError) or "gloo" in words):
        return "peer"
    return None


@contextlib.contextmanager
def naming_losses(cfg: CfgNode) -> Iterator[None]:
    """Turn the loss of a process into an ``OSError`` that names it; end the data workers in any case.

    Raises:
        OSError: if a data worker or another process of the run died, or gave nothing within its time limit.
    """
    try:
        yield
    except RuntimeError as error:
        reason = explain_loss(error, cfg)
        if reason is None:
            raise
        raise OSError(reason) from error
    finally:
        end_workers()
