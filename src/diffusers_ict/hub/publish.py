"""Publishing a model: one commit to the Hub with pipeline, variants, samples, recipe and card."""

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, ModelCardData, get_token
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import get_session, validate_repo_id
from huggingface_hub.utils.sha import git_hash

from ..credentials import scrubbed
from ..errors import UserError
from ..files import read_text, write_text
from .card import PIPELINE, merge, read_card, renewed_card
from .checkpoint_upload import CheckpointUpload
from .failures import reason_of
from .modular import BLOCKS
from .run_files import published_files

ATTEMPTS = 3  # commits, each on what the repository then holds
MOVED = (409, 412)  # the repository has another commit than the parent that was named
DOOR_SECONDS = 10.0  # for the answer to what is asked before a run begins
SILENCE_SECONDS = 60.0  # of a Hub that takes a request and does not answer, or takes no more bytes


class PublishError(UserError):
    """Publishing failed. The message says why and what to do in one sentence, and never holds the token."""


@dataclass(frozen=True)
class Upload:
    """What became of a repository: its address and that of the commit, and the files that it added and changed."""

    address: str
    commit: str
    added: list[str]
    changed: list[str]


def check_push(repo_id: str | None, license: str | None) -> None:
    """Check what a run is going to publish: the name of its repository, and its licence by asking the Hub.

    A Hub that does not answer within `DOOR_SECONDS` stops nobody: a warning says that nothing is known.

    Raises:
        UserError: no repository can have the name, or the Hub refuses the licence.
    """
    check_repo_id(repo_id)
    if license is None:
        return
    errors: list[Exception] = []

    def ask() -> None:
        try:
            ModelCard(f"---\n{ModelCardData(license=license)}\n---\n").validate(repo_type="model")
        except Exception as error:
            errors.append(error)

    asking = threading.Thread(target=ask, daemon=True)  # some versions of the client wait for ever
    asking.start()
    asking.join(DOOR_SECONDS)
    if asking.is_alive():
        errors.append(TimeoutError())
    if errors and type(errors[0]) is ValueError:
        raise UserError(f"`license` must be a licence identifier of the Hub, got {license}: {reason_of(errors[0])}.")
    if errors:
        why = reason_of(errors[0]).partition(";")[0]
        warnings.warn(f"the Hub was not asked whether it takes the licence {license}: {why}.", stacklevel=2)


def check_repo_id(name: str | None) -> None:
    """Refuse a name that no repository of a user or an organisation can have.

    Raises:
        UserError: it lacks the owner, or has other characters than the Hub allows.
    """
    with suppress(HFValidationError):
        validate_repo_id(name)
        if name is not None and name.count("/") == 1:
            return
    raise UserError(
        "`hub_model_id` must have the form user/name or organisation/name, of at most 96 letters, digits, '-', '_' "
        f"and '.' (no '--', no '..', no '.git' at the end), got {name or 'none'}."
    )


def publish(
    folder: Path,
    repo_id: str,
    *,
    license: str | None = None,
    private: bool | None = None,
    make_space: Callable[[Path, str | None], Path] | None = None,
    checkpoints: CheckpointUpload | None = None,
) -> list[Upload]:
    """Upload a trained or converted model as one commit, or none if the repository already holds it.

    The card is merged with the one of the repository, and renewed in the folder. What the repository has beyond the
    folder stays. Returns what changed in the model's repository, and then in the Space's, if there is one.

    Args:
        license: of the weights; wins over the licence that the cards in the folder and on the Hub have.
        private: of a repository that has to be created.
        make_space: make_space(model, license) writes the files of a static Space for a model, and returns the folder
            that has nothing else. The Space, `space_of(repo_id)`, is pushed before the model, whose card links to it.
        checkpoints: send training checkpoints of the folder in the same commit.

    Raises:
        UserError: a name that the Hub does not take, a folder without a model, or what `make_space` raises; nothing is
            sent.
        PublishError: the Hub refuses the upload or does not answer, or has the checkpoint of another run. Large files
            that arrived are not sent again.
    """
    check_repo_id(repo_id)
    space_id = None if make_space is None else space_of(repo_id)
    check_repo_id(space_id or repo_id)
    files: dict[str, Path | bytes] = {**published_files(folder)}
    if "model_index.json" not in files or not (
        {"run.json", "recipe.yaml"} <= files.keys() or "conversion.json" in files
    ):
        raise UserError(
            f"{folder} must be the output folder of a training run or a conversion; it has no model_index.json, or "
            "neither run.json with recipe.yaml nor conversion.json."
        )
    card, uploads = renewed_card(folder, repo_id, license, space_id), list[Upload]()
    if make_space is not None:
        page = make_space(folder, ModelCard(card).data.license)
        parts = {p.relative_to(page).as_posix(): p for p in page.rglob("*") if p.is_file()}
        uploads.append(_upload(parts, read_text(parts["README.md"]), space_of(repo_id), "space", private, license))
    files["pipeline.py"] = PIPELINE.read_bytes()
    if "blocks.py" in files:
        files["blocks.py"] = BLOCKS.read_bytes()
    beside = None if checkpoints is None else partial(checkpoints.operations, folder, repo_id)
    uploads.insert(0, _upload(files, card, repo_id, "model", private, license, beside))
    if os.access(folder, os.W_OK):
        try:
            write_text(folder / "README.md", card)
        except OSError as error:
            warnings.warn(f"{repo_id} was published, but the card in {folder} was not renewed: {error}.", stacklevel=2)
    return uploads


def space_of(repo_id: str) -> str:
    """The name of a model's Space."""
    return f"{repo_id}-demo"


def _upload(
    files: Mapping[str, Path | bytes],
    card: str,
    repo_id: str,
    kind: str,
    private: bool | None,
    license: str | None,
    beside: Callable[[str, list[RepoSibling]], list] | None = None,
) -> Upload:
    """Create the repository, merge its card, and commit the files, by name.

    Args:
        beside: beside(revision, files of the repository) gives further operations of the commit.
    """
    api, space = HfApi(), kind == "space"
    with _told_in_one_sentence(repo_id):
        get_session().timeout = SILENCE_SECONDS  # the client waits for ever by default
        read_card(card).validate(repo_type=kind)  # an unknown licence is refused before the repository is made
        sdk = "static" if space else None
        api.create_repo(repo_id, private=private, exist_ok=True, repo_type=kind, space_sdk=sdk)
        message = "Upload the page of a model" if space else "Upload consistency model"
        for attempt in range(ATTEMPTS):
            before = api.repo_info(repo_id, repo_type=kind, files_metadata=True)
            contents = {**files, "README.md": _merged(card, repo_id, kind, api, license, before.sha).encode()}
            # Not `upload_folder`, which may spread many files over several commits. Files that arrived stay there.
            operations = [CommitOperationAdd(name, content) for name, content in sorted(contents.items())]
            if beside is not None:
                operations += beside(before.sha, before.siblings or [])
            try:
                commit = api.create_commit(
                    repo_id, operations, commit_message=message, repo_type=kind, parent_commit=before.sha
                )
                break
            except HfHubHTTPError as error:  # somebody edited the card while files were sent
                if error.response.status_code not in MOVED or attempt == ATTEMPTS - 1:
                    raise
        known = {file.rfilename: file for file in before.siblings or []}
        sent = [operation for operation in operations if isinstance(operation, CommitOperationAdd)]
        added = [operation.path_in_repo for operation in sent if operation.path_in_repo not in known]
        changed = [file.path_in_repo for file in sent if _differs(file, known.get(file.path_in_repo))]
    return Upload(f"{api.endpoint}/{'spaces/' * space}{repo_id}", commit.commit_url, added, changed)


def _differs(file: CommitOperationAdd, known: RepoSibling | None) -> bool:
    """Whether a file has another content than the one of its name in the repository, if there is one."""
    if known is None:
        return False
    if known.lfs is not None:
        return known.lfs.sha256 != file.upload_info.sha256.hex()
    with file.as_file() as opened:
        return known.blob_id != git_hash(opened.read())


def _merged(card: str, repo_id: str, kind: str, api: HfApi, license: str | None, revision: str | None) -> str:
    """The card of the repository at a commit with what is new in `card`."""
    try:
        path = api.hf_hub_download(repo_id, "README.md", repo_type=kind, revision=revision, force_download=True)
    except LocalEntryNotFoundError:  # the Hub did not answer: it may have a card
        raise
    except EntryNotFoundError:
        return card
    try:
        return merge(read_text(Path(path), f"the card of {repo_id} on the Hub"), card, license)
    except UserError as error:
        raise UserError(f"the card of {repo_id} on the Hub cannot be merged: {error}") from error


@contextmanager
def _told_in_one_sentence(repo_id: str) -> Iterator[None]:
    """Raise PublishError for whatever goes wrong with the Hub, without the token."""
    token = get_token() or ""
    if not (token.isascii() and token.isprintable()):
        raise PublishError(f"{repo_id} was not published: the token has characters that no token has; copy it again.")
    try:
        yield
    except Exception as error:  # the client passes on what it meets in answers that it does not expect
        raise PublishError(scrubbed(f"{repo_id} was not published: {reason_of(error).rstrip('.')}.")) from None
