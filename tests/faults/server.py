"""Real commands in forked processes: PyTorch and Detectron2 are imported once, each command is a fork of that moment.

A forked command has a process group of its own, its words, its log and its fault, and calls the ``main`` of
``train_net.py`` or of ``s2uniseg_d2.pseudo_masks`` as Python would have after its imports. What differs from a new
Python is what these imports leave behind: one thread, no generator drawn from, no data set registered.

The server reads requests from its input, a line of JSON each, and answers each with a line.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_S = 180
# what the commands import late
LATE = (
    "s2uniseg_d2.engine.run", "s2uniseg_d2.labeling.run", "s2uniseg_d2.labeling.maker", "s2uniseg_d2.labeling.sources",
    "s2uniseg_d2.core.labelers.uniap", "faster_coco_eval", "torch.utils.tensorboard", "torch.distributed",
    "torch._dynamo", "torch.distributed.nn", "torch.nn.parallel.distributed", "torch.utils.data.dataloader",
)  # fmt: skip


class Started:
    """A command that a server has started.

    Attributes:
        pid: of the process, and of its group.
        log: what it says is at its end, from byte ``offset`` on.
    """

    def __init__(self, server: Server, pid: int, log: Path, offset: int) -> None:
        self._server, self.pid, self.log = server, pid, log
        self.offset = offset
        self.status: int | None = None

    def send(self, signum: int, *, to_group: bool = False) -> None:
        """A signal, if the process is there still."""
        if self.wait(0.0) is None:
            (os.killpg if to_group else os.kill)(self.pid, signum)

    def wait(self, seconds: float = PATIENCE_S) -> int | None:
        """The exit status, negative for a signal; None if it is not over after so long."""
        if self.status is None:
            self.status = self._server.ask(do="wait", pid=self.pid, seconds=seconds)
        return self.status

    def end(self) -> None:
        """Kill whatever is left of it and of what it started."""
        self.send(signal.SIGKILL)
        self.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def said(self) -> str:
        """All that it has said so far."""
        return self.log.read_bytes()[self.offset :].decode(errors="replace")


class Server:
    """Starts commands; a context that ends what is left of them."""

    def __enter__(self) -> Server:
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.faults.server"],
            cwd=REPOSITORY, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.started: list[Started] = []
        return self

    def __exit__(self, *_: object) -> None:
        for command in self.started:
            if command.status is None:
                command.end()
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def ask(self, **request: Any) -> Any:
        """One request and its answer."""
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(
        self, module: str, folder: Path, words: list[Any], log: Path, fault: dict[str, Any], **environment: Any
    ) -> Started:
        """Start ``train_net`` or ``s2uniseg_d2.pseudo_masks`` in a folder."""
        offset = log.stat().st_size if log.exists() else 0
        pid = self.ask(
            do="start", module=module, folder=str(folder), words=[*map(str, words)], log=str(log), fault=fault,
            environment={name: str(value) for name, value in environment.items()},
        )  # fmt: skip
        self.started.append(Started(self, pid, log, offset))
        return self.started[-1]


def _become(request: dict[str, Any]) -> None:
    """Turn a fork into the command; ends the process as Python would."""
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for ours, place in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(ours, place)
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    from tests.faults.shim import install

    install(request["fault"])
    sys.argv = [request["module"], *request["words"]]
    sys.exit(sys.modules[request["module"]].main(request["words"]))


def _wait(pid: int, seconds: float) -> int | None:
    limit = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= limit:
            return None
        time.sleep(0.01)


def main() -> None:
    """Import, then serve until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no answer
    for name in ("train_net", "s2uniseg_d2.pseudo_masks", *LATE):
        importlib.import_module(name)
    threads = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1
    if threads > 1:
        raise RuntimeError(f"a fork takes one thread along, but the imports have started {threads - 1} more")
    while line := sys.stdin.readline():
        request = json.loads(line)
        if request["do"] == "wait":
            answer = _wait(request["pid"], request["seconds"])
        else:
            answer = os.fork()
            if not answer:
                answers.close()
                _become(request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
