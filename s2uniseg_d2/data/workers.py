"""How data workers begin: as Detectron2 has them begin, and with the signals of the process that started them."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from torch.utils.data import DataLoader


def set_up_workers(loader: DataLoader, cfg: CfgNode) -> DataLoader:
    """The loader, whose workers outlive a signal to the whole process group and are not waited for without end.

    Args:
        loader: is changed.
        cfg: reads ``DATALOADER.TIMEOUT_S``.
    """
    if loader.num_workers:
        loader.timeout = cfg.DATALOADER.TIMEOUT_S
        loader.worker_init_fn = functools.partial(_begin, loader.worker_init_fn)
    return loader


def _begin(before: Callable[[int], Any] | None, number: int) -> None:
    """Take the handler of SIGTERM back that PyTorch has replaced in a worker.

    SLURM sends SIGTERM to all processes of a run. With PyTorch's handler a worker dies of it, and the run with the
    worker, before it could finish its step. The handler of a run that ends cleanly is inherited from it.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if callable(handler):
        signal.signal(signal.SIGTERM, handler)
    if before is not None:
        before(number)
