"""A training or evaluation command from its words to its exit status."""

from __future__ import annotations

import argparse
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from torch.cuda import OutOfMemoryError
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from s2uniseg_d2.exit_status import INTERRUPTED, fail

from .dry_run import dry_run
from .processes import start
from .run import prepare, run
from .stopping import SIGNALS, Terminated, how_to_go_on

# Seconds after a Ctrl-C in which another one is taken for the same.
FORGIVEN_S = 5
LESS_MEMORY = (
    "less is needed by smaller pictures (INPUT.GLOBAL_LONGEST_PX), fewer views (INPUT.VIEWS.NUM), more "
    "SOLVER.ACCUMULATION_STEPS, or MODEL.RECOMPUTE True"
)


def execute(args: argparse.Namespace, name: str = "train_net.py") -> int:
    """Train, evaluate or try as Detectron2's arguments say; what went wrong is one sentence on stderr.

    Args:
        args: of ``train_net.py``.
        name: of the command, before that sentence.

    Returns:
        The exit status (:mod:`s2uniseg_d2.exit_status`).
    """
    with _forgive_second_interrupt():
        return _execute(args, name)


def _execute(args: argparse.Namespace, name: str) -> int:
    folder = None
    try:
        if args.dry_run:
            sys.stdout.write(dry_run(args))
            return 0
        plan = prepare(args)
        folder = None if args.eval_only else Path(plan.cfg.OUTPUT_DIR)
        start(run, plan.processes, args, device=plan.cfg.MODEL.DEVICE, timeout_s=plan.cfg.PROCESSES.TIMEOUT_S)
        weights = folder / "model_final.pth" if folder else None
        if weights and weights.is_file():
            sys.stdout.write(
                f"{name}: done; the weights are {weights}; masks of any pictures: "
                f"python -m s2uniseg_d2.demo --weights {weights} --input PICTURES --output MASKS\n"
            )
    except (ValueError, FloatingPointError, OSError) as error:
        return fail(name, error)
    except OutOfMemoryError as error:
        return fail(name, f"{str(error).partition('. ')[0]}; {LESS_MEMORY}")
    except ProcessRaisedException as error:
        return fail(name, str(error).strip().splitlines()[-1])
    except ProcessExitedException as error:
        kept = f"; {how_to_go_on(folder)}" if folder else ""
        asked = next((signum for signum in SIGNALS if error.exit_code == 128 + signum), None)
        if asked is None:
            return fail(name, f"{error}{kept}")
        return fail(name, f"stopped by {asked.name}{kept}", status=128 + asked)
    except Terminated as stop:
        return fail(name, stop, status=stop.code)
    except KeyboardInterrupt:
        # whoever presses Ctrl-C twice gets the sentence too, and with a third time the end at once
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        status = fail(name, f"interrupted; {_what_is_kept(args, folder)}", status=INTERRUPTED)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        return status
    return 0


@contextmanager
def _forgive_second_interrupt() -> Iterator[None]:
    """Pass over a second Ctrl-C soon after the first, whose KeyboardInterrupt is on its way; a third raises again.

    A second KeyboardInterrupt would often come up where Python can only print it, in the end of a data loader.
    """
    main, before = threading.current_thread() is threading.main_thread(), signal.getsignal(signal.SIGINT)
    if not main or before is not signal.default_int_handler:
        yield
        return
    last_s = -math.inf

    def interrupt(signum: int, frame: FrameType | None) -> None:
        nonlocal last_s
        is_second = time.monotonic() - last_s < FORGIVEN_S
        last_s = -math.inf if is_second else time.monotonic()
        if not is_second:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, before)


def _what_is_kept(args: argparse.Namespace, folder: Path | None) -> str:
    if args.dry_run:
        return "a dry run leaves nothing"
    return how_to_go_on(folder) if folder else "--resume goes on from what was kept"
