"""SIGKILL: while a run trains, saves, prunes, exports and exports again, and while a model is evaluated."""

import functools
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from random import Random

from .children import Child, Lost, at_changes, in_child, kill_at, recorded
from .compare import check_same
from .workshop import LOSSES, Fault, Workshop, copy

EXPORTED = ("unet/", "scheduler/", "discriminator/", "model_index", "README", "run.json", "pipeline.py", ".staged.tmp")


def in_saves(kind: str, path: str) -> bool:
    """Whether a change writes a checkpoint."""
    return path.startswith(".checkpoint-")


def in_pruning(kind: str, path: str) -> bool:
    """Whether a change deletes an old checkpoint."""
    return kind in ("remove", "rmdir") and path.startswith("checkpoint-")


def in_export(kind: str, path: str) -> bool:
    """Whether a change writes what is published."""
    return path.lstrip(".").startswith(tuple(name.lstrip(".") for name in EXPORTED))


def elsewhere(kind: str, path: str) -> bool:
    """Whether a change is none of these: log, samples, plot, recipe, lock."""
    return not (in_saves(kind, path) or in_pruning(kind, path) or in_export(kind, path))


def _loss(number: int) -> str:
    return list(LOSSES)[number % len(LOSSES)]


def _check_killed(code: int) -> None:
    if code != -signal.SIGKILL:
        raise Lost(f"it was to be killed, and ended with {code}")


def at_any_moment(shop: Workshop, place: Path, number: int, random: Random) -> int:
    """Kill a run after random times, up to three times in a row; then let it end."""
    loss, kills = _loss(number), random.choice([1, 1, 2, 3])
    whole, done = shop.whole(loss), 0
    for _ in range(kills):
        child = Child(lambda: shop.train(loss, place / "out"), place)
        done += child.wait(random.uniform(0, whole.seconds), kill=True).code == -signal.SIGKILL
        shop.check_between(place)
    shop.finish(loss, place)
    check_same(whole.folder, place / "out")
    return done


def at_a_change(phase: Callable[[str, str], bool], *more: str) -> Callable[[Workshop, Path, int, Random], int]:
    """A trial that kills a run before a random one of the changes of files that `phase` chooses; then lets it end."""

    def trial(shop: Workshop, place: Path, number: int, random: Random) -> int:
        loss = _loss(number)
        whole = shop.whole(loss, *more)
        at = random.choice(whole.numbers(phase))

        def body() -> int:
            at_changes(place / "out", kill_at(at))
            return shop.train(loss, place / "out", *more)

        _check_killed(in_child(body, place).code)
        shop.check_between(place)
        shop.finish(loss, place, *more)
        check_same(whole.folder, place / "out")
        return 1

    return trial


def in_the_next_export(shop: Workshop, place: Path, number: int, random: Random) -> int:
    """Kill a finished run that is started once more, in its export: what it exported before loads all the time."""
    loss = _loss(number)
    whole = shop.whole(loss)
    out = copy(whole, place)
    at = random.randrange(6, len(whole.numbers(in_export)))  # the first changes are recipe and log

    def body() -> int:
        at_changes(out, kill_at(at))
        return shop.train(loss, out)

    _check_killed(in_child(body, place).code)
    shop.check_between(place)
    shop.finish(loss, place)
    check_same(whole.folder, out)
    return 1


def in_evaluation(shop: Workshop, place: Path, number: int, random: Random) -> int:
    """Kill an evaluation before a random change of a file or, each second time, at a random moment; then repeat it."""
    model, changes, seconds = _evaluated(shop)
    copied = shutil.copytree(shop.whole("ict").folder, place / "model")

    def body() -> int:
        if number % 2 == 0:
            at_changes(place, kill_at(random.randrange(changes)))
        return shop.evaluate(copied, place)

    killed = Child(body, place).wait(random.uniform(0, seconds) if number % 2 else 300.0, kill=number % 2 == 1)
    if number % 2 == 0:
        _check_killed(killed.code)
    shop.check_alone()
    in_child(lambda: shop.evaluate(copied, place), place).check(0)
    check_same(model, copied)
    if left := [str(path) for path in (place / "cache").rglob("*") if "work/" in str(path) or ".tmp" in path.name]:
        raise Lost(f"left over {left}")
    return int(killed.code == -signal.SIGKILL)


@functools.cache
def _evaluated(shop: Workshop) -> tuple[Path, int, float]:
    """An undisturbed evaluation: the model with its report, how many changes it made, and its seconds."""
    place = shop.base / "evaluated"
    model = shutil.copytree(shop.whole("ict").folder, place / "model")
    changes, seconds = recorded(lambda: shop.evaluate(model, place), place, place)
    return model, len(changes), seconds


FAULTS = [
    Fault("SIGKILL at any moment of training", 60, at_any_moment),
    Fault("SIGKILL in a save", 36, at_a_change(in_saves)),
    Fault("SIGKILL in pruning", 18, at_a_change(in_pruning)),
    Fault("SIGKILL in the first export", 30, at_a_change(in_export)),
    Fault("SIGKILL in the next export", 18, in_the_next_export),
    Fault("SIGKILL at changes of other files", 18, at_a_change(elsewhere)),
    Fault("SIGKILL in evaluation", 24, in_evaluation),
]
