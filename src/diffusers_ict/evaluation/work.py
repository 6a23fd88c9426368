"""Folders of unfinished work: a stopped evaluation goes on in the one it left, and two at once never share one."""

import shutil
import tempfile
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
        """The folder of that name, or one of its own where another evaluation is at the same work just now."""
        folder = self.cache / "work" / key
        lock = FileLock(self.cache / "locks" / f"{key}.lock")
        for parent in (folder, self.cache / "locks"):
            parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return Path(tempfile.mkdtemp(prefix=f"{key}-", dir=folder.parent))
        self._locks.append(lock)
        folder.mkdir(exist_ok=True)  # the one before may have removed it
        return folder
