"""Training checkpoints in the commit of a model: which files are sent, which go, and which run may replace which.

A commit names the one that it follows, and is refused where another came between: what is said here about a repository
holds when the commit is made.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils.sha import git_hash

from ..errors import UserError
from ..files import read_json
from .checkpoint_on_hub import LAST, checkpoints_at, newest_of
from .run_files import AVERAGES, CHECKPOINT, MANIFEST, SNAPSHOT, STATE, list_checkpoints, list_snapshots


@dataclass(frozen=True)
class CheckpointUpload:
    """What is sent of the training checkpoints in a folder.

    Attributes:
        which: "newest", as `last-checkpoint`; or "all", each under its own name.
        supersede: let them replace newer ones on the Hub: the run went back on purpose.
    """

    which: str
    supersede: bool = False

    def operations(
        self, folder: Path, repo_id: str, revision: str, siblings: list[RepoSibling]
    ) -> list[CommitOperationAdd | CommitOperationDelete]:
        """What a commit after `revision`, at which the repository has these files, does for the checkpoints.

        Raises:
            UserError: there is none; it is damaged; or the repository has that of another run, or a newer one.
        """
        saved = list_checkpoints(folder)
        if not saved:
            raise UserError(f"{folder} holds no training checkpoint.")
        state, found = read_json(saved[0] / STATE), checkpoints_at(repo_id, revision, siblings)
        if (theirs := newest_of(found)) is not None:
            check_replaces(state, theirs.state, self.supersede)
        there = {file.rfilename: file for file in siblings}
        folders = {LAST: saved[0]} if self.which == "newest" else {path.name: path for path in saved}
        known = [name for place, path in folders.items() for name in all_there(place, path, there)]
        adds = [add for place, path in folders.items() for add in _adds(place, path, there, path == saved[0])]
        averages = [path for step, path in list_snapshots(folder).items() if step <= state["step"]]
        adds += [CommitOperationAdd(f"{AVERAGES}/{path.name}", path) for path in averages]
        kept = {*known, *(add.path_in_repo for add in adds)}
        newer = {checkpoint.folder for checkpoint in found if checkpoint.step > state["step"]}
        gone = [name for name in there if name not in kept and _is_replaced(name, {*folders, *newer}, state["step"])]
        return [*adds, *map(CommitOperationDelete, gone)]


def check_replaces(ours: dict[str, Any], theirs: dict[str, Any], supersede: bool = False) -> None:
    """Check that a checkpoint on the Hub is an earlier part of the run that wants to replace it.

    Args:
        ours, theirs: what their `state.json` hold: "step", "decisive" settings, and "changes" by resumes.
        supersede: also where it is a later part.

    Raises:
        UserError: it belongs to another run, or is newer.
    """
    before = dict(theirs.get("decisive", {}))
    for change in ours["changes"]:
        before[change["setting"]] = change["to"]
    common = before.keys() & ours["decisive"].keys()  # versions may differ in the others
    if differing := sorted(key for key in common if before[key] != ours["decisive"][key]):
        key = differing[0]
        there, here = (f"{key} {before[key]}", ours["decisive"][key]) if key != "data" else ("other images", "these")
        raise UserError(
            f"it holds a training checkpoint of another run, which has {there} where this one has {here}; name another "
            "`hub_model_id`"
        )
    if theirs["step"] > ours["step"] and not supersede:
        raise UserError(
            f"its training checkpoint has {theirs['step']} steps, more than the {ours['step']} of this run; another "
            "process goes on with this run or did so, and `resume_from_checkpoint` hub takes it up from there"
        )


def all_there(name: str, path: Path, there: dict[str, RepoSibling]) -> list[str]:
    """The files of a checkpoint in the repository, if it is this very one: its manifest came with all the others."""
    manifest = there.get(f"{name}/{MANIFEST}")
    if manifest is None or manifest.blob_id != git_hash((path / MANIFEST).read_bytes()):
        return []
    names = [f"{name}/{file.name}" for file in path.iterdir()]
    return names if there.keys() >= set(names) else []


def _adds(name: str, path: Path, there: dict[str, RepoSibling], newest: bool) -> list[CommitOperationAdd]:
    """The files of a checkpoint, but of one that is there already, and of an older one that is damaged.

    Raises:
        UserError: the newest one is damaged.
    """
    if all_there(name, path, there):
        return []
    adds = [CommitOperationAdd(f"{name}/{file.name}", file) for file in sorted(path.iterdir())]
    held = {Path(add.path_in_repo).name: add.upload_info.sha256.hex() for add in adds}
    held.pop(MANIFEST, None)
    if held == {file: entry["sha256"] for file, entry in read_json(path / MANIFEST).items()}:
        return adds
    if newest:
        raise UserError(f"the files of {path.name} are not as they were written")
    return []


def _is_replaced(name: str, folders: set[str], step: int) -> bool:
    """Whether a file of the repository belongs to a checkpoint that is replaced, or to steps that are done again."""
    folder, _, file = name.rpartition("/")
    if (match := CHECKPOINT.fullmatch(folder)) is not None and int(match[1]) > step:
        return True
    return folder in folders or (folder == AVERAGES and SNAPSHOT.fullmatch(file) is not None)
