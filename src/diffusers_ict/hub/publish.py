"""Publishing a model: one commit to the Hub with pipeline, variants, samples, recipe and card."""

import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..errors import UserError
from .card import merge, write_card
from .licenses import check_license

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
# The transport's own errors are what the client derives its HTTP errors from, whichever library it uses.
TRANSPORT_ERRORS = (*HfHubHTTPError.__bases__, OSError)
PASSING = {408, 409, 412, 425, 429}  # and every 5xx: conflicts and overload, worth another try
REASONS = {
    401: "the token is missing or not valid; log in with `hf auth login`, or set HF_TOKEN",
    403: "the token may not write there; use one with write access, or another name",
    404: "there is no such user or organisation, or the token does not show it",
}


class PublishError(UserError):
    """Publishing failed. The message says why and what to do in one sentence, and never holds the token."""


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


def stage(folder: Path, repo_id: str, license: str | None = None) -> Path:
    """Copy what is to be published into a temporary folder, with its card renewed; the caller removes it.

    Raises:
        UserError: `folder` holds neither a finished run nor a converted model.
    """
    kinds = [("run.json", "recipe.yaml"), ("conversion.json",)]
    known = any(all((folder / name).is_file() for name in names) for names in kinds)
    if not known or not (folder / "model_index.json").is_file():
        raise UserError(
            f"{folder} must be the output folder of a training run or a conversion; it has no model_index.json, or "
            "neither run.json with recipe.yaml nor conversion.json."
        )
    staged = Path(tempfile.mkdtemp(prefix="publish-"))
    for name in (*UPLOADED_FILES, "README.md"):
        if (folder / name).is_file():
            shutil.copy2(folder / name, staged / name)
    for name in UPLOADED_FOLDERS:
        if (folder / name).is_dir():
            shutil.copytree(folder / name, staged / name)
    write_card(staged, repo_id, license)
    return staged


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
) -> str:
    """Upload a staged folder as one commit, or none if the repository already holds it. Returns its address.

    Args:
        license: replaces the licence of the card that the repository has.
        private: of a repository that has to be created.
        attempts, pause: tries of each request, and seconds before the second, doubled each time.

    Raises:
        PublishError: after the last attempt, or at once where another attempt is useless.
    """
    api = HfApi(token=token)
    steps: dict[str, Callable[[], Any]] = {
        "repository": lambda: api.create_repo(repo_id, private=private, exist_ok=True),
        "card": lambda: _merge_published_card(staged, repo_id, token, license),
        "commit": lambda: api.upload_folder(repo_id=repo_id, folder_path=staged, commit_message=message),
    }
    for step in steps.values():
        _persist(step, repo_id, attempts, pause)
    return f"{api.endpoint}/{repo_id}"


def publish(folder: Path, repo_id: str, *, license: str | None = None, **options: Any) -> str:
    """Stage and push a trained or converted model, then renew the card in its folder.

    Args:
        license: of the weights; wins over the licence that the cards in the folder and on the Hub have.
        options: those of `push`.

    Raises:
        UserError: a name or a licence that the Hub does not take, or a folder without a model; nothing is sent.
        PublishError: as `push`.
    """
    check_repo_id(repo_id)
    if license is not None:
        check_license(license)
    staged = stage(folder, repo_id, license)
    try:
        address = push(staged, repo_id, license=license, **options)
    finally:
        shutil.rmtree(staged)
    if os.access(folder, os.W_OK):
        write_card(folder, repo_id, license)
    return address


def _merge_published_card(staged: Path, repo_id: str, token: str | None, license: str | None) -> None:
    try:
        path = hf_hub_download(repo_id, "README.md", token=token, force_download=True)
    except EntryNotFoundError:
        return
    card = staged / "README.md"
    card.write_text(merge(Path(path).read_text("utf-8"), card.read_text("utf-8"), license))


def _persist(step: Callable[[], Any], repo_id: str, attempts: int, pause: float) -> Any:
    """Call until it succeeds, fails for good, or the attempts are used up."""
    for attempt in range(attempts):
        try:
            return step()
        except (*TRANSPORT_ERRORS, RuntimeError, ValueError) as caught:
            final, reason = _diagnosis(caught)
            if final:
                raise PublishError(f"{repo_id} was not published: {reason}.") from caught
            if attempt + 1 == attempts:
                raise PublishError(
                    f"{repo_id} was not published: {reason}, {attempts} times; try again later."
                ) from caught
        time.sleep(pause * 2**attempt)
    raise AssertionError("unreachable")


def _diagnosis(caught: Exception) -> tuple[bool, str]:
    """(whether another attempt is useless, what went wrong). Errors that the Hub did not cause are re-raised."""
    # The client wraps what goes wrong in its upload threads.
    error = caught.__cause__ if isinstance(caught, RuntimeError) else caught
    if isinstance(error, json.JSONDecodeError):  # of a proxy in between
        return False, "the Hub's answer cannot be read"
    if isinstance(error, HFValidationError):
        return True, "a name has the form user/name or organisation/name, of letters, digits, '-', '_' and '.'"
    if isinstance(error, ValueError) and "Invalid metadata" in str(error):
        return True, "the Hub refuses the card: " + "; ".join(str(error).splitlines()[1:]).replace("- ", "")
    if not isinstance(error, TRANSPORT_ERRORS):
        raise caught
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is None:
        return False, "the Hub cannot be reached"
    final = status not in PASSING and status < 500
    return final, REASONS.get(status, f"the Hub answered {status}")


class BackgroundPublisher:
    """Pushes staged folders in a thread, one at a time; a newer one waiting replaces an older one."""

    def __init__(self, push_staged: Callable[[Path], str]) -> None:
        self.push_staged = push_staged
        self.lock = threading.Lock()
        self.waiting: Path | None = None
        self.thread: threading.Thread | None = None
        self.failure: str | None = None

    def submit(self, staged: Path) -> None:
        """Hand over a staged folder and return at once."""
        with self.lock:
            if self.waiting is not None:
                shutil.rmtree(self.waiting)
            self.waiting = staged
            if self.thread is None:
                self.thread = threading.Thread(target=self._work, daemon=True)
                self.thread.start()

    def finish(self) -> str | None:
        """Wait until nothing is under way; the last failure in one sentence, or None."""
        while (thread := self.thread) is not None:
            thread.join()
        return self.failure

    def _work(self) -> None:
        while True:
            with self.lock:
                staged, self.waiting = self.waiting, None
                if staged is None:
                    self.thread = None
                    return
            try:
                self.push_staged(staged)
                self.failure = None
            except Exception as error:  # a failed upload must never end the thread, whatever failed
                self.failure = str(error) if isinstance(error, PublishError) else f"publishing failed: {error!r}."
            finally:
                shutil.rmtree(staged, ignore_errors=True)
