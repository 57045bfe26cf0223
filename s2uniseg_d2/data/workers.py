"""How data workers begin: as Detectron2 has them begin, and deaf to a signal that the whole run gets."""

from __future__ import annotations

import functools
import os
import signal
import threading
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
    """Outlive a SIGTERM that the process that started this worker handles, unless it comes from that process.

    SLURM sends SIGTERM to all processes of a run. With PyTorch's handler a worker dies of it, and the run with the
    worker, before it could finish its step. At its end the run's process ends its workers by the same signal.
    """
    if callable(signal.getsignal(signal.SIGTERM)) and hasattr(signal, "sigwaitinfo"):
        # blocked, so that the thread takes it, and sees who has sent it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_heed_parent, daemon=True).start()
    if before is not None:
        before(number)


def _heed_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
