"""Flipped bits in the files of checkpoints: noticed and passed over, or of no effect."""

import warnings
from pathlib import Path
from random import Random

import numpy as np
from safetensors.numpy import load_file

from diffusers_ict.commands import ema
from diffusers_ict.training import checkpoint

from .children import Lost, in_child
from .compare import check_same
from .workshop import LOSSES, STEPS, Fault, Workshop, copy


def flip(path: Path, random: Random) -> None:
    """Flip one bit of a file."""
    raw = bytearray(path.read_bytes())
    raw[random.randrange(len(raw))] ^= 1 << random.randrange(8)
    path.write_bytes(raw)


def in_a_checkpoint(shop: Workshop, place: Path, number: int, random: Random) -> int:
    """Flip a bit in a file of the newest checkpoint: it is passed over, or loads as it was written."""
    loss = list(LOSSES)[number // 50 % len(LOSSES)]
    original, out = shop.whole(loss).folder, copy(shop.whole(loss), place)
    newest = checkpoint.list_checkpoints(out)[0]
    flip(random.choice(sorted(newest.iterdir())), random)

    def body() -> int:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            loaded = checkpoint.load_latest(out)
        passed_over = [str(warning.message) for warning in told]
        assert loaded is not None, "no checkpoint is found"
        assert loaded.state["step"] == STEPS or newest.name in "".join(passed_over), "no warning"
        saved = original / f"checkpoint-{loaded.state['step']}"
        assert loaded.state == checkpoint.load(saved).state, "another state"
        for name, tensors in loaded.tensors.items():
            expected = load_file(saved / f"{name}.safetensors")
            assert tensors.keys() == expected.keys(), name
            assert all(np.array_equal(tensors[key].numpy(), expected[key]) for key in expected), name
        return 0

    in_child(body, place).check(0)
    return 1


def and_resumed(shop: Workshop, place: Path, number: int, random: Random) -> int:
    """Flip bits in the newest one, two or all three checkpoints; resume, and compare the end."""
    loss, damaged = list(LOSSES)[number % len(LOSSES)], random.randint(1, 3)
    whole, out = shop.whole(loss), copy(shop.whole(loss), place)
    for path in checkpoint.list_checkpoints(out)[:damaged]:
        flip(random.choice([file for file in sorted(path.iterdir()) if file.suffix == ".safetensors"]), random)
    ended = shop.finish(loss, place)
    if ended.output.count("passing over the checkpoint") != damaged:
        raise Lost(f"{damaged} checkpoints were damaged: {ended.output}")
    check_same(whole.folder, out)
    return damaged


def in_a_snapshot(shop: Workshop, place: Path, number: int, random: Random) -> int:
    """Damage a snapshot of averages: `ema` refuses it, and makes what it makes of whole ones when it is whole again."""
    loss, every = list(LOSSES)[number % len(LOSSES)], ["--ema_snapshot_steps", "4"]
    out = copy(shop.whole(loss, *every), place)
    snapshot = random.choice(sorted((out / "averages").rglob("*.safetensors")))
    kept = snapshot.read_bytes()
    words = [str(out), "--std", "0.1"]
    if number % 2:
        flip(snapshot, random)
    else:
        snapshot.write_bytes(kept[: (at := random.randrange(len(kept) - 8))] + b"\xff" * (len(kept) - at))
    ended = in_child(lambda: ema.main(words), place).check(2)
    if snapshot.name not in ended.output or list(out.glob("unet/*std*")):
        raise Lost(f"the damage is not told, or something was made: {ended.output}")
    snapshot.write_bytes(kept)
    in_child(lambda: ema.main(words), place).check(0)
    return 1


FAULTS = [
    Fault("bit flip in a checkpoint, loaded", 1000, in_a_checkpoint),
    Fault("damage in a snapshot of averages", 24, in_a_snapshot),
    Fault("bit flips in checkpoints, resumed to the end", 20, and_resumed),
]
