"""Several processes: what DistributedDataParallel gives a run, and what is left when one of them dies."""

import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import psutil
import pytest
import torch
from conftest import ROOT, write_npz
from faults.several import free_port
from short_run import ICT, assert_bitwise_equal, assert_refused, words
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from diffusers_ict.processes import choose_interface, interface_to, lost_processes, synchronized
from diffusers_ict.training.interruption import Interruption


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
    unmet = RuntimeError("Gloo connectFullMesh failed with [gloo/transport/tcp/pair.cc:152] timed out connecting")
    assert "set GLOO_SOCKET_IFNAME" in lost_processes(unmet)
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


def test_the_interface_to_other_machines_is_chosen_where_the_user_has_not(monkeypatch):
    interfaces = {"127.0.0.1": None, "10.0.0.1": "eth1", "192.0.2.1": "eth0"}
    monkeypatch.setattr("diffusers_ict.processes.interface_to", interfaces.get)
    several = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    for given, chosen in (
        ({}, None),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1"}, None),
        ({**several, "MASTER_ADDR": "10.0.0.1"}, "eth1"),
        ({**several, "MASTER_ADDR": "127.0.0.1"}, "eth0"),  # what the first machine calls itself
        ({**several, "MASTER_ADDR": "10.0.0.1", "GLOO_SOCKET_IFNAME": "ib0"}, "ib0"),
    ):
        choose_interface(given)
        assert given.get("GLOO_SOCKET_IFNAME") == chosen


def test_the_loopback_and_names_of_nobody_lead_to_no_other_machine(monkeypatch):
    assert interface_to("127.0.0.1") is None

    def unknown(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)  # a real question would leave this machine
    assert interface_to("no-such-machine.invalid") is None


def two_that_train(*flags) -> tuple[subprocess.Popen, dict[str, psutil.Process]]:
    """A launcher of a long run, and its two processes by rank, once they have trained a few steps."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(ROOT / "train_scripts" / "train_ict.py"), *words(*ICT, *flags, "--max_train_steps", 100_000)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1"}
    launcher = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for_steps(Path(flags[-1]) / "log.jsonl", [launcher])
    children = psutil.Process(launcher.pid).children(recursive=True)
    processes = {child.environ()["RANK"]: child for child in children if "RANK" in child.environ()}
    assert processes.keys() == {"0", "1"}
    return launcher, processes


def wait_for_steps(log: Path, processes: list[subprocess.Popen]) -> None:
    """Wait until a run has logged a few steps."""
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") > 3):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["0", "1"])
def test_a_process_that_dies_ends_the_others_within_a_minute_with_a_sentence(victim, flags, tmp_path):
    launcher, processes = two_that_train(*flags, "--checkpointing_steps", 100000, "--output_dir", tmp_path / "out")
    processes[victim].kill()
    _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode != 0
    assert f"train_ict.py: process {victim} of the run is gone; there is no checkpoint; the same command with" in errors
    assert not any(process.is_running() for process in processes.values())


STUCK = """
import signal, sys, time, types
from diffusers_ict.training import interruption
interruption.STUCK_SECONDS = 0.5
alone = types.SimpleNamespace(num_processes=1)
with interruption.Interruption(alone, farewell=lambda: "a step is stuck; checkpoint-5 is the newest\\n") as run:
    run.begin_step()
    if sys.argv[1] == "between":
        assert run.reason(0) is None
    signal.raise_signal(signal.SIGTERM)
    if sys.argv[1] == "vote":
        run.group, run.ballot = object(), (None, types.SimpleNamespace(wait=lambda: time.sleep(2)))
        run.reason(0)
    time.sleep(2)
    if sys.argv[1] == "between":
        run.begin_step()
    print(run.reason(1))
"""


@pytest.mark.parametrize(
    ("where", "code", "told"),
    [
        ("within", 3, "a step is stuck; checkpoint-5 is the newest\n"),
        ("vote", 3, "a step is stuck; checkpoint-5 is the newest\n"),
        ("between", 0, ""),
    ],
)
def test_a_signal_ends_a_step_that_is_stuck_and_no_other_work(where, code, told):
    ended = subprocess.run(
        [sys.executable, "-c", STUCK, where], capture_output=True, text=True, check=False, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (code, told)
    assert ended.stdout == ("" if code else "received SIGTERM\n")


@pytest.mark.parametrize("several", [True, False])
def test_a_process_whose_run_has_failed_says_so_before_its_launcher_ends_it(several, monkeypatch):
    """The launcher ends all processes when one has died, while the others find out by their connections."""
    monkeypatch.setattr("diffusers_ict.training.interruption.ON_CPUS", [object()])
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        run = Interruption(types.SimpleNamespace(num_processes=1 + several))
        with pytest.raises(RuntimeError, match="gloo"), run:
            raise RuntimeError("gloo: connection closed by peer")
        signal.raise_signal(signal.SIGTERM)
        assert len(heard) == 1 - several
        signal.raise_signal(signal.SIGTERM)
        assert len(heard) == 2 - several
    finally:
        signal.signal(signal.SIGTERM, before)


FORKED = """
import os, signal, time, types
from diffusers_ict.training import interruption
with interruption.Interruption(types.SimpleNamespace(num_processes=1)) as run:
    child = os.fork()
    if child == 0:
        time.sleep(55)
        os._exit(0)
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
"""


def test_a_run_ends_while_a_process_that_it_forked_goes_on():
    """As the workers of a DataLoader do until nobody holds it."""
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=60)


@pytest.mark.slow
def test_a_signal_ends_a_process_that_waits_for_one_that_does_nothing(flags, tmp_path):
    """Its main thread is in a library, which Python's handlers of signals wait for."""
    launcher, processes = two_that_train(*flags, "--checkpointing_steps", 3, "--output_dir", tmp_path / "out")
    processes["1"].suspend()
    time.sleep(2)
    processes["0"].terminate()
    processes["0"].wait(timeout=100)
    processes["1"].resume()
    _, errors = launcher.communicate(timeout=60)
    assert "stopped by a signal in a step that did not end within a minute; checkpoint-" in errors
    assert not any(process.is_running() for process in processes.values())


def test_precisions_and_accumulation_of_the_config_that_a_run_does_not_have_are_refused(
    flags, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    message = "asks for 4 accumulation steps and the run has 2: give --gradient_accumulation_steps 4"
    assert_refused(tmp_path, capsys, message, *ICT, *flags, "--output_dir", tmp_path / "out")


def on_nodes(*flags_of_each: list[str]) -> list[subprocess.Popen]:
    """Processes as a cluster starts them: no launcher, their places in the environment."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    count = str(len(flags_of_each))
    shared |= {"ACCELERATE_USE_CPU": "1", "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    script = str(ROOT / "train_scripts" / "train_ict.py")
    return [
        subprocess.Popen(
            [sys.executable, script, *words(*flags)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, flags in enumerate(flags_of_each)
    ]


def ended(processes: list[subprocess.Popen]) -> tuple[list[int], list[str]]:
    """Exit codes, and what was said."""
    errors = [process.communicate(timeout=300)[1] for process in processes]
    return [process.returncode for process in processes], errors


@pytest.mark.slow
def test_processes_that_a_cluster_starts_stop_together_and_go_on(flags, tmp_path):
    """As examples/slurm.sh has it, with SIGTERM to each of them."""
    own = [*ICT, *flags, "--max_train_steps", 60, "--checkpointing_steps", 1000, "--resume_from_checkpoint", "latest"]
    own += ["--output_dir", tmp_path / "out"]
    processes = on_nodes(own, own)
    wait_for_steps(tmp_path / "out" / "log.jsonl", processes)
    for process in processes:
        process.terminate()
    codes, errors = ended(processes)
    assert codes == [3, 3], errors
    assert "received SIGTERM, and stopped after step" in errors[0]
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] != ["checkpoint-60"]
    codes, errors = ended(on_nodes(own, own))
    assert codes == [0, 0], errors
    assert (tmp_path / "out" / "model_index.json").is_file()


@pytest.mark.slow
def test_machines_with_disks_of_their_own_go_on_from_that_of_the_first(flags, tmp_path):
    own = [*ICT, *flags, "--max_train_steps", 12]
    whole = [*own, "--output_dir", tmp_path / "whole"]
    codes, errors = ended(on_nodes(whole, whole))
    assert codes == [0, 0], errors

    def disks(*more) -> list[list]:
        return [[*own, "--output_dir", tmp_path / disk / "out", *more] for disk in ("first", "second")]

    codes, errors = ended(on_nodes(*disks("--max_train_minutes", 1e-9)))
    assert codes == [3, 3], errors
    shutil.rmtree(tmp_path / "second", ignore_errors=True)
    codes, errors = ended(on_nodes(*disks("--resume_from_checkpoint", "latest")))
    assert codes == [0, 0], errors
    assert_bitwise_equal(tmp_path / "whole", tmp_path / "first" / "out")
    assert not list((tmp_path / "second").rglob("checkpoint-*"))


@pytest.mark.slow
def test_machines_with_other_images_are_refused_together(flags, tmp_path):
    other = write_npz(tmp_path / "other.npz", count=60)
    own = [*ICT, *flags, "--output_dir", tmp_path / "out"]
    codes, errors = ended(on_nodes(own, [*own, "--dataset_name", other]))
    assert codes == [2, 2], errors
    assert all("process 1 has other values than process 0 of" in error and "images" in error for error in errors)
    assert not (tmp_path / "out").exists()
