"""Several processes: what DistributedDataParallel gives a run, and what is left when one of them dies."""

import os
import platform
import subprocess
import sys
import time

import psutil
import pytest
import torch
from conftest import ROOT
from short_run import ICT, words
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from diffusers_ict.processes import lost_processes, synchronized


def test_gradients_within_gradients_pass_through_the_wrapper_as_through_the_network(tmp_path):
    """As in the gradient penalty: two passes through the wrapper, one through the network, one backward pass."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 1))
        wrapped = DistributedDataParallel(net, gradient_as_bucket_view=True)
        x = torch.randn(6, 4)

        def gradients(call) -> list[torch.Tensor]:
            net.zero_grad()
            for part, last in ((x[:3], False), (x[3:], True)):
                with synchronized(call, last):
                    seen = part.clone().requires_grad_()
                    (inner,) = torch.autograd.grad(net(seen).sum(), seen, create_graph=True)
                    (call(part).sum() - call(part.flip(0)).square().sum() + inner.square().sum()).backward()
            return [parameter.grad.clone() for parameter in net.parameters()]

        for ours, plain in zip(gradients(wrapped), gradients(net), strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-7)
    finally:
        torch.distributed.destroy_process_group()


CLOSED = RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection closed by peer")


def test_errors_of_messages_are_told_from_others():
    assert lost_processes(CLOSED) == "another process of the run is gone"
    assert "is gone" in lost_processes(torch.distributed.DistBackendError("NCCL communicator was aborted"))
    assert lost_processes(RuntimeError("DataLoader worker (pid 7) is killed")) == "a process that loads data is gone"
    assert lost_processes(RuntimeError("CUDA out of memory")) is None


def test_lost_processes_are_named_by_their_ranks(monkeypatch):
    monkeypatch.setattr("diffusers_ict.processes.PATIENCE_SECONDS", 0.1)
    here, own = platform.node(), os.getpid()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as alive:
        dead = subprocess.Popen([sys.executable, "-c", ""])  # not waited for, so that it stays a zombie
        os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
        for peers, told in (
            ([own, alive.pid, dead.pid], "process 2 of the run is gone"),
            ([dead.pid, own, alive.pid, dead.pid], "processes [0, 3] of the run are gone"),
            ([own, alive.pid, alive.pid], "another process of the run is gone"),
            ([own, alive.pid], "process 1 of the run is gone"),  # it may be about to end
        ):
            monkeypatch.setattr("diffusers_ict.processes.PEERS", [(here, pid) for pid in peers])
            assert lost_processes(CLOSED) == told
        elsewhere = [(here, own), ("elsewhere", dead.pid), ("elsewhere", alive.pid)]
        monkeypatch.setattr("diffusers_ict.processes.PEERS", elsewhere)
        assert lost_processes(CLOSED) == "another process of the run is gone"
        alive.communicate(b"\n", timeout=60)
    dead.wait(timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["0", "1"])
def test_a_process_that_dies_ends_the_others_within_a_minute_with_a_sentence(victim, flags, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(ROOT / "train_scripts" / "train_ict.py"), *words(*ICT, *flags, "--max_train_steps", 100_000)]
    command += ["--checkpointing_steps", "100000", "--output_dir", str(tmp_path / "out")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1"}
    launcher = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "out" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") > 3):
        assert time.monotonic() < deadline
        assert launcher.poll() is None
        time.sleep(0.05)
    processes = {
        child.environ()["RANK"]: child
        for child in psutil.Process(launcher.pid).children(recursive=True)
        if "RANK" in child.environ()
    }
    assert processes.keys() == {"0", "1"}
    processes[victim].kill()
    _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode != 0
    assert f"train_ict.py: process {victim} of the run is gone; there is no checkpoint; the same command with" in errors
    assert not any(process.is_running() for process in processes.values())
