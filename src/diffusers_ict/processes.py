"""Accelerate's processes: which kinds are supported, and how networks are trained on several."""

import importlib.util
import ipaddress
import os
import platform
import socket
import time
import warnings
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, DistributedType, InitProcessGroupKwargs, gather_object
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .errors import UserError, first_line

PEERS: list[tuple[str, int]] = []  # (machine, process id) of each process of the run, by rank
ON_CPUS: list[torch.distributed.ProcessGroup] = []  # of all processes of the run, if there are several: one
TIMEOUT_SECONDS = 3 * 3600  # that a process waits for the others: NCCL's ten minutes are less than work of one alone
PATIENCE_SECONDS = 2.0  # for a process to be seen as gone whose connections are
ANYWHERE = "192.0.2.1"  # an address that nobody has (RFC 5737): the way to it is the way to other machines
PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def make_accelerator(
    mixed_precision: str | None, report_to: str | None, folder: str, timeout: float = TIMEOUT_SECONDS
) -> Accelerator:
    """Accelerate's view of devices and processes.

    Args:
        timeout: seconds that a process waits for the others.

    Raises:
        UserError: the precision, the tracker or the way the processes were launched cannot be used here.
    """
    if report_to is not None and importlib.util.find_spec(report_to) is None:
        raise UserError(f"`report_to` {report_to} needs its library: pip install {report_to}.")
    choose_interface(os.environ)
    try:
        # Pinned batches are copied while the device computes.
        loading = DataLoaderConfiguration(non_blocking=True)
        accelerator = Accelerator(
            mixed_precision=mixed_precision,
            log_with=report_to,
            project_dir=folder,
            dataloader_config=loading,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=timeout))],
        )
    except (ValueError, ImportError) as error:
        raise UserError(f"accelerate cannot run with these settings: {first_line(error)}") from error
    if accelerator.mixed_precision == "fp8":
        raise UserError("`mixed_precision` may be no, fp16 or bf16, got fp8 from accelerate's config: give it here.")
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError(
            "`mixed_precision` fp16 does not exist on CPUs, where accelerate would compute in float32; use bf16 or no."
        )
    check_processes(accelerator)
    PEERS[:] = gather_object([(platform.node(), os.getpid())]) if accelerator.num_processes > 1 else []
    return accelerator


def connect_cpus(accelerator: Accelerator) -> None:
    """Make the group in which processes agree without their devices. To be called first, while all are there.

    A process that dies later is noticed by its connections; one that died before them would be waited for.
    """
    ON_CPUS[:] = [torch.distributed.new_group(backend="gloo")] if accelerator.num_processes > 1 else []


def on_several_machines(environment: Mapping[str, str]) -> bool:
    """Whether a launcher says that a run has processes on other machines, too."""
    processes = int(environment.get("WORLD_SIZE", "1"))
    return processes > int(environment.get("LOCAL_WORLD_SIZE", processes))


def choose_interface(environment: MutableMapping[str, str]) -> None:
    """Tell gloo by which network interface this machine reaches the others, unless the user has.

    Gloo takes the address that the machine's own name resolves to. In many clouds and containers that is the loopback
    address or none, and the machines never meet. The votes of processes go through gloo also where NCCL trains.
    """
    if "GLOO_SOCKET_IFNAME" in environment or not on_several_machines(environment):
        return
    # The name of the first machine may be a loopback address on itself.
    for target in (environment.get("MASTER_ADDR", ANYWHERE), ANYWHERE):
        name = interface_to(target)
        if name is not None:
            environment["GLOO_SOCKET_IFNAME"] = name
            return


def interface_to(host: str) -> str | None:
    """The network interface by which packets to a host leave, or None if it is the loopback or there is none."""
    try:
        (family, kind, _, _, address), *_ = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # of datagrams: nothing is sent
            own = ipaddress.ip_address(probe.getsockname()[0])
    except OSError:
        return None
    if own.is_loopback:
        return None
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, held in interfaces if str(own) in (address.address for address in held)), None)


def best_device() -> torch.device:
    """Where a program that is a single process computes: on the GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def in_precision(net: nn.Module, accelerator: Accelerator) -> Callable:
    """The network's call under the run's mixed precision; all arithmetic around it stays in float32.

    By `torch.autocast`, which can be compiled; accelerate's own context cannot.
    """
    precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
    if precision is None:
        return net

    def call(*args, **kwargs):
        with torch.autocast(accelerator.device.type, precision):
            return net(*args, **kwargs)

    return call


def check_processes(accelerator: Accelerator) -> None:
    """Check that accelerate sees the processes that were launched, each with a full copy of the model.

    Raises:
        UserError: several were launched that do not know of each other (`accelerate launch --cpu` does that), or a
            sharding backend is configured.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1 and accelerator.num_processes == 1:
        raise UserError(
            f"{launched} processes were launched but each runs alone; on CPUs set ACCELERATE_USE_CPU=1 and launch with "
            f"torchrun --nproc_per_node {launched}."
        )
    if accelerator.distributed_type not in PLAIN:
        raise UserError(
            f"training runs on one process or on several with full copies of the model, got "
            f"{accelerator.distributed_type.value}; change it with accelerate config."
        )


def distributed(net: nn.Module, accelerator: Accelerator) -> nn.Module:
    """The network as its training passes call it: among several processes, DistributedDataParallel around it.

    That gives all processes the weights of the first, and averages gradients while the backward pass still runs;
    gradients within gradients, of which a penalty is made, are left alone. Not by `accelerator.prepare`, which would
    write its mixed precision into the network's own `forward`: penalties, teachers and samples call that one, too.
    """
    if accelerator.num_processes == 1:
        return net
    torch._dynamo.config.optimize_ddp = False  # a compiled network stays one graph
    device = None if accelerator.device.type == "cpu" else [accelerator.device]
    # Looking for unused parameters keeps the buckets of gradients as they are. Else they are made anew after the first
    # step, and the first step of a resumed run would add in another order. Gradients that are views of the buckets stay
    # where they are.
    warnings.filterwarnings("ignore", "find_unused_parameters=True was specified", UserWarning)
    return DistributedDataParallel(net, device_ids=device, gradient_as_bucket_view=True, find_unused_parameters=True)


def synchronized(net: nn.Module, last: bool) -> AbstractContextManager:
    """Around the forward and backward pass of a micro batch: only the last of a step sends gradients, all at once."""
    return nullcontext() if last or not isinstance(net, DistributedDataParallel) else net.no_sync()


def lost_processes(error: RuntimeError) -> str | None:
    """Which processes have died where an error says that some have, of the run, by gloo or NCCL, or of its data.

    Those on this machine are named by their ranks. Of two processes the other one is meant, wherever it ran.
    """
    words = str(error)
    if "DataLoader worker" in words:
        return "a process that loads data is gone"
    if not (isinstance(error, torch.distributed.DistError) or "gloo" in words):
        return None
    if "connectFullMesh" in words:
        return "the processes cannot reach each other; set GLOO_SOCKET_IFNAME to the machines' network interface"
    here, own = platform.node(), os.getpid()
    others = [rank for rank, peer in enumerate(PEERS) if peer != (here, own)]
    near = [rank for rank in others if PEERS[rank][0] == here]
    lost, deadline = others if len(others) == 1 else [], time.monotonic() + PATIENCE_SECONDS
    while near and not lost and time.monotonic() < deadline:
        lost = [rank for rank in near if _is_gone(PEERS[rank][1])]
        time.sleep(0.05)
    if not lost:
        return "another process of the run is gone"
    return f"process {lost[0]} of the run is gone" if len(lost) == 1 else f"processes {lost} of the run are gone"


def _is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
