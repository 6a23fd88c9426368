"""Publishing a model: one commit to the Hub with pipeline, variants, samples, recipe and card."""

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..errors import UserError
from .card import write_card
from .licenses import check_license
from .upload import PublishError

# What others need of an output folder. Checkpoints and trackers' files are not uploaded.
UPLOADED_FILES = (
    "model_index.json",
    "labels.json",
    "recipe.yaml",
    "run.json",
    "conversion.json",
    "log.jsonl",
    "training.png",
    "evaluation.json",
    "evaluation.png",
    "inspection.json",
)
UPLOADED_FOLDERS = ("unet", "scheduler", "samples", "discriminator")
TIMEOUT_SECONDS = 1800.0  # of an upload, and of uploads that are under way when training ends
UPLOAD = "from diffusers_ict.hub.upload import main; main()"


def check_repo_id(name: str | None) -> None:
    """Refuse a name that no repository of a user or an organisation can have.

    Raises:
        UserError: it lacks the owner, or has other characters than the Hub allows.
    """
    try:
        validate_repo_id(name)
        valid = name is not None and name.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise UserError(
            "`hub_model_id` must have the form user/name or organisation/name, of at most 96 letters, digits, '-', '_' "
            f"and '.' (no '--', no '..', no '.git' at the end), got {name or 'none'}."
        )


def stage(folder: Path, repo_id: str, license: str | None = None, space_id: str | None = None) -> Path:
    """Copy what is to be published into a temporary folder, with its card renewed; the caller removes it.

    Args:
        license, space_id: as in `make_card`.

    Raises:
        UserError: `folder` holds neither a finished run nor a converted model, or one whose files cannot be read.
        PublishError: the copy fails, as on a full disk; nothing of it is left.
    """
    kinds = [("run.json", "recipe.yaml"), ("conversion.json",)]
    known = any(all((folder / name).is_file() for name in names) for names in kinds)
    if not known or not (folder / "model_index.json").is_file():
        raise UserError(
            f"{folder} must be the output folder of a training run or a conversion; it has no model_index.json, or "
            "neither run.json with recipe.yaml nor conversion.json."
        )
    staged = None
    try:
        staged = Path(tempfile.mkdtemp(prefix="publish-"))
        _copy(folder, staged)
        write_card(staged, repo_id, license, space_id)
        return staged
    except BaseException as error:
        if staged is not None:
            shutil.rmtree(staged, ignore_errors=True)
            if isinstance(error, UserError):  # the copy is gone, the original is to be mended
                raise UserError(str(error).replace(str(staged), str(folder))) from error
        if isinstance(error, OSError):
            place = tempfile.gettempdir()
            raise PublishError(f"{folder} could not be copied into {place} for publishing: {error}.") from error
        raise


def _copy(folder: Path, staged: Path) -> None:
    for name in (*UPLOADED_FILES, "README.md"):
        if (folder / name).is_file():
            shutil.copy2(folder / name, staged / name)
    for name in UPLOADED_FOLDERS:
        if (folder / name).is_dir():
            shutil.copytree(folder / name, staged / name)


def push(
    staged: Path,
    repo_id: str,
    *,
    license: str | None = None,
    token: str | None = None,
    private: bool | None = None,
    message: str = "Upload consistency model",
    attempts: int = 5,
    pause: float = 2.0,
    timeout: float = TIMEOUT_SECONDS,
    progress: bool = False,
    space: bool = False,
) -> str:
    """Upload a staged folder as one commit, or none if the repository already holds it. Returns its address.

    The client of the Hub runs in a process of its own, which is ended where it hangs, and ends with this process.

    Args:
        license: replaces the licence of the card that the repository has.
        private: of a repository that has to be created.
        attempts, pause: tries of each request, and seconds before the second, doubled each time.
        timeout: seconds until the upload is given up.
        progress: show the client's progress bars.
        space: it is that of a static Space, not of a model.

    Raises:
        PublishError: after the last attempt, at once where another attempt is useless, or after `timeout`.
    """
    job = {
        "staged": str(staged),
        "repo_id": repo_id,
        "license": license,
        "token": token,  # neither in the arguments nor in the environment, which other users may see
        "private": private,
        "message": message,
        "attempts": attempts,
        "pause": pause,
        "space": space,
    }
    answer = _ask(json.dumps(job), timeout, progress)
    if answer is None:
        raise PublishError(
            f"{repo_id} was not published: the upload took longer than {timeout:g} seconds; publish again with a "
            "larger `timeout`, and files that have arrived are not sent again."
        )
    if "failure" in answer:
        raise PublishError(answer["failure"])
    return answer["address"]


def _ask(job: str, timeout: float, progress: bool) -> dict[str, str] | None:
    """The answer of an upload process to a job, or None where it took too long."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_VERBOSITY": "error"}
    with subprocess.Popen(
        [sys.executable, "-c", UPLOAD],
        stdin=subprocess.PIPE,  # stays open: the process ends with us
        stdout=subprocess.PIPE,
        stderr=None if progress else subprocess.DEVNULL,
        env=environment,
        encoding="utf-8",
        start_new_session=True,  # Ctrl-C comes to us alone
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(f"{job}\n")
            process.stdin.flush()
            process.wait(timeout)
            return json.loads(process.stdout.read())
        except subprocess.TimeoutExpired:
            return None
        except (OSError, json.JSONDecodeError):
            return {"failure": f"the upload ended before its time, with exit code {process.wait()}; publish again."}
        finally:
            process.kill()


def publish(
    folder: Path,
    repo_id: str,
    *,
    license: str | None = None,
    make_space: Callable[[Path, Path], None] | None = None,
    **options: Any,
) -> str:
    """Stage and push a trained or converted model, then renew the card in its folder.

    Args:
        license: of the weights; wins over the licence that the cards in the folder and on the Hub have.
        make_space: make_space(model, folder) writes the files of a static Space for a staged model into an empty
            folder. The Space, `space_of(repo_id)`, is pushed before the model, whose card links to it.
        options: those of `push`.

    Raises:
        UserError: a name or a licence that the Hub does not take, a folder without a model, or what `make_space`
            raises; nothing is sent.
        PublishError: as `stage` and `push`.
    """
    space_id = None if make_space is None else space_of(repo_id)
    check_repo_id(repo_id)
    check_repo_id(space_id or repo_id)
    if license is not None:
        check_license(license)
    staged = stage(folder, repo_id, license, space_id)
    try:
        if make_space is not None:
            _push_space(make_space, staged, repo_id, license=license, **options)
        address = push(staged, repo_id, license=license, **options)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    if os.access(folder, os.W_OK):
        try:
            write_card(folder, repo_id, license, space_id)
        except OSError as error:
            warnings.warn(f"{repo_id} was published, but the card in {folder} was not renewed: {error}.", stacklevel=2)
    return address


def space_of(repo_id: str) -> str:
    """The name of a model's Space."""
    return f"{repo_id}-demo"


def _push_space(make_space: Callable[[Path, Path], None], staged: Path, repo_id: str, **options: Any) -> None:
    with tempfile.TemporaryDirectory(prefix="space-") as folder:
        make_space(staged, Path(folder))
        push(Path(folder), space_of(repo_id), space=True, **{**options, "message": "Upload the page of a model"})


class BackgroundPublisher:
    """Pushes staged folders in a thread, one at a time; a newer one waiting replaces an older one."""

    def __init__(self, push_staged: Callable[[Path], str]) -> None:
        self.push_staged = push_staged
        self.lock = threading.Lock()
        self.waiting: Path | Exception | None = None
        self.thread: threading.Thread | None = None
        self.failure: str | None = None

    def submit(self, make_staged: Callable[[], Path]) -> None:
        """Stage a folder and hand it over, without waiting for the upload. `finish` tells if staging failed."""
        staged: Path | Exception
        try:
            staged = make_staged()
            atexit.register(shutil.rmtree, staged, ignore_errors=True)  # where the program ends before the upload
        except Exception as error:  # on a full disk training goes on
            staged = error
        with self.lock:
            if isinstance(self.waiting, Path):
                shutil.rmtree(self.waiting, ignore_errors=True)
            self.waiting = staged
            if self.thread is None:
                self.thread = threading.Thread(target=self._work, daemon=True)
                self.thread.start()

    def finish(self, timeout: float = TIMEOUT_SECONDS) -> str | None:
        """Wait until nothing is under way, for `timeout` seconds at most; the last failure in one sentence, or None."""
        thread = self.thread
        if thread is not None:
            thread.join(timeout)
            if thread.is_alive():
                return f"publishing did not end within {timeout:g} seconds."
        return self.failure

    def _work(self) -> None:
        while True:
            with self.lock:
                staged, self.waiting = self.waiting, None
                if staged is None:
                    self.thread = None
                    return
            try:
                if isinstance(staged, Exception):
                    raise staged
                self.push_staged(staged)
                self.failure = None
            except Exception as error:  # a failed upload must never end the thread, whatever failed
                self.failure = str(error) if isinstance(error, UserError) else f"publishing failed: {error!r}."
            finally:
                if isinstance(staged, Path):
                    shutil.rmtree(staged, ignore_errors=True)
