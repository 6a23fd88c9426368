"""Training checkpoints on the Hub: which one is the newest, and how a run gets it back.

Everything that a run goes on from lies in one commit of a repository: `last-checkpoint/`, or `checkpoint-N/` for each,
and beside them the log, the samples and the snapshots of averages. Whoever reads names the commit, so that a writer in
between changes nothing.
"""

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token, hf_hub_download, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils.sha import git_hash

from ..credentials import scrubbed
from ..errors import UserError
from ..files import read_json, sha256
from .failures import reason_of
from .run_files import AVERAGES, CHECKPOINT, MANIFEST, SNAPSHOT, STATE

LAST = "last-checkpoint"  # folder of the newest one, as transformers calls it
SAMPLE = re.compile(r"samples/step-(\d+)\.png")
ANSWER_SECONDS = 20.0  # for the answer to what a repository holds


class HubAway(UserError):
    """The Hub did not say what a repository holds, so that nobody knows whether a run is there."""


@dataclass(frozen=True)
class HubCheckpoint:
    """A training checkpoint on the Hub.

    Attributes:
        revision: commit of the repository at which it was found.
        folder: where it is in the repository.
        state: content of its `state.json`.
        files: of the whole repository, by their paths.
    """

    repo_id: str
    revision: str
    folder: str
    state: dict[str, Any]
    files: dict[str, RepoSibling]

    @property
    def step(self) -> int:
        """Optimizer steps that were done."""
        return int(self.state["step"])


def find_on_hub(repo_id: str) -> HubCheckpoint | None:
    """The newest training checkpoint of a repository; None where it has none, or does not exist.

    Raises:
        HubAway: the Hub does not answer, not in a way that can be read, or not without a token, or with this one.
    """
    what = f"what {repo_id} on the Hub holds is not known"
    try:
        info = HfApi().repo_info(repo_id, files_metadata=True, timeout=ANSWER_SECONDS)
        return newest_of(checkpoints_at(repo_id, info.sha, info.siblings or []))
    except GatedRepoError as error:
        raise HubAway(f"{what}: it is gated, and the token does not show it") from error
    except RepositoryNotFoundError as error:
        if get_token() is None:  # the Hub answers alike of a private repository
            raise HubAway(
                f"{what}: it is private or does not exist, and there is no token (log in with `hf auth login`, or set "
                "HF_TOKEN)"
            ) from error
        return None
    except Exception as error:  # the client passes on what it meets in answers that it does not expect
        away = reason_of(error).rstrip(".").removesuffix("; publish again later")
        raise HubAway(scrubbed(f"{what}: {away}")) from None


def checkpoints_at(repo_id: str, revision: str, siblings: Iterable[RepoSibling]) -> list[HubCheckpoint]:
    """At a commit with these files, `last-checkpoint` and the newest of those with a number, where they exist."""
    files = {file.rfilename: file for file in siblings}
    steps = [int(match[1]) for name in files if (match := CHECKPOINT.fullmatch(name.removesuffix(f"/{MANIFEST}")))]
    folders = [*[LAST] * (f"{LAST}/{MANIFEST}" in files), *(f"checkpoint-{step}" for step in sorted(steps)[-1:])]
    found = []
    for folder in folders:
        state = read_json(Path(hf_hub_download(repo_id, f"{folder}/{STATE}", revision=revision)))
        found.append(HubCheckpoint(repo_id, revision, folder, state, files))
    return found


def newest_of(found: list[HubCheckpoint]) -> HubCheckpoint | None:
    """The one of the most steps, if there is one."""
    return max(found, key=lambda checkpoint: checkpoint.step, default=None)


def fetch(found: HubCheckpoint, place: Path) -> Path:
    """Download a checkpoint, and what a run writes beside it up to its step, and check every file.

    Args:
        place: a new folder.

    Returns:
        A folder within it with `checkpoint-N`, `log.jsonl`, `samples` and `averages`, as a run has them.

    Raises:
        UserError: the Hub ends in the middle, or a file is not as it was committed.
    """
    wanted = _wanted(found)
    try:
        # A folder that is new: of one that is not, this function may return what it finds there.
        snapshot_download(
            found.repo_id, revision=found.revision, allow_patterns=sorted(wanted), local_dir=place / "download"
        )
        damaged = [name for name in wanted if not _is_as_committed(place / "download" / name, found.files[name])]
    except Exception as error:  # the client passes on what it meets in answers that it does not expect
        reason = reason_of(error).rstrip(".").removesuffix("; publish again later")
        what = f"the training checkpoint of {found.repo_id} was not downloaded: {reason}; start again later."
        raise UserError(scrubbed(what)) from None
    if damaged:
        raise UserError(f"{damaged[0]} of {found.repo_id} did not arrive as it is on the Hub; start again.")
    for name, target in wanted.items():
        (place / "run" / target).parent.mkdir(parents=True, exist_ok=True)
        (place / "download" / name).rename(place / "run" / target)
    shutil.rmtree(place / "download")
    return place / "run"


def _wanted(found: HubCheckpoint) -> dict[str, str]:
    """The files to download, and where a run has them. Those of later steps, of a run that went back, stay there."""
    wanted = {}
    for name in found.files:
        folder, _, file = name.rpartition("/")
        number = SAMPLE.fullmatch(name) or (SNAPSHOT.fullmatch(file) if folder == AVERAGES else None)
        if folder == found.folder:
            wanted[name] = f"checkpoint-{found.step}/{file}"
        elif name == "log.jsonl" or (number is not None and int(number[1]) <= found.step):
            wanted[name] = name
    return wanted


def _is_as_committed(path: Path, committed: RepoSibling) -> bool:
    if not path.is_file():
        return False
    if committed.lfs is not None:
        return path.stat().st_size == committed.lfs.size and sha256(path) == committed.lfs.sha256
    return git_hash(path.read_bytes()) == committed.blob_id
