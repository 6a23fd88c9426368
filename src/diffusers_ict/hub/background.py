"""Publishing beside a run, by a process of its own."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

from ..errors import first_line
from ..settings import as_flag
from .run_files import published_files

PROGRAM = "diffusers_ict"


class BackgroundPublisher:
    """Publishes the folder of a run that goes on: copies of it, by `diffusers-ict publish` in a process of its own.

    There is one upload at a time. Whatever fails or hangs stays in that process. It ends with this one; where this one
    is killed, it goes on for at most `timeout` seconds, and removes its copy.

    Args:
        folder: output folder of the run.
        private: of a repository that has to be created.
    """

    timeout = 1800.0  # seconds for an upload, and for what is under way when training ends
    copy: tempfile.TemporaryDirectory
    said: IO[str]  # without a name, so that nobody has to remove it

    def __init__(self, folder: Path, repo_id: str, private: bool = False) -> None:
        self.folder, self.repo_id, self.private = folder, repo_id, private
        self.due = False
        self.failure: str | None = None
        self.process: subprocess.Popen | None = None
        atexit.register(self._wait, 0.0)

    def submit(self) -> None:
        """Publish the folder as it is now; while an upload is under way, as it is at the next call or at the end."""
        self.due = True
        if self.process is None or self.process.poll() is not None:
            self._wait(0.0)
            self._start()

    def finish(self) -> str | None:
        """Wait until nothing is under way, for `timeout` seconds at most; the last failure in one sentence, or None."""
        end = time.monotonic() + self.timeout
        self._wait(self.timeout)
        if self.due:
            self._start()
            self._wait(end - time.monotonic())
        return self.failure

    def _start(self) -> None:
        """Copy the folder, whose files may change, and begin to publish the copy."""
        self.due, self.failure = False, None
        words = [*as_flag("hub_model_id", self.repo_id), *as_flag("timeout", self.timeout), "--remove_output_dir"]
        words += as_flag("hub_private_repo", True) * self.private
        try:
            self.copy = tempfile.TemporaryDirectory(prefix="publish-")
            for name, file in published_files(self.folder).items():
                target = Path(self.copy.name, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, target)
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
                self.failure = f"{self.repo_id} was not published: it took longer than {self.timeout:g} seconds."
            finally:
                process.kill()
                process.wait()
