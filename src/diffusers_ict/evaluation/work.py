"""Folders of unfinished work: a stopped evaluation goes on in the one it left, and two at once never share one."""

import itertools
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from filelock import BaseFileLock, FileLock, Timeout

from ..errors import UserError


@dataclass
class WorkFolders:
    """The folders of work of one evaluation, by what they are for. In a `with` block, whose end gives them free.

    Attributes:
        cache: where they are, seen by every process.
    """

    cache: Path
    accelerator: Accelerator
    _claimed: dict[str, Path] = field(default_factory=dict)
    _locks: list[BaseFileLock] = field(default_factory=list)

    def __enter__(self) -> "WorkFolders":
        return self

    def __exit__(self, *error: object) -> None:
        for lock in self._locks:
            lock.release()
        self._locks.clear()

    def claim(self, key: str) -> Path:
        """A folder for the work of this key, the same on every process; nobody else uses it meanwhile.

        Raises:
            UserError: it cannot be made.
        """
        if key not in self._claimed:
            own: list[str | None] = [None]
            if self.accelerator.is_main_process:
                try:
                    own = [str(self._lock(key))]
                except OSError as error:
                    raise UserError(
                        f"`cache_dir` {self.cache} cannot be written: {error.strerror}; name another folder."
                    ) from error
            self._claimed[key] = Path(broadcast_object_list(own)[0])
        return self._claimed[key]

    def clean(self) -> None:
        """Remove the folders; by the main process, the only one that reads them."""
        for folder in self._claimed.values():
            shutil.rmtree(folder, ignore_errors=True)

    def _lock(self, key: str) -> Path:
        """The first folder of this key that no other evaluation works in just now."""
        (self.cache / "locks").mkdir(parents=True, exist_ok=True)
        names = itertools.chain([key], (f"{key}-{number}" for number in itertools.count(1)))
        name, lock = next((name, lock) for name in names if (lock := self._free_lock(name)) is not None)
        self._locks.append(lock)
        folder = self.cache / "work" / name
        folder.mkdir(parents=True, exist_ok=True)  # one that was stopped may have left it
        return folder

    def _free_lock(self, name: str) -> BaseFileLock | None:
        lock = FileLock(self.cache / "locks" / f"{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        return lock
