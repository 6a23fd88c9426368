"""A full disk: a real one of memory with too few bytes or files, and one that refuses from some change on."""

import ctypes
import errno
import os
from pathlib import Path
from random import Random

from safetensors import SafetensorError

from diffusers_ict.training import checkpoint

from .children import LIBC, Ended, Lost, at_changes, in_child
from .compare import check_same
from .workshop import LOSSES, Fault, Workshop

NEW_NAMES, REMOUNT = 0x10020000, 32  # CLONE_NEWUSER | CLONE_NEWNS, MS_REMOUNT
REFUSED = ("open", "mkdir")  # changes that a full disk has no room for
NO_DISK = 77  # exit code: the system does not let users mount a disk of memory
PLENTY = "size=1g,nr_inodes=10000"


def _mount(folder: Path, limits: str, flags: int = 0) -> None:
    if LIBC.mount(b"none", os.fsencode(folder), b"tmpfs", ctypes.c_ulong(flags), limits.encode()) != 0:
        raise OSError(ctypes.get_errno(), "mount")


def small_disk(folder: Path, limits: str) -> None:
    """Mount a disk of memory at `folder` that only this process and its children see; root is not needed.

    Raises:
        OSError: the system does not allow that.
    """
    user, group = os.getuid(), os.getgid()
    if LIBC.unshare(NEW_NAMES) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path("/proc/self", name).write_text(text)
    _mount(folder, limits)


def _check_full(ended: Ended, place: Path) -> None:
    """Check how a run ends on a full disk: one sentence, whole checkpoints, nothing temporary.

    Raises:
        Lost: it does not.
    """
    told = [line for line in ended.check(2).output.splitlines() if line.startswith("diffusers-ict train: ")]
    if len(told) != 1:
        raise Lost(f"not one sentence: {told}")
    left = [path.name for path in place.rglob("*.tmp")]
    torn = [path.name for path in checkpoint.list_checkpoints(place / "out") if checkpoint.find_corruption(path)]
    if left or torn:
        raise Lost(f"left over {left}, in pieces {torn}; it said {told[0]}")


def of_memory(shop: Workshop, place: Path, number: int, random: Random) -> int:
    """Train on a disk that is too small, in bytes or, each third time, in files; then enlarge it and go on."""
    loss = list(LOSSES)[number // 3 % len(LOSSES)]
    whole = shop.whole(loss)
    sizes = [path.stat().st_size for path in whole.folder.rglob("*")]
    limits = f"size={random.randrange(4096, sum(sizes))},nr_inodes=10000"
    if number % 3 == 2:
        limits = f"size=1g,nr_inodes={random.randrange(4, len(sizes))}"
    disk = place / "disk"
    disk.mkdir()

    def body() -> int:
        try:
            small_disk(disk, limits)
        except OSError:
            return NO_DISK
        _check_full(in_child(lambda: shop.train(loss, disk / "out"), place), disk)
        _mount(disk, PLENTY, REMOUNT)
        in_child(lambda: shop.train(loss, disk / "out"), place).check(0)
        check_same(whole.folder, disk / "out")
        return 0

    return int(in_child(body, place).check(0, NO_DISK).code == 0)


def refusing(shop: Workshop, place: Path, number: int, random: Random) -> int:
    """Refuse every new file, folder and content from some change on; then go on with room."""
    loss = list(LOSSES)[number % len(LOSSES)]
    whole = shop.whole(loss)
    needy = [number for number, (kind, _) in enumerate(whole.changes) if kind in REFUSED]
    first = random.randrange(needy[-1] + 1)  # later changes need no room

    def full(count: int, kind: str, path: str) -> None:
        if count >= first and kind == "write":
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        if count >= first and kind in REFUSED:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def body() -> int:
        at_changes(place / "out", full)
        return shop.train(loss, place / "out")

    _check_full(in_child(body, place), place / "out")
    shop.finish(loss, place)
    check_same(whole.folder, place / "out")
    return 1


FAULTS = [
    Fault("full disk: a small one of memory", 36, of_memory),
    Fault("full disk: refused from some change on", 30, refusing),
]
