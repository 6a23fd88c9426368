"""One upload, in a process of its own: the Hub's client may hang in native code, and only a process can be ended.

`push` in `publish.py` starts it and writes the job to its input, one line of JSON. The answer is one line of JSON, too:
{"address": ...} or {"failure": a sentence}.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import get_session

from ..errors import UserError, first_line
from ..files import read_text, write_text
from .card import merge

# The transport's own errors are what the client derives its HTTP errors from, whichever library it uses.
TRANSPORT_ERRORS = (*HfHubHTTPError.__bases__, OSError)
PASSING = {408, 409, 412, 425, 429}  # and every 5xx: conflicts and overload, worth another try
REASONS = {
    401: "the token is missing or not valid; log in with `hf auth login`, or set HF_TOKEN",
    403: "the token may not write there; use one with write access, or another name",
    404: "there is no such user or organisation, or the token does not show it",
}
SILENCE_SECONDS = 60.0  # of a Hub that takes a request and does not answer, or takes no more bytes


class PublishError(UserError):
    """Publishing failed. The message says why and what to do in one sentence, and never holds the token."""


def upload(
    staged: Path,
    repo_id: str,
    license: str | None,
    token: str | None,
    private: bool | None,
    message: str,
    attempts: int,
    pause: float,
    space: bool = False,
) -> str:
    """Create the repository, merge its card, and commit the folder, as `publish.push` describes."""
    kind = "space" if space else "model"
    token = token or get_token()
    if token is not None and not (token.isascii() and token.isprintable()):
        raise PublishError(f"{repo_id} was not published: the token has characters that no token has; copy it again.")
    api = HfApi(token=token)

    def commit() -> None:
        files = sorted(path for path in staged.rglob("*") if path.is_file())
        # Not `upload_folder`, which may spread many files over several commits.
        operations = [CommitOperationAdd(path.relative_to(staged).as_posix(), path) for path in files]
        api.create_commit(repo_id, operations, commit_message=message, repo_type=kind)

    steps: list[Callable[[], Any]] = [
        lambda: api.create_repo(
            repo_id, private=private, exist_ok=True, repo_type=kind, space_sdk="static" if space else None
        ),
        lambda: _merge_published_card(staged, repo_id, kind, api, license),
        commit,
    ]
    try:
        for step in steps:
            persist(step, repo_id, attempts, pause)
    except PublishError as error:
        if token and token in str(error):
            raise PublishError(str(error).replace(token, "(token)")) from None
        raise
    return f"{api.endpoint}/{'spaces/' * space}{repo_id}"


def _merge_published_card(staged: Path, repo_id: str, kind: str, api: HfApi, license: str | None) -> None:
    try:
        path = api.hf_hub_download(repo_id, "README.md", repo_type=kind, force_download=True)
    except LocalEntryNotFoundError:  # the Hub did not answer: it may have a card
        raise
    except EntryNotFoundError:
        return
    published = read_text(Path(path), f"the card of {repo_id} on the Hub")
    card = staged / "README.md"
    try:
        merged = merge(published, card.read_text("utf-8"), license)
    except UserError as error:
        raise UserError(f"the card of {repo_id} on the Hub cannot be merged: {error}") from error
    write_text(card, merged)


def persist(step: Callable[[], Any], repo_id: str, attempts: int, pause: float) -> None:
    """Call until it succeeds, fails for good, or the attempts are used up.

    Raises:
        PublishError: whatever was raised by the last attempt, or by one after which another is useless.
    """
    for attempt in range(attempts):
        # The client waits for ever by default. A session of requests, as in huggingface_hub 0, ignores this.
        get_session().timeout = SILENCE_SECONDS
        try:
            step()
            return
        except Exception as caught:  # the client passes on what it meets in answers that it does not expect
            final, reason = _diagnosis(caught)
            times = "" if final else f", {attempts} times" * (attempts > 1) + "; try again later"
            if final or attempt + 1 == attempts:
                raise PublishError(f"{repo_id} was not published: {reason}{times}.") from caught
        time.sleep(pause * 2**attempt)


def _diagnosis(caught: Exception) -> tuple[bool, str]:
    """(whether another attempt is useless, what went wrong)."""
    if isinstance(caught, ValueError) and "Invalid metadata" in str(caught):
        return True, "the Hub refuses the card: " + "; ".join(str(caught).splitlines()[1:]).replace("- ", "")
    # The client wraps what goes wrong in its upload threads and in a forced download.
    wrapped = isinstance(caught, (RuntimeError, ValueError)) and isinstance(caught.__cause__, TRANSPORT_ERRORS)
    error = caught.__cause__ if wrapped else caught
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, OfflineModeIsEnabled):
        return True, "HF_HUB_OFFLINE is set"
    if isinstance(error, HFValidationError):
        return True, "a name has the form user/name or organisation/name, of letters, digits, '-', '_' and '.'"
    if isinstance(error, UserError):
        return True, str(error).rstrip(".")
    if isinstance(error, OSError) and error.filename is not None:
        return True, f"{Path(error.filename).name} cannot be read or written here: {error.strerror}"
    if status is not None:
        return status not in PASSING and status < 500, REASONS.get(status, f"the Hub answered {status}")
    if isinstance(error, (KeyError, TypeError, AttributeError, IndexError, json.JSONDecodeError)):
        return False, "the Hub's answer cannot be read"  # that of a proxy in between, or one that lacks an entry
    if isinstance(error, TRANSPORT_ERRORS):
        return False, "the Hub cannot be reached"
    return False, f"{type(error).__name__}: {first_line(error)}".rstrip(".") if error else "the upload failed"


def main() -> None:
    """Do the job that the input names. Ends with the process that started it, which holds the input open."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()
    output, sys.stdout = sys.stdout, sys.stderr  # the client may print
    try:
        answer = {"address": upload(Path(job.pop("staged")), **job)}
    except Exception as error:
        answer = {"failure": str(error)}
    print(json.dumps(answer), file=output, flush=True)
    os._exit(0)  # threads of the client that hang do not hold it up
