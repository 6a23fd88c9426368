"""Where a run goes on: from a checkpoint in its folder, from one on the Hub, or from the beginning.

A run that may be on the Hub is never begun anew without a word: where the Hub does not answer, and the folder has no
checkpoint, the run is refused.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..errors import UserError
from ..files import scratch_folder
from ..hub.checkpoint_on_hub import HubAway, HubCheckpoint, fetch, find_on_hub
from ..hub.checkpoint_upload import all_there, check_replaces
from ..hub.publish import check_repo_id
from . import checkpoint
from .checkpoint import Checkpoint
from .recipe import Recipe, find_recipe
from .resume import Identity, check_continues, check_format, find_checkpoint
from .run_settings import FROM_HUB, LATEST
from .sharing import share_checkpoint
from .state import RunState


@dataclass(frozen=True)
class Origin:
    """Where a run goes on.

    Attributes:
        saved: the checkpoint; None for a run that begins.
        arrived: folder of what came from the Hub, beside the output folder, or None.
        on_hub: `state.json` of the newest training checkpoint on the Hub, where that was asked for and is known.
    """

    saved: Checkpoint | None
    arrived: Path | None = None
    on_hub: dict[str, Any] | None = None

    def check_hub(self, recipe: Recipe, identity: Identity, step: int) -> None:
        """Check that the Hub has no training checkpoint of another run, to which this one could not add its own.

        Raises:
            UserError: it has.
        """
        if recipe.hub_checkpoints is None or self.on_hub is None:
            return
        ours = {"step": step, "decisive": identity.decisive, "changes": identity.changes}
        try:
            check_replaces(ours, self.on_hub, supersede=True)
        except UserError as error:
            raise UserError(f"nothing could be uploaded to {recipe.hub_model_id}: {error}.") from error


@contextmanager
def open_origin(recipe: Recipe, accelerator: Accelerator) -> Iterator[Origin]:
    """Find where a run goes on. What came from the Hub is removed when the block ends, unless it was moved.

    Raises:
        UserError: the checkpoint that is named cannot be used; the folder or the repository holds another run; or the
            Hub has to be asked, and does not answer.
    """
    wanted = recipe.resume_from_checkpoint
    local = _from_main(accelerator, lambda: find_checkpoint(recipe))
    if recipe.hub_model_id is None or (recipe.hub_checkpoints is None and wanted not in (LATEST, FROM_HUB)):
        yield Origin(local)
        return
    check_repo_id(recipe.hub_model_id)
    with ExitStack() as stack:

        def look() -> tuple[dict[str, Any] | None, Path | None]:
            found = _ask(recipe, local)
            if found is None or not _is_wanted(recipe, local, found):
                return getattr(found, "state", None), None
            place = stack.enter_context(scratch_folder(Path(recipe.output_dir) / "from-hub"))
            return found.state, fetch(found, place)

        on_hub, arrived = _on_main(accelerator, look)
        if arrived is None:
            yield Origin(local, None, on_hub)
            return

        def read() -> Checkpoint:
            (folder,) = checkpoint.list_checkpoints(arrived)
            return check_format(checkpoint.load(folder))

        saved = _from_main(accelerator, read)
        assert saved is not None
        accelerator.print(
            f"resumed     from {recipe.hub_model_id} on the Hub, after {saved.state['step']} of "
            f"{recipe.max_train_steps} steps"
        )
        yield Origin(saved, arrived, on_hub)


def _ask(recipe: Recipe, local: Checkpoint | None) -> HubCheckpoint | None:
    """The newest training checkpoint on the Hub, as far as this run has to know of it.

    Raises:
        UserError: it is not the one to go on from, or has to be known and is not.
    """
    wanted, repo_id, uploads = recipe.resume_from_checkpoint, recipe.hub_model_id, recipe.hub_checkpoints is not None
    begins = wanted == LATEST and local is None
    if not (uploads or begins or wanted == FROM_HUB):
        return None
    try:
        found = find_on_hub(repo_id)
    except HubAway as error:
        if wanted == FROM_HUB:
            raise UserError(f"{error}; start again later, or go on from a checkpoint that is here.") from error
        if begins and (uploads or not recipe.push_to_hub):
            raise UserError(
                f"{error}; `output_dir` {recipe.output_dir} has no checkpoint, and the run may be there: start again "
                "later, or begin a new run without `resume_from_checkpoint`."
            ) from error
        warnings.warn(f"{error}; the run goes on without it.", stacklevel=2)
        return None
    if found is None:
        if wanted == FROM_HUB:
            raise UserError(
                f"{repo_id} on the Hub has no training checkpoint: `resume_from_checkpoint` latest begins a run, and "
                "`hub_strategy` checkpoint uploads them."
            )
        return None
    if wanted is None:
        raise UserError(
            f"{repo_id} on the Hub has a training checkpoint of {found.step} steps: add `resume_from_checkpoint` "
            "latest to go on from it, or name another `hub_model_id`."
        )
    _compare(recipe, local, found)
    return found


def _compare(recipe: Recipe, local: Checkpoint | None, found: HubCheckpoint) -> None:
    """Refuse to go back to an older checkpoint on the Hub; say that it has a newer one, where that is not wanted.

    Raises:
        UserError: it has an older one.
    """
    if local is None:
        return
    here, steps = recipe.output_dir, local.state["step"]
    if recipe.resume_from_checkpoint == FROM_HUB and steps > found.step:
        raise UserError(
            f"the training checkpoint of {found.repo_id} on the Hub has {found.step} steps, and that of `output_dir` "
            f"{here} {steps}: go on from this one with `resume_from_checkpoint` latest, or name an empty `output_dir`."
        )
    if recipe.resume_from_checkpoint == LATEST and steps < found.step:
        warnings.warn(
            f"{found.repo_id} on the Hub has a training checkpoint of {found.step} steps, and this run goes on from "
            f"{steps} steps of {here}: to take that of the Hub, give `resume_from_checkpoint` hub.",
            stacklevel=2,
        )


def _is_wanted(recipe: Recipe, local: Checkpoint | None, found: HubCheckpoint) -> bool:
    """Whether a run goes on from a checkpoint on the Hub, and does not have this very one already."""
    if recipe.resume_from_checkpoint == LATEST:
        return local is None
    if recipe.resume_from_checkpoint != FROM_HUB:
        return False
    same = Path(recipe.output_dir) / f"checkpoint-{found.step}"
    return local is None or local.state["step"] != found.step or not all_there(found.folder, same, found.files)


def resume(origin: Origin, recipe: Recipe, state: RunState, identity: Identity) -> tuple[int, float]:
    """Put a run where it goes on: (steps done, seconds trained).

    Raises:
        UserError: the checkpoint was made by another run, or uploads would fail.
    """
    saved = origin.saved
    if saved is not None:
        check_continues(saved, recipe, identity, from_hub=origin.arrived is not None)
    step, seconds = (0, 0.0) if saved is None else (saved.state["step"], saved.state["train_seconds"])
    origin.check_hub(recipe, identity, step)
    if saved is not None:
        state.load(saved)
    return step, seconds


def _from_main(accelerator: Accelerator, read: Callable[[], Checkpoint | None]) -> Checkpoint | None:
    """The checkpoint that the main process reads, on all processes: the others may have disks of their own."""
    kept: list[Checkpoint | None] = [None]

    def keep() -> None:
        kept[0] = read()

    _on_main(accelerator, keep)
    return share_checkpoint(kept[0], accelerator)


def _on_main(accelerator: Accelerator, do: Callable[[], Any]) -> Any:
    """What `do` returns on the main process, on all of them; its UserError is raised on all of them, too."""
    told: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            told[0] = do()
        except UserError as error:
            told[1] = str(error)
    broadcast_object_list(told)
    if told[1] is not None:
        raise UserError(told[1])
    return told[0]


def note_of_old_strategy(recipe: Recipe) -> str | None:
    """A sentence where a recipe that an earlier version wrote has `checkpoint` for what is `every_save` now."""
    if recipe.hub_checkpoints is None:
        return None
    files = [Path(recipe.output_dir) / "recipe.yaml", *([] if recipe.config is None else [find_recipe(recipe.config)])]
    for file in files:
        with suppress(OSError, ValueError, RecursionError, yaml.YAMLError):
            entries = yaml.safe_load(file.read_text("utf-8"))
            # A program wrote all settings that it had; recipes that people write need not have them.
            whole = isinstance(entries, dict) and {"hub_private_repo", "hub_strategy", "dry_run"} <= entries.keys()
            if whole and entries["hub_strategy"] == "checkpoint" and "hub_stop_seconds" not in entries:
                return (
                    f"note        {file.name} is of an earlier version, in which --hub_strategy checkpoint published "
                    "the model at every checkpoint; that is every_save now, and checkpoint uploads training "
                    "checkpoints, too"
                )
    return None
