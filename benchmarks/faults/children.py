"""Programs in forked children: ready in milliseconds, because the parent has imported everything.

The parent computes nothing with torch, whose thread pools do not survive a fork.
"""

import contextlib
import ctypes
import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.hf_api
import psutil

HANG_SECONDS = 300.0
CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}  # audit events; those of `open` that write
LIBC = ctypes.CDLL(None, use_errno=True)


class Lost(Exception):
    """A promise that was not kept; the message says which."""


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code, or minus the signal; what it printed; the seconds it took."""

    code: int
    output: str
    seconds: float

    def check(self, *codes: int) -> "Ended":
        """This child, if it ended in one of these ways, without a traceback.

        Raises:
            Lost: it ended otherwise.
        """
        if self.code not in codes or "Traceback" in self.output:
            raise Lost(f"exit code {self.code} instead of {codes}: {self.output[-2000:]}")
        return self


def adopt_orphans() -> None:
    """Become the parent of every descendant that loses its own, so that `descendants` shows them. Linux only."""
    if sys.platform == "linux":
        LIBC.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


class Child:
    """A function that returns an exit code, started in a forked process of its own session.

    Args:
        place: folder of its output and its temporary files.
        environment: variables that it has beside those of this process.
    """

    def __init__(self, body: Callable[[], int | None], place: Path, environment: dict[str, str] | None = None) -> None:
        self.temporary = place / "tmp"
        self.temporary.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=place, prefix="output-")
        self.printed, self.started = Path(name), time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become(body, handle, {"TMPDIR": str(self.temporary), **(environment or {})})
        os.close(handle)

    def wait(self, seconds: float = HANG_SECONDS, kill: bool = False) -> Ended:
        """Wait until it ends; after so many seconds it is killed, which is a hang unless that was wanted.

        Raises:
            Lost: it hangs.
        """
        deadline = time.monotonic() + seconds
        while (found := os.waitpid(self.pid, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
            time.sleep(0.002)
        hangs = found[0] == 0
        if hangs:
            self.signal(signal.SIGKILL)
            found = os.waitpid(self.pid, 0)
        output = self.printed.read_text("utf-8", "replace")
        self.printed.unlink()
        if hangs and not kill:
            raise Lost(f"it hangs, and was ended after {seconds:g} seconds: {output[-2000:]}")
        return Ended(os.waitstatus_to_exitcode(found[1]), output, time.monotonic() - self.started)

    def signal(self, number: int) -> None:
        """Send it a signal. It has not been waited for, so that its id is still its own."""
        os.kill(self.pid, number)


def _become(body: Callable[[], int | None], handle: int, environment: dict[str, str]) -> None:
    """Be the child: never returns."""
    os.setsid()
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ.update(environment)
    importlib.reload(huggingface_hub.constants)  # variables that it read when this program was started
    huggingface_hub.hf_api.api.endpoint = huggingface_hub.constants.ENDPOINT
    tempfile.tempdir = environment["TMPDIR"]
    code = 70
    try:
        code = body() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def in_child(body: Callable[[], int | None], place: Path) -> Ended:
    """Run a function that returns an exit code in a child, to its end."""
    return Child(body, place).wait()


def descendants(patience: float = 10.0) -> list[str]:
    """The command lines of processes that are left of all children, after a moment in which they may end."""
    deadline = time.monotonic() + patience
    while (left := psutil.Process().children(recursive=True)) and time.monotonic() < deadline:
        for process in left:
            if process.status() == psutil.STATUS_ZOMBIE and process.ppid() == os.getpid():
                process.wait(timeout=60)
        time.sleep(0.01)
    return [" ".join(process.cmdline()) for process in left]


def end_descendants() -> None:
    """End what a trial that lost has left running."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    descendants()


def at_changes(root: Path, act: Callable[[int, str, str], object]) -> None:
    """Call `act` before every change of a file under `root`, from now on, in this process.

    A change is the opening of a file that is written to, a new name, a removal, or a new or removed folder; and the
    writing of safetensors. What `act` raises, the change raises.

    Args:
        act: called with the number of the change (from 0), its kind, and the path, relative to `root`.
    """
    number, busy, own = 0, False, str(root.resolve()) + os.sep

    def change(kind: str, path: str) -> None:
        nonlocal number, busy
        if busy or not path.startswith(own) or _changes_nothing(kind, path):
            return
        number, busy = number + 1, True
        try:
            act(number - 1, kind, path.removeprefix(own))
        finally:
            busy = False

    def hook(event: str, arguments: tuple) -> None:
        if event in CHANGES and not busy and isinstance(arguments[0], (str, Path)):
            if event != "open":
                change(event.removeprefix("os."), _absolute(event, arguments))
            elif (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                change(event, str(arguments[0]))

    import safetensors.torch

    write = safetensors.torch.serialize_file  # writes in Rust, which Python does not see

    def serialize_file(tensors: object, filename: object, *args: object, **kwargs: object) -> None:
        change("write", str(filename))
        write(tensors, filename, *args, **kwargs)

    safetensors.torch.serialize_file = serialize_file
    sys.addaudithook(hook)


def _absolute(event: str, arguments: tuple) -> str:
    """The path that an operation changes; relative ones belong to the descriptor of a folder."""
    path, folder = str(arguments[0]), arguments[2 if event in ("os.rename", "os.mkdir") else 1]
    return path if folder == -1 else os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)


def _changes_nothing(kind: str, path: str) -> bool:
    """Whether a folder is made that exists, or a file removed that does not."""
    return os.path.lexists(path) if kind == "mkdir" else kind == "remove" and not os.path.lexists(path)


def recorded(
    body: Callable[[], int | None], root: Path, place: Path, environment: dict[str, str] | None = None
) -> tuple[list[tuple[str, str]], float]:
    """The changes of files under `root` that a function makes in a child, (kind, path) in order, and its seconds."""

    def recording() -> int | None:
        record = os.open(place / "changes", os.O_CREAT | os.O_WRONLY)
        at_changes(root, lambda _, kind, path: os.write(record, f"{json.dumps([kind, path])}\n".encode()))
        return body()

    ended = Child(recording, place, environment).wait().check(0)
    return [tuple(json.loads(line)) for line in (place / "changes").read_text().splitlines()], ended.seconds


def kill_at(number: int) -> Callable[[int, str, str], None]:
    """For `at_changes`: ends this very process by SIGKILL before change `number`."""

    def act(count: int, kind: str, path: str) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return act
