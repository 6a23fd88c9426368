"""A Hub that misbehaves, and publishing that is killed: training ends as ever, and publishing again finishes it."""

import functools
import hashlib
import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from hub_stand_in import FAULTS as MISBEHAVIOURS
from hub_stand_in import Handler, Hub, Repository, serve

from diffusers_ict.commands import publish
from diffusers_ict.hub.background import BackgroundPublisher
from diffusers_ict.hub.run_files import MANIFEST, STATE, published_files
from diffusers_ict.training.log import JSONLines

from .children import Child, Ended, Lost, at_changes, in_child, kill_at, recorded
from .compare import check_same
from .workshop import LOSSES, Fault, Workshop, copy, load

NAME = "someone/my-digits"
PATIENCE = 20.0  # seconds for uploads, to wait less for a Hub that is silent
BOUND = 60.0  # seconds that a training run with such uploads may take longer


class HubAside:
    """The stand-in of the Hub in a child of its own. It misbehaves until it is healed.

    Args:
        fault: name of a misbehaviour, or None.
        hold: number of a request that is not answered before it is healed, and whether it is carried out.
        late: misbehave from `misbehave` on.
    """

    def __init__(
        self, place: Path, fault: str | None = None, hold: tuple[int, bool] | None = None, late: bool = False
    ) -> None:
        place.mkdir()
        self.place = place
        self.child = Child(lambda: self._serve(fault, hold, late), place)
        self.address = self._wait_for("address").read_text()

    def environment(self, place: Path) -> dict[str, str]:
        """Variables of the Hub's client."""
        own = {"HF_ENDPOINT": self.address, "HF_HOME": str(place / "home"), "HF_TOKEN": "hf_planted0123456789abcdef"}
        return {**own, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}

    def wait_for_hold(self) -> None:
        """Wait until the request has come that is not answered."""
        self._wait_for("held")

    def misbehave(self) -> None:
        """Misbehave from now on."""
        self.child.signal(signal.SIGUSR2)
        self._wait_for("misbehaves")

    def heal(self) -> None:
        """Behave from now on."""
        self.child.signal(signal.SIGUSR1)
        self._wait_for("healed")

    def end(self) -> dict[str, Any]:
        """End it: {"commits": number of them, "files": {path: hexadecimal content}, "requests": ..., "steps": ...}.

        "steps" has an entry for each commit, see `steps_of`.
        """
        self.child.signal(signal.SIGTERM)
        self.child.wait().check(0)
        return json.loads((self.place / "state").read_text())

    def _wait_for(self, name: str) -> Path:
        deadline = time.monotonic() + 60
        while not (self.place / name).exists():
            if time.monotonic() > deadline:
                raise Lost(f"the Hub never came to {name}")
            time.sleep(0.002)
        return self.place / name

    def _mark(self, name: str, text: str = "") -> None:
        (self.place / f"{name}.new").write_text(text)
        (self.place / f"{name}.new").rename(self.place / name)

    def _serve(self, fault: str | None, hold: tuple[int, bool] | None, late: bool) -> int:
        hub = Hub(fault=None if fault is None or late else MISBEHAVIOURS[fault])
        signals = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM}
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.signal(signal.SIGUSR2, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        if hold is not None:
            _hold_requests(hold, lambda: self._mark("held"))
        with serve(hub):
            self._mark("address", hub.address)
            while (number := signal.sigwait(signals)) != signal.SIGTERM:
                hub.fault = None if fault is None or number == signal.SIGUSR1 else MISBEHAVIOURS[fault]
                self._mark("healed" if number == signal.SIGUSR1 else "misbehaves")
            repository = hub.repositories.get(NAME, Repository())
            files = {path: content.hex() for path, content in repository.files.items()}
            steps = [steps_of(held) for held in [*repository.earlier.values(), repository.files]]
            state = {"commits": len(repository.commits), "files": files, "requests": len(hub.requests), "steps": steps}
            self._mark("state", json.dumps(state))
            os._exit(0)  # connections that are held do not hold it up


def steps_of(files: dict[str, bytes]) -> int | str:
    """The steps of the newest training checkpoint in a repository, 0 for none; what is wrong where one is torn."""
    newest = 0
    for name in files:
        folder, _, file = name.rpartition("/")
        if file != MANIFEST:
            continue
        manifest = json.loads(files[name])
        held = {path.removeprefix(f"{folder}/") for path in files if path.startswith(f"{folder}/")}
        if held != {*manifest, MANIFEST}:
            return f"{folder} holds {sorted(held)}, and its manifest names {sorted(manifest)}"
        for part, entry in manifest.items():
            if hashlib.sha256(files[f"{folder}/{part}"]).hexdigest() != entry["sha256"]:
                return f"{folder}/{part} is not as it was written"
        newest = max(newest, json.loads(files[f"{folder}/{STATE}"])["step"])
    return newest


def _hold_requests(hold: tuple[int, bool], mark: Callable[[], None]) -> None:
    """Let the stand-in keep one request waiting, before or after it is carried out."""
    body, answer, number, wanted = Handler._body, Handler.answer, itertools.count(), hold[0]

    def wait(self: Handler) -> None:
        mark()
        self.rfile.read(1)  # until the client is gone
        raise ConnectionAbortedError

    def counted(self: Handler) -> bytes:
        content, self.number = body(self), next(number)
        if (self.number, False) == hold:
            wait(self)
        return content

    def answered(self: Handler, *args: Any, **kwargs: Any) -> None:
        if self.number == wanted:
            wait(self)
        answer(self, *args, **kwargs)

    Handler._body, Handler.answer = counted, answered


def _publish(hub: HubAside, place: Path) -> Child:
    words = [str(place / "out"), "--hub_model_id", NAME]
    return Child(lambda: publish.main(words), place, hub.environment(place))


def _check_published(hub: HubAside, place: Path) -> None:
    """Publish without faults, and check that the Hub has the folder, in one commit.

    Raises:
        Lost: it has not.
    """
    _publish(hub, place).wait().check(0)
    state = hub.end()
    out = place / "out"
    wanted = ["README.md", "model_index.json", "run.json", *(str(f.relative_to(out)) for f in out.glob("unet/*"))]
    different = [name for name in wanted if state["files"].get(name) != (out / name).read_bytes().hex()]
    if different or state["commits"] != 1:
        raise Lost(f"{state['commits']} commits, and these files are not on the Hub as they are here: {different}")


def misbehaving(shop: Workshop, place: Path, number: int, random: Random) -> int:
    """Train while the Hub misbehaves in one of its ways: the run ends as ever; publish when it behaves again."""
    name = list(MISBEHAVIOURS)[number % len(MISBEHAVIOURS)]
    loss, slower = list(LOSSES)[number % len(LOSSES)], ["--checkpointing_steps", "6"]
    whole = shop.whole(loss, *slower)
    hub = HubAside(place / "hub", fault=name)

    def body() -> int:
        BackgroundPublisher.timeout = PATIENCE
        own = ["--push_to_hub", "--hub_model_id", NAME, "--hub_strategy", "every_save"]
        return shop.train(loss, place / "out", *slower, *own)

    ended = Child(body, place, hub.environment(place)).wait().check(0)
    _check_told(ended, name, whole.seconds)
    check_same(whole.folder, place / "out", ignore="^(recipe.yaml|README.md)$")
    hub.heal()
    _check_published(hub, place)
    shop.check_alone()
    if left := list((place / "tmp").iterdir()):
        raise Lost(f"left over {left}")
    return 1


def _check_told(ended: Ended, name: str, seconds: float) -> None:
    if ended.output.count("was not published") != 1:
        raise Lost(f"{name}: not one sentence about it: {ended.output[-2000:]}")
    if ended.seconds > 3 * seconds + BOUND:
        raise Lost(f"{name}: {ended.seconds:.0f} seconds instead of {seconds:.0f}")


def killed_at_a_request(shop: Workshop, place: Path, number: int, random: Random) -> int:
    """Kill publishing while the Hub holds a random request, carried out or not; publish again."""
    loss = list(LOSSES)[number % len(LOSSES)]
    copy(shop.whole(loss), place)
    hub = HubAside(place / "hub", hold=(random.randrange(_undisturbed(shop)["requests"]), random.random() < 0.5))
    client = _publish(hub, place)
    hub.wait_for_hold()
    return _killed(shop, place, hub, client.wait(0.0, kill=True))


def killed_at_a_change(shop: Workshop, place: Path, number: int, random: Random) -> int:
    """Kill publishing before a random change of a file; publish again."""
    loss = list(LOSSES)[number % len(LOSSES)]
    copy(shop.whole(loss), place)
    hub = HubAside(place / "hub")
    at = random.randrange(_undisturbed(shop)["changes"])

    def body() -> int:
        at_changes(place, kill_at(at))
        return publish.main([str(place / "out"), "--hub_model_id", NAME])

    return _killed(shop, place, hub, Child(body, place, hub.environment(place)).wait())


def _killed(shop: Workshop, place: Path, hub: HubAside, ended: Ended) -> int:
    if ended.code != -signal.SIGKILL:
        raise Lost(f"it was to be killed, and ended with {ended.code}: {ended.output}")
    in_child(lambda: load(place / "out"), place).check(0)
    _check_published(hub, place)
    shop.check_alone()
    return 1


def link_outside(shop: Workshop, place: Path, number: int, random: Random) -> int:
    """Put a link that leads out in the place of a random file: refused, nothing is sent; publish without it."""
    out = copy(shop.whole(list(LOSSES)[number % len(LOSSES)]), place)
    link = random.choice(sorted(published_files(out).values()))
    link.rename(place / "kept")
    link.symlink_to(place / "kept")
    hub = HubAside(place / "hub")
    ended = _publish(hub, place).wait().check(2)
    if "is a link that leads out" not in ended.output:
        raise Lost(f"the link {link.name} is not named: {ended.output}")
    (place / "kept").replace(link)
    _check_published(hub, place)
    return 1


def optional_work(shop: Workshop, place: Path, number: int, random: Random) -> int:
    """Damage what only the card is made of, while training publishes at checkpoints: one warns, the run goes on."""
    loss, name = list(LOSSES)[number % len(LOSSES)], ("README.md", "inspection.json")[number % 2]
    whole, out = shop.whole(loss), place / "out"
    hub = HubAside(place / "hub")

    def body() -> int:
        write = JSONLines.write

        def writing(self: JSONLines, entry: dict) -> None:
            write(self, entry)
            (out / name).write_bytes(b"---\n[\xff" + random.randbytes(20))

        JSONLines.write = writing  # type: ignore[method-assign]
        own = ["--push_to_hub", "--hub_model_id", NAME, "--hub_strategy", "every_save"]
        return shop.train(loss, out, *own)

    ended = Child(body, place, hub.environment(place)).wait().check(0)
    if "could not be made, and the run goes on" not in ended.output:
        raise Lost(f"nothing is said of {name}: {ended.output[-2000:]}")
    (out / name).unlink()
    check_same(whole.folder, out, ignore="^(recipe.yaml|README.md|pipeline.py)$")  # with its card
    hub.end()
    shop.check_alone()
    return 1


@functools.cache
def _undisturbed(shop: Workshop) -> dict[str, int]:
    """How many requests and changes of files publishing makes."""
    place = shop.base / "published"
    shutil.rmtree(place, ignore_errors=True)
    words = [str(copy(shop.whole("ict"), place)), "--hub_model_id", NAME]
    hub = HubAside(place / "hub")
    changes, _ = recorded(lambda: publish.main(words), place, place, hub.environment(place))
    return {"requests": hub.end()["requests"], "changes": len(changes)}


FAULTS = [
    Fault("SIGKILL in publishing, at a request", 18, killed_at_a_request),
    Fault("SIGKILL in publishing, at a change of a file", 12, killed_at_a_change),
    Fault("a link out of the folder that is published", 12, link_outside),
    Fault("a damaged README.md or inspection.json while training publishes", 6, optional_work, 0),
    Fault("a fault of the Hub while training publishes", len(MISBEHAVIOURS), misbehaving),
]
