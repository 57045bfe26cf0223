"""The processes of a run: one per GPU, several on CPUs, or those that torchrun has started."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from detectron2.engine import create_ddp_model, launch
from detectron2.utils import comm
from torch import distributed, nn

from .stopping import passing_termination_on

# what torchrun tells each process that it starts
_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Processes(NamedTuple):
    """How many processes share a run.

    Attributes:
        per_machine: on each machine.
        machines: all of them alike.
        by_torchrun: whether torchrun has started them already.
    """

    per_machine: int = 1
    machines: int = 1
    by_torchrun: bool = False

    @property
    def total(self) -> int:
        """On all machines."""
        return self.per_machine * self.machines


def count_processes(
    device: str, num_gpus: int, num_machines: int, environment: Mapping[str, str] = os.environ
) -> Processes:
    """The processes that a command asks for: torchrun's, or ``--num-gpus`` on each of ``--num-machines``.

    On the device ``cpu``, ``--num-gpus`` counts processes too: they share the batch through gloo. A run that wants a
    GPU where there is none is one process: the number was meant for GPUs.

    Raises:
        ValueError: for numbers that cannot be had on this machine.
    """
    if all(name in environment for name in _TORCHRUN):
        per_machine, total = int(environment["LOCAL_WORLD_SIZE"]), int(environment["WORLD_SIZE"])
        _check(device, per_machine, total // per_machine, by_torchrun=True)
        return Processes(per_machine, total // per_machine, by_torchrun=True)
    if num_gpus < 0:
        raise ValueError(f"--num-gpus must not be negative, got {num_gpus}")
    if device != "cpu" and not torch.cuda.is_available():
        if num_machines > 1:
            raise ValueError(
                f"--num-machines {num_machines} found no GPU here: MODEL.DEVICE cpu trains on CPUs, "
                "--num-gpus processes on each machine"
            )
        return Processes()
    _check(device, max(num_gpus, 1), num_machines, by_torchrun=False)
    return Processes(max(num_gpus, 1), num_machines)


def _check(device: str, per_machine: int, machines: int, *, by_torchrun: bool) -> None:
    available = torch.cuda.device_count()
    if device == "cpu":
        if per_machine * machines > 1 and available and not by_torchrun:
            # Detectron2's launcher takes NCCL, which knows no CPUs, as soon as it sees a GPU
            raise ValueError(
                "several processes on the CPU of a machine with GPUs need torchrun, or CUDA_VISIBLE_DEVICES=''"
            )
        return
    if per_machine > available and (available or per_machine * machines > 1):
        wanted = "torchrun's --nproc-per-node" if by_torchrun else "--num-gpus"
        hint = "" if available else "; MODEL.DEVICE cpu trains on CPUs"
        raise ValueError(f"{wanted} asks for {per_machine} GPUs, but {available} are available{hint}")


def start(work: Callable[..., Any], processes: Processes, args: Any, *, device: str, timeout_s: float = 1800.0) -> None:
    """Call ``work(args)`` in every process of the run, with Detectron2's process groups set up.

    Processes that torchrun has started join each other; others are started by Detectron2's launcher, which reads
    ``machine_rank`` and ``dist_url`` of ``args``. A process that waits for the others longer than ``timeout_s`` ends
    with an error.
    """
    timeout = datetime.timedelta(seconds=timeout_s)
    if not processes.by_torchrun:
        with passing_termination_on(processes.total):
            launch(
                work,
                processes.per_machine,
                num_machines=processes.machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
                timeout=timeout,
            )
        return
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=timeout)
    try:
        comm.create_local_process_group(processes.per_machine)
        comm.synchronize()
        work(args)
    finally:
        distributed.destroy_process_group()


def share_cores() -> None:
    """Give each process of a machine its part of the cores for work on the CPU, unless ``OMP_NUM_THREADS`` is set."""
    if comm.get_local_size() > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // comm.get_local_size()))


def parallelize(model: nn.Module) -> nn.Module:
    """The model, or where several processes share the batch, the model with its gradients averaged over them.

    Buffers are not sent around before each forward pass: centre and batch statistics agree already.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    # Detectron2 names the process's GPU, which modules on the CPU refuse
    wrapped: nn.Module = create_ddp_model(model, broadcast_buffers=False, **({"device_ids": None} if on_cpu else {}))
    return wrapped
