"""Signals that ask a run to stop: to the process, to its launcher, or to both."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import psutil
from provenance import ROOT

from diffusers_ict.training import checkpoint
from diffusers_ict.training.log import JSONLines

from .children import HANG_SECONDS, Lost, in_child
from .compare import check_same, content
from .several import SHORT, _whole, train
from .workshop import LOSSES, STEPS, Fault, Workshop

ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
# A checkpoint of the step at which it was stopped takes the place of a regular one.
CHECKPOINTS = r"^checkpoint-"
LAUNCHED = "--quiet --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no".split()


def to_the_process(shop: Workshop, place: Path, number: int, random: Random) -> int:
    """Send a signal after a random step: exit code 3 and a checkpoint of that very step; then go on to the end."""
    loss, at, asking = list(LOSSES)[number % 3], random.randrange(1, STEPS - 1), ASKING[number // 3 % len(ASKING)]
    whole = shop.whole(loss)

    def body() -> int:
        write = JSONLines.write
        signal.signal(asking, signal.SIG_DFL)  # not ignored, as below `nohup`; the run sets its own

        def writing(self: JSONLines, entry: dict) -> None:
            write(self, entry)
            if entry["step"] == at:
                os.kill(os.getpid(), asking)

        JSONLines.write = writing  # type: ignore[method-assign]
        return shop.train(loss, place / "out")

    in_child(body, place).check(3)
    _check_stopped(place / "out", at + 1)
    shop.finish(loss, place)
    _check_end(whole.folder, place / "out")
    return 1


def reader_gone(shop: Workshop, place: Path, number: int, random: Random) -> int:
    """Close the pipe that a run prints into after a random step: it goes on to the same end."""
    loss, at = list(LOSSES)[number % 3], random.randrange(STEPS - 1)

    def body() -> int:
        write, (reader, writer) = JSONLines.write, os.pipe()
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as in any Python
        for stream in (1, 2):
            os.dup2(writer, stream)
        os.close(writer)

        def writing(self: JSONLines, entry: dict) -> None:
            write(self, entry)
            if entry["step"] == at:
                os.close(reader)

        JSONLines.write = writing  # type: ignore[method-assign]
        return shop.train(loss, place / "out")

    in_child(body, place).check(0)
    check_same(shop.whole(loss).folder, place / "out")
    return 1


def _check_stopped(out: Path, *steps: int) -> None:
    """Check that the newest checkpoint is of one of these steps, and of the last step that was done.

    Raises:
        Lost: it is not.
    """
    newest, done = checkpoint.load(checkpoint.list_checkpoints(out)[0]).state["step"], content(out / "log.jsonl")
    if newest != done[-1]["step"] or (steps and newest not in steps):
        raise Lost(f"the newest checkpoint is of step {newest}, the last step {done[-1]['step']}, asked at {steps}")


def _check_end(whole: Path, out: Path) -> None:
    """Check the end of a run that was stopped: as the undisturbed one, except for which older checkpoints there are.

    Raises:
        Lost: it is not.
    """
    check_same(whole, out, ignore=CHECKPOINTS)
    newest = checkpoint.list_checkpoints(whole)[0].name
    check_same(whole / newest, out / newest)


def launched(command: list[str], loss: str, shop: Workshop, place: Path, *more: object) -> subprocess.Popen:
    """A training run by a launcher, in a session of its own."""
    script = str(ROOT / "train_scripts" / "train_ict.py")
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "TMPDIR": str(place / "tmp"), "GLOO_SOCKET_IFNAME": "lo"}
    (place / "tmp").mkdir()
    words = [*command, script, *shop.command(loss, place / "out", *more)]
    with (place / "printed").open("w") as printed:
        return subprocess.Popen(words, env=environment, stdout=printed, stderr=printed, start_new_session=True)


def send(target: str, number: int, launcher: subprocess.Popen) -> None:
    """Send a signal to a launcher, to one process that it launched, or to the group of all."""
    children = psutil.Process(launcher.pid).children(recursive=True)
    if target == "group":
        os.killpg(launcher.pid, number)
    elif target == "launcher":
        launcher.send_signal(number)
    else:
        next(child for child in children if "train_ict.py" in " ".join(child.cmdline())).send_signal(number)


def _wait_for_steps(steps: int, place: Path, launcher: subprocess.Popen) -> None:
    """Wait until a launched run has logged so many steps.

    Raises:
        Lost: it ends before that, or hangs.
    """
    log, deadline = place / "out" / "log.jsonl", time.monotonic() + HANG_SECONDS
    while not log.exists() or log.read_text().count("\n") < steps:
        if launcher.poll() is not None or time.monotonic() > deadline:
            raise Lost(f"it ended by itself ({launcher.poll()}), or hangs: {(place / 'printed').read_text()[-2000:]}")
        time.sleep(0.005)


def by_launcher(target: str, command: list[str], count: int) -> Callable[[Workshop, Path, int, Random], int]:
    """A trial that sends SIGTERM to `target` of a launched run after a random step; then goes on to the end."""

    def trial(shop: Workshop, place: Path, number: int, random: Random) -> int:
        loss = list(LOSSES)[number % 3]
        own = [] if count == 1 else [*SHORT, "--train_batch_size", 4 // count]
        launcher = launched(command, loss, shop, place, *own)
        _wait_for_steps(random.randrange(1, 4), place, launcher)
        send(target, signal.SIGTERM, launcher)
        launcher.wait(HANG_SECONDS)
        shop.check_alone()
        for logs in (place / "tmp").glob("torchelastic_*"):  # torchrun's own
            shutil.rmtree(logs)
        stopped = bool(checkpoint.list_checkpoints(place / "out"))
        if stopped:
            _check_stopped(place / "out")
        if count == 1:
            shop.finish(loss, place)
            _check_end(shop.whole(loss).folder, place / "out")
        else:
            train(shop, count, loss, place)
            _check_end(_whole(shop, count, loss), place / "out")
        if not stopped:
            raise Lost("no checkpoint was written")
        return 1

    return trial


ACCELERATE = [str(Path(sys.executable).parent / "accelerate"), "launch", *LAUNCHED]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
TARGETS = ("child", "launcher", "group")

FAULTS = [
    Fault("SIGTERM, SIGINT, SIGUSR1 or SIGHUP to the process", 36, to_the_process),
    Fault("the reader of what a run prints goes away", 9, reader_gone),
    *(Fault(f"SIGTERM, accelerate launch: {where}", 3, by_launcher(where, ACCELERATE, 1), 0) for where in TARGETS),
    *(
        Fault(f"SIGTERM, torchrun with 2 processes: {where}", 3, by_launcher(where, TORCHRUN, 2), 0)
        for where in TARGETS
    ),
]
