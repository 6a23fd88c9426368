"""Two machines on one: network namespaces with a wire between them, a name and a disk each. Linux, root, iproute2."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from provenance import ROOT

PORT = "29500"
# Each machine has a name, which resolves to its loopback address, as in many clouds, and asks nobody else for names.
BEGIN = """
mount --bind "$1" /etc/hosts && { [ ! -e /etc/resolv.conf ] || mount --bind /dev/null /etc/resolv.conf; } &&
hostname "$2" && shift 2 && exec "$@"
"""


def obstacle() -> str | None:
    """Why there can be no two machines here, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    if missing := [tool for tool in ("ip", "unshare", "mount") if shutil.which(tool) is None]:
        return f"no {missing[0]}: iproute2 and util-linux are needed"
    try:
        with Machines(Path(os.devnull)):
            return None
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not allowed: {error.stderr.strip()}"


class Machine:
    """One of them.

    Args:
        rank: its place in the run; base: folder of the disks.
    """

    def __init__(self, rank: int, base: Path) -> None:
        self.rank, self.name = rank, ("first", "second")[rank]
        self.space, self.wire = f"ict-{os.getpid()}-{self.name}", f"wire{rank}"
        self.disk, self.address = base / self.name, f"10.77.0.{rank + 1}"

    def launch(self, words: Sequence[str], log: Path) -> subprocess.Popen:
        """Train by `accelerate launch`, as its documentation has it for several machines; `log` holds what it says."""
        hosts = log.with_suffix(".hosts")
        hosts.write_text(f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n10.77.0.1 machine-1\n10.77.0.2 machine-2\n")
        command = ["ip", "netns", "exec", self.space, "unshare", "--uts", "--mount"]
        command += ["sh", "-c", BEGIN, "sh", str(hosts), self.name]
        command += [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--quiet", "--multi_gpu"]
        command += ["--num_machines", "2", "--num_processes", "2", "--machine_rank", str(self.rank)]
        command += ["--main_process_ip", "10.77.0.1", "--main_process_port", PORT]
        command += ["--num_cpu_threads_per_process", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += [str(ROOT / "train_scripts" / "train_ict.py"), *words, "--output_dir", str(self.disk / "out")]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "1"}
        with log.open("w") as told:
            return subprocess.Popen(command, env=environment, stdout=told, stderr=subprocess.STDOUT)

    def processes(self) -> list[int]:
        """The ids of all that runs on it."""
        return [int(word) for word in _ip("netns", "pids", self.space).split()]

    def kill(self) -> None:
        """End all that runs on it, at once."""
        for number in self.processes():
            os.kill(number, signal.SIGKILL)

    def unplug(self) -> None:
        """Take the wire out: what is sent from now on is lost, without a word to the sender."""
        _ip("-n", self.space, "link", "set", self.wire, "down")

    def plug_in(self) -> None:
        """Put the wire back."""
        _ip("-n", self.space, "link", "set", self.wire, "up")

    def terminate(self) -> None:
        """Ask its training process, not the launcher, to stop."""
        for number in self.processes():
            process = psutil.Process(number)
            if "RANK" in process.environ() and "train_ict.py" in " ".join(process.cmdline()):
                process.terminate()


class Machines:
    """Both, as a context: `first, second`.

    Args:
        base: folder of their disks.

    Raises:
        subprocess.CalledProcessError: this machine does not allow it.
    """

    def __init__(self, base: Path) -> None:
        self.both = Machine(0, base), Machine(1, base)

    def __enter__(self) -> tuple[Machine, Machine]:
        first, second = self.both
        try:
            for machine in self.both:
                _ip("netns", "add", machine.space)
            wire = ("link", "add", first.wire, "netns", first.space, "type", "veth")
            _ip(*wire, "peer", "name", second.wire, "netns", second.space)
            for machine in self.both:
                _ip("-n", machine.space, "addr", "add", f"{machine.address}/24", "dev", machine.wire)
                _ip("-n", machine.space, "link", "set", "lo", "up")
                machine.plug_in()
        except subprocess.CalledProcessError:
            self.__exit__()
            raise
        return self.both

    def __exit__(self, *exception: object) -> None:
        known = _ip("netns", "list")
        for machine in self.both:
            if machine.space in known:
                machine.kill()
                _ip("netns", "del", machine.space)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=60).stdout


def wait_until(true, seconds: float, processes: Sequence[subprocess.Popen] = ()) -> None:
    """Wait until a condition holds.

    Raises:
        TimeoutError: it does not in time, or one of the processes has ended before.
    """
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline or any(process.poll() is not None for process in processes):
            raise TimeoutError(
                f"not within {seconds} seconds, with processes {[process.poll() for process in processes]}"
            )
        time.sleep(0.005)
