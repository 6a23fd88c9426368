"""Machines that vanish with their disk while training checkpoints are uploaded: by a bad Hub, and by two writers.

The same command in an empty folder goes on from what the Hub has. Each commit of the repository is held to its
manifests, and their steps never go back.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import huggingface_hub.file_download
import psutil
from hub_stand_in import FAULTS as MISBEHAVIOURS

from diffusers_ict.commands import publish
from diffusers_ict.hub import background, checkpoint_on_hub
from diffusers_ict.training.log import Metrics

from .children import Child, Ended, Lost
from .compare import check_same
from .hub import NAME, HubAside
from .workshop import STEPS, Fault, Workshop

PUSH = ["--push_to_hub", "--hub_model_id", NAME, "--hub_strategy"]
PACE = 0.25  # seconds of a step, so that uploads come while a run goes on
SILENCE = 2.0  # seconds that a silent Hub is waited for
UPLOAD = 20.0  # seconds until an upload is given up
# What differs: settings of the repository, and which checkpoints before the last a run has.
DIFFERENT = rf"^(recipe.yaml|README.md|pipeline.py|checkpoint-(?!{STEPS}/).*)$"
KINDS = ("ict", "act", "stream", "averages")


class Forked:
    """In the place of `subprocess.Popen`: `diffusers-ict publish` in a fork, ready at once."""

    def __init__(self, command: Sequence[str], stderr: Any, **others: Any) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        code = 70
        try:
            os.setsid()
            os.dup2(stderr.fileno(), 1)
            os.dup2(stderr.fileno(), 2)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            code = publish.main(command[command.index("publish") + 1 :])
        finally:
            sys.stderr.flush()
            os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None and (found := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.returncode = os.waitstatus_to_exitcode(found[1])
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (3600.0 if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("publish", timeout or 0.0)
            time.sleep(0.005)
        return code

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _flags(shop: Workshop, kind: str) -> list[str]:
    """The loss, and the flags of a kind of run beside those of the workshop."""
    stream = shop.base / "stream"
    if not stream.exists():
        stream.mkdir()
        shutil.copy(shop.base / "data.npz", stream)
    streaming = ["--dataset_name", str(stream), "--streaming", "--shuffle_buffer", "10"]
    own = {"stream": streaming, "averages": ["--ema_snapshot_steps", "3"]}
    return ["act" if kind == "act" else "ict", *own.get(kind, [])]


def _start(shop: Workshop, place: Path, hub: HubAside, out: Path, words: Sequence[str]) -> Child:
    """Begin, or go on with, a run that uploads its training checkpoints."""

    def body() -> int:
        count = Metrics.count_step

        def slowly(self: Metrics, images: int) -> None:
            time.sleep(PACE)
            count(self, images)

        Metrics.count_step = slowly  # type: ignore[method-assign]
        own = {name: getattr(subprocess, name) for name in ("DEVNULL", "TimeoutExpired")}
        background.subprocess = SimpleNamespace(Popen=Forked, **own)  # type: ignore[assignment]
        background.BackgroundPublisher.timeout = UPLOAD
        checkpoint_on_hub.ANSWER_SECONDS = SILENCE
        huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT = huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT = SILENCE
        huggingface_hub.file_download._ETAG_RETRY_TIMEOUT = SILENCE
        loss, *more = words
        return shop.train(loss, out, *more)

    return Child(body, place, hub.environment(place))


def _wait_for_upload(hub: HubAside, child: Child) -> int:
    """Wait until the Hub has a training checkpoint; its steps."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for folder in ("last-checkpoint", "checkpoint-2", "checkpoint-4"):
            if (state := _get(hub, f"/{NAME}/resolve/main/{folder}/state.json")) is not None:
                return state["step"]
        time.sleep(0.02)
    raise Lost(f"no training checkpoint came to the Hub: {child.wait(0.0, kill=True).output[-2000:]}")


def _get(hub: HubAside, path: str) -> Any:
    """The JSON at a path of the Hub, or None where it has none."""
    try:
        with urllib.request.urlopen(hub.address + path, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError:
        return None


def _go_on(shop: Workshop, place: Path, hub: HubAside, words: Sequence[str], least: int) -> None:
    """The same command in an empty folder: it goes on from the Hub, and ends as the undisturbed run.

    Raises:
        Lost: it does not, or has fewer steps to go on from than `least`.
    """
    ended = _start(shop, place, hub, place / "out", words).wait().check(0)
    found = re.search(r"on the Hub, after (\d+) of", ended.output)
    if found is None or int(found[1]) < least:
        raise Lost(f"the Hub had {least} steps, and the run went on from {found and found[1]}: {ended.output[-2000:]}")
    loss, *more = (word for word in words if word not in PUSH and word not in ("checkpoint", "all_checkpoints"))
    check_same(shop.whole(loss, *more).folder, place / "out", ignore=DIFFERENT)
    _check_commits(hub)
    shop.check_alone()
    if left := list((place / "out").glob(".*.tmp")):
        raise Lost(f"left over {left}")


def _check_commits(hub: HubAside) -> None:
    steps = hub.end()["steps"]
    if torn := [told for told in steps if isinstance(told, str)]:
        raise Lost(f"torn: {torn}")
    if steps != sorted(steps) or steps[-1] != STEPS:
        raise Lost(f"the steps on the Hub, commit by commit: {steps}")


def vanishes(shop: Workshop, place: Path, number: int, random: Random) -> int:
    """Kill a run while the Hub misbehaves at one of its calls, and delete its folder; go on when it behaves again.

    Half of the uploads that were under way go on beside the next run, as those of another machine would. Half of the
    trials try to go on before the Hub behaves: the run is refused, or ends as ever.
    """
    name, kind = list(MISBEHAVIOURS)[number % len(MISBEHAVIOURS)], KINDS[number % len(KINDS)]
    words = [*_flags(shop, kind), *PUSH, ("checkpoint", "all_checkpoints")[number // 2 % 2]]
    hub = HubAside(place / "hub", fault=name, late=True)
    child = _start(shop, place, hub, place / "out", words)
    least = _wait_for_upload(hub, child)
    hub.misbehave()
    child.wait(random.uniform(0, 2 * STEPS * PACE), kill=True).check(0, -signal.SIGKILL)
    shutil.rmtree(place / "out")
    if random.random() < 0.5:
        _end_uploads(hub)
    if random.random() < 0.5:
        early = _start(shop, place, hub, place / "out", words).wait().check(0, 2)
        _check_refused(early, place / "out")
        shutil.rmtree(place / "out", ignore_errors=True)
    hub.heal()
    _go_on(shop, place, hub, words, least)
    return 1


def _end_uploads(hub: HubAside) -> None:
    """End all that the machine ran, but for the Hub, which is elsewhere."""
    uploads = [process for process in psutil.Process().children(recursive=True) if process.pid != hub.child.pid]
    for process in uploads:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(uploads, timeout=60)


def _check_refused(ended: Ended, out: Path) -> None:
    if ended.code == 2 and out.exists() and list(out.iterdir()) != []:
        raise Lost(f"refused, and it left {list(out.iterdir())}")
    if ended.code == 2 and "start again" not in ended.output:
        raise Lost(f"refused, and not because of the Hub: {ended.output[-2000:]}")


def two_writers(shop: Workshop, place: Path, number: int, random: Random) -> int:
    """Two machines begin one run, or two runs, with one repository; one is killed. Go on with what the Hub has."""
    kind, other = KINDS[number % len(KINDS)], number % 3 == 0
    common = [*_flags(shop, kind), *PUSH, ("checkpoint", "all_checkpoints")[number // 2 % 2]]
    commands = [common, [*common, "--seed", "1"] if other else common]
    hub = HubAside(place / "hub")
    children = []
    for which, words in enumerate(commands):
        children.append(_start(shop, place, hub, place / f"machine-{which}", words))
        time.sleep(random.uniform(0, STEPS * PACE / 2))
    least = _wait_for_upload(hub, children[0])
    killed = random.randrange(2)
    children[killed].wait(random.uniform(0, STEPS * PACE), kill=True).check(0, 2, -signal.SIGKILL)
    last = children[1 - killed].wait().check(0, *[2] * other)
    if last.code == 2 and not re.search("another run|made with seed", last.output):
        raise Lost(f"refused, and not because of the other run: {last.output[-2000:]}")
    state = _get(hub, f"/{NAME}/resolve/main/{_newest(hub)}/state.json")
    _go_on(shop, place, hub, commands[state["decisive"]["seed"]], least)
    return 1


def _newest(hub: HubAside) -> str:
    """The folder of the newest training checkpoint."""
    files = [entry["rfilename"] for entry in _get(hub, f"/api/models/{NAME}")["siblings"]]
    folders = [name.partition("/")[0] for name in files if name.endswith("/manifest.json")]
    return max(folders, key=lambda folder: _get(hub, f"/{NAME}/resolve/main/{folder}/state.json")["step"])


FAULTS = [
    Fault("a fault of the Hub while training checkpoints are uploaded, and a lost disk", 160, vanishes, 0),
    Fault("two writers of training checkpoints, and a lost disk", 40, two_writers, 0),
]
