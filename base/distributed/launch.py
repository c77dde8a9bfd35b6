"""Starts a process for each device that `-d` names, as torchrun does, and prints the command.

The processes are watched by torchrun's own agent. Other signals, other machines and restarts are
torchrun's: see ``examples/launch/``.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from base.errors import UsageError
from base.system.cores import free_cores
from base.system.processes import local_rank, local_size, rank

if TYPE_CHECKING:
    from torch.distributed.elastic.agent.server import RunResult, SimpleElasticAgent

LIST = re.compile(r"(cuda:)?\d+(,(cuda:)?\d+)*,?")
COUNT = re.compile(r"(cpu|auto|n_gpu):([1-9]\d*)")
KNOWN = (
    "use auto, cpu, cuda, mps, a GPU's number, or for several processes 0,1 (these GPUs), "
    "all (each GPU), cpu:2 or auto:2"
)
FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1")
PATIENCE_SECONDS = 10.0  # of a signal, for processes to send it to


class Devices(NamedTuple):
    """What ``-d`` names: GPUs by their numbers, or a kind of device and a number of processes."""

    kind: str
    numbers: tuple[int, ...] = ()
    n_processes: int = 1


def parse_devices(name: str) -> Devices:
    """Read the text of ``-d``. This does not import torch.

    Raises:
        UsageError: a list names something else than GPUs, or a GPU twice.
    """
    name = name.replace(" ", "")
    if LIST.fullmatch(name):
        numbers = tuple(int(part) for part in re.findall(r"\d+", name))
        if len({*numbers}) < len(numbers):
            raise UsageError(f"-d {name}: each process needs a GPU of its own; name each once")
        return Devices("cuda", numbers)
    if match := COUNT.fullmatch(name):
        return Devices(match[1], n_processes=int(match[2]))
    if "," in name:
        raise UsageError(f"-d {name}: a list holds the numbers of GPUs; {KNOWN}")
    return Devices(name)


def devices_of(name: str) -> list[str]:
    """Return the device of each process that ``-d`` asks for on this machine.

    Raises:
        UsageError: there are fewer GPUs.
    """
    devices = parse_devices(name)
    if devices.numbers:
        return [f"cuda:{number}" for number in devices.numbers]
    if devices.kind == "cpu":
        return ["cpu"] * devices.n_processes
    if devices.kind not in ("all", "n_gpu") and devices.n_processes == 1:
        return [devices.kind]
    n_gpus = _n_gpus()
    if devices.kind == "all" and not n_gpus:
        raise UsageError("-d all: there are no CUDA devices here; use `-d auto` or `-d cpu`")
    if devices.kind == "n_gpu" and not n_gpus:
        return ["auto"]
    if devices.kind == "auto" and not n_gpus:
        return ["cpu"] * devices.n_processes
    if devices.kind == "auto" and n_gpus < devices.n_processes:
        text = (
            f"-d {name}: {devices.n_processes} processes need as many GPUs, and there are {n_gpus}"
        )
        raise UsageError(f"{text}; use `-d all` or `-d cpu:{devices.n_processes}`")
    n_processes = n_gpus if devices.kind == "all" else min(devices.n_processes, n_gpus)
    return [f"cuda:{number}" for number in range(n_processes)]


def fewer_than_n_gpu(name: str, names: Sequence[str]) -> str:
    """Return a line for pytorch-template's ``n_gpu`` where there are fewer GPUs, else ""."""
    devices = parse_devices(name)
    if devices.kind != "n_gpu" or len(names) == devices.n_processes:
        return ""
    n_gpus = 0 if names == ["auto"] else len(names)
    what = f"trains in {n_gpus} processes" if n_gpus > 1 else "trains in one process"
    return f"n_gpu is {devices.n_processes}, the number of GPUs here is {n_gpus}: {what}"


def device_of_rank(name: str) -> str:
    """Return the device of this process, which torchrun started.

    Raises:
        UsageError: this machine has fewer GPUs than processes, or ``-d`` names another number.
    """
    devices, n_processes = parse_devices(name), local_size()
    if devices.numbers:
        if len(devices.numbers) != n_processes:
            text = f"-d {name} names {len(devices.numbers)} GPUs, and torchrun started"
            text += f" {n_processes} processes on this machine: use --nproc-per-node"
            raise UsageError(f"{text} {len(devices.numbers)}, or `-d cuda`")
        return f"cuda:{devices.numbers[local_rank()]}"
    if devices.kind == "cpu" or n_processes == 1:
        return devices_of(name)[0]
    if devices.kind not in ("auto", "cuda", "all", "n_gpu"):
        text = f"-d {name}: several processes train on CUDA devices, or on the CPU"
        raise UsageError(f"{text}; use `-d auto`, `-d cuda` or `-d cpu`")
    n_gpus = _n_gpus()
    if not n_gpus and devices.kind in ("auto", "n_gpu"):
        return "cpu"
    if n_gpus < n_processes:
        text = f"torchrun started {n_processes} processes on this machine, which has {n_gpus} CUDA"
        text += f" devices: use --nproc-per-node {max(n_gpus, 1)}, or `-d cpu`"
        raise UsageError(text)
    return f"cuda:{local_rank()}"


def start_processes(name: str, arguments: Sequence[str], alone: str | None = None) -> int | None:
    """Run this script again in a process for each device, and wait for their end.

    Args:
        name: the devices, as after ``-d``.
        arguments: the script's arguments, which each process gets.
        alone: the option for which one process is enough.

    Returns:
        the exit code of the process that failed first, 0 if none did; None if nothing was started,
        because one process is enough or torchrun started this one.

    Raises:
        UsageError: there are no such devices, or several with ``alone``.
    """
    if rank() is not None and not (alone and os.environ.get("WORLD_SIZE", "1") != "1"):
        return None
    if alone and (rank() is not None or len(devices_of(name)) > 1):
        text = f"{alone} runs in one process, whose steps have the gradients of several: use"
        raise UsageError(f"{text} `-d cpu` or the number of one GPU")
    devices = parse_devices(name)
    if not (devices.kind == "all" or devices.n_processes > 1 or len(devices.numbers) > 1):
        return None
    names = devices_of(name)
    if len(names) == 1:
        return None
    if fewer := fewer_than_n_gpu(name, names):
        print(f"warning: {fewer}", file=sys.stderr, flush=True)
    if devices.numbers and max(devices.numbers) >= _n_gpus():
        instead = "all" if _n_gpus() else f"cpu:{len(names)}"
        text = f"-d {name}: there are {_n_gpus()} CUDA devices here; use"
        raise UsageError(f"{text} `-d auto` or `-d {instead}`")
    given = _limit_threads(len(names))
    words = ["--standalone", "--nproc-per-node", str(len(names)), sys.argv[0], *arguments]
    print(f"starting {len(names)} processes: {given}{_torchrun()} {shlex.join(words)}", flush=True)
    return _run(len(names), ["-u", sys.argv[0], *arguments])


def _n_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _limit_threads(n_processes: int) -> str:
    """Share the cores among processes; return the assignment to print before the command."""
    if "OMP_NUM_THREADS" in os.environ:
        return ""
    os.environ["OMP_NUM_THREADS"] = str(max(1, round(free_cores()) // n_processes))
    return f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} "


def _torchrun() -> str:
    """Return the command of torchrun: that of this Python, if its folder is not in PATH."""
    ours = Path(sys.executable).with_name("torchrun")
    return shlex.quote(str(ours)) if shutil.which("torchrun") is None else "torchrun"


def _run(n_processes: int, arguments: Sequence[str]) -> int:
    """Run this Python with the arguments in several processes; return the exit code."""
    from torch.distributed.elastic.agent.server import WorkerSpec
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

    # The processes report their errors themselves; the agent would add its tables and tracebacks.
    logging.disable(logging.CRITICAL)
    parameters = RendezvousParameters(
        "c10d", "localhost:0", run_id=str(uuid.uuid4()), min_nodes=1, max_nodes=1
    )
    rendezvous = get_rendezvous_handler(parameters)
    spec = WorkerSpec(
        role="default_role",
        local_world_size=n_processes,
        entrypoint=sys.executable,
        args=tuple(arguments),
        rdzv_handler=rendezvous,
        max_restarts=0,
        monitor_interval=0.1,
    )
    agent = LocalElasticAgent(spec, DefaultLogsSpecs(os.devnull))
    _forward_signals(agent)
    try:
        return _exit_code(agent.run())
    except SignalException as error:  # of a torch that sets its own handlers
        return 128 + error.sigval
    finally:
        rendezvous.shutdown()


def _forward_signals(agent: SimpleElasticAgent) -> None:
    """Send the signals of this process to the others, once, and go on waiting for them.

    The agent's own handlers would kill them 30 s later, whatever they are saving.
    """
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ""

    def send(number: int, deadline: float) -> None:
        pids = [worker.id for worker in agent.get_worker_group().workers if worker.id]
        for pid in pids:
            try:
                os.kill(int(pid), number)
            except ProcessLookupError:
                continue
        if not pids and time.monotonic() > deadline:
            os._exit(128 + number)
        if not pids:  # they are being started
            threading.Timer(0.05, send, (number, deadline)).start()

    for name in FORWARDED:
        number = getattr(signal, name, None)
        is_ignored = number is None or signal.getsignal(number) is signal.SIG_IGN
        if number is not None and (name == "SIGUSR1" or not is_ignored):
            signal.signal(number, lambda n, _: send(n, time.monotonic() + PATIENCE_SECONDS))


def _exit_code(result: RunResult) -> int:
    """Return the exit code of the process that failed first, as a shell does."""
    if not result.failures:
        return 0
    first = min(result.failures.values(), key=lambda failure: failure.timestamp)
    if first.exitcode > 0:
        return first.exitcode
    number = -first.exitcode
    reason = " (as the system does when memory runs out)" if number == signal.SIGKILL else ""
    text = f"rank {first.local_rank} was ended by {signal.Signals(number).name}{reason}"
    print(text, file=sys.stderr, flush=True)
    return 128 + number
