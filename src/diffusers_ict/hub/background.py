"""Publishing beside a run, by a process of its own."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import IO

from ..errors import first_line
from ..settings import as_flag
from .run_files import list_checkpoints, list_snapshots, published_files

PROGRAM = "diffusers_ict"


class BackgroundPublisher:
    """Publishes the folder of a run that goes on: copies of it, by `diffusers-ict publish` in a process of its own.

    There is one upload at a time. Whatever fails or hangs stays in that process. It ends with this one; where this one
    is killed, it goes on for at most `timeout` seconds, and removes its copy. Training checkpoints, which nobody
    changes, are copied as further names of the same files, so that the run may prune them and nothing is written twice.

    Args:
        folder: output folder of the run.
        private: of a repository that has to be created.
        checkpoints: training checkpoints to send as well: "newest", "all" or None.
        supersede: let them replace newer ones that this run had on the Hub.
    """

    timeout = 1800.0  # seconds for an upload, and for what is under way when training ends
    copy: tempfile.TemporaryDirectory
    said: IO[str]  # without a name, so that nobody has to remove it

    def __init__(
        self,
        folder: Path,
        repo_id: str,
        private: bool = False,
        checkpoints: str | None = None,
        supersede: bool = False,
    ) -> None:
        self.folder, self.repo_id, self.private = folder, repo_id, private
        self.checkpoints, self.supersede = checkpoints, supersede
        self.due, self.told, self.patience = False, set[str](), self.timeout
        self.waiting: set[str] = set()  # names of checkpoints that are due
        self.failure: str | None = None
        self.process: subprocess.Popen | None = None
        atexit.register(self._wait, 0.0)

    def submit(self) -> None:
        """Publish the folder as it is now; while an upload is under way, as it is at the next call or at the end."""
        self.due = True
        self.waiting |= {path.name for path in list_checkpoints(self.folder)[:1]}
        if self.process is None or self.process.poll() is not None:
            self._wait(0.0)
            if self.checkpoints is not None and self.failure is not None and self.failure not in self.told:
                # Of a run that others may have to go on with, nobody should learn this at its end.
                self.told.add(self.failure)
                warnings.warn(f"{self.failure.rstrip('.')}; the run goes on, and so do uploads.", stacklevel=2)
            self._start()

    def finish(self, seconds: float | None = None) -> str | None:
        """Wait until nothing is under way; the last failure in one sentence, or None.

        Args:
            seconds: at most so long [`timeout`].
        """
        self.patience = self.timeout if seconds is None else seconds
        end = time.monotonic() + self.patience
        self._wait(self.patience)
        if self.due:
            self._start()
            self._wait(end - time.monotonic())
        return self.failure

    def _start(self) -> None:
        """Copy the folder, whose files may change, and begin to publish the copy."""
        self.due, self.failure = False, None
        words = [*as_flag("hub_model_id", self.repo_id), *as_flag("timeout", self.timeout), "--remove_output_dir"]
        words += as_flag("hub_private_repo", True) * self.private
        if self.checkpoints is not None:
            words += [*as_flag("training_checkpoints", self.checkpoints), *as_flag("supersede", True) * self.supersede]
        try:
            self._copy()
            self.said = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed by `_wait`
            self.process = subprocess.Popen(
                [sys.executable, "-m", PROGRAM, "publish", self.copy.name, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.said,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                start_new_session=True,  # Ctrl-C comes to the run alone
            )
        except OSError as error:  # a full disk
            self.failure = f"{self.repo_id} was not published: a copy of it cannot be made: {first_line(error)}."
            if hasattr(self, "copy"):
                self.copy.cleanup()

    def _copy(self) -> None:
        """Copy what is published into a folder that is removed after the upload."""
        # Further names of a file are on the disk of the first; a day after a kill, `files.remove_left` takes this one.
        same = self.folder.stat().st_dev == os.stat(tempfile.gettempdir()).st_dev
        where = None if same or self.checkpoints is None else self.folder
        prefix, suffix = ("publish-", None) if where is None else (".publish-", ".0.tmp")
        self.copy = tempfile.TemporaryDirectory(suffix, prefix, where)
        for name, file in published_files(self.folder).items():
            target = Path(self.copy.name, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, target)
        if self.checkpoints is None:
            return
        saved = list_checkpoints(self.folder)[: 1 if self.checkpoints == "newest" else None]
        for file in [*list_snapshots(self.folder).values(), *(file for path in saved for file in path.iterdir())]:
            target = Path(self.copy.name, file.relative_to(self.folder))
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file, target)
            except OSError:  # a file system without such names
                shutil.copy2(file, target)
        if self.checkpoints == "all" and (pruned := sorted(self.waiting - {path.name for path in saved})):
            warnings.warn(
                f"{', '.join(pruned)} was deleted before it could be uploaded, because the upload before it took "
                "longer than the steps between checkpoints; raise `checkpoints_total_limit`.",
                stacklevel=4,
            )
        self.waiting = set()

    def _wait(self, seconds: float) -> None:
        """Wait for the upload that is under way, if there is one, and end it if it takes longer."""
        if self.process is None:
            return
        process, self.process = self.process, None
        with self.copy, self.said:
            try:
                code = process.wait(max(0.0, seconds))
                self.said.seek(0)
                last = self.said.read().strip().rpartition("\n")[2].removeprefix("python -m diffusers_ict publish: ")
                sentence = last.replace(self.copy.name, str(self.folder))
                self.failure = (sentence or f"{self.repo_id} was not published: exit code {code}.") if code else None
            except subprocess.TimeoutExpired:
                self.failure = f"{self.repo_id} was not published: it took longer than {self.patience:g} seconds."
            finally:
                process.kill()
                process.wait()
