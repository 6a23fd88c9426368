"""The settings of a run that leave its result as it is: where it writes, and what it keeps, logs and publishes."""

from dataclasses import dataclass

from ..errors import UserError
from ..hub.metadata import check_license
from ..hub.run_files import OF_STRATEGY
from ..settings import setting

LATEST, FROM_HUB = "latest", "hub"  # of `resume_from_checkpoint`, beside folders


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Where a run writes, and what it keeps, logs and publishes."""

    output_dir: str = setting("consistency-model", "folder for everything that the run writes")
    validation_steps: int | None = setting(
        None, "steps between samples [at 1, 3, 10, 30 and 100 percent of the run, and every checkpoint]", at_least=1
    )
    num_validation_images: int = setting(16, "images of a sample grid", at_least=1)
    checkpointing_steps: int = setting(1000, "steps between checkpoints", at_least=1)
    checkpoints_total_limit: int | None = setting(2, "newest checkpoints to keep", at_least=1)
    max_train_minutes: float | None = setting(None, "minutes after which to stop with a checkpoint [never]", above=0)
    resume_from_checkpoint: str | None = setting(
        None,
        "'latest': the newest in output_dir, else the one in hub_model_id, else begin the run; 'hub': only the one in "
        "hub_model_id; or a checkpoint folder",
    )
    resume_with_changes: bool = setting(False, "let a resumed run differ from its checkpoint, and record how")
    ddp_timeout: int = setting(10_800, "with several processes: seconds to wait for the others", at_least=1)
    report_to: str | None = setting(
        None, "also send the log to this tracker", choices=("tensorboard", "wandb", "trackio")
    )
    logging_steps: int = setting(10, "steps between log lines", at_least=1)
    dry_run: bool = setting(False, "estimate time and memory, print the stages, and stop")
    license: str | None = setting(None, "licence of the weights, a Hub identifier such as cc-by-4.0")
    push_to_hub: bool = setting(False, "publish the result on the Hub")
    hub_model_id: str = setting(
        None, "repository: user/name or organisation/name; a run can continue from the training checkpoint in it"
    )
    hub_private_repo: bool = setting(False, "if the repository does not exist, create it as private")
    hub_strategy: str = setting(
        "end",
        "end: publish the model at the end; every_save: also at every checkpoint; checkpoint: also the newest training "
        "checkpoint, as last-checkpoint; all_checkpoints: also each training checkpoint under its own name",
        choices=("end", "every_save", *OF_STRATEGY),
    )
    hub_stop_seconds: float = setting(
        300.0, "when a run is stopped: seconds for the upload of its last training checkpoint", at_least=0, below=1e6
    )

    @property
    def hub_checkpoints(self) -> str | None:
        """Which training checkpoints a run uploads: "newest", "all" or None."""
        return OF_STRATEGY.get(self.hub_strategy) if self.push_to_hub else None

    def check_publishing(self) -> None:
        """Check the repository and the licence.

        Raises:
            UserError: the first is missing, or has no owner or no name; or the second is no identifier.
        """
        if self.resume_from_checkpoint == FROM_HUB and not self.hub_model_id:
            raise UserError("`resume_from_checkpoint` hub needs `hub_model_id` USER/NAME, got none.")
        check_license(self.license)
        if self.push_to_hub and "/" not in (self.hub_model_id or ""):
            raise UserError(f"`push_to_hub` needs `hub_model_id` USER/NAME, got {self.hub_model_id or 'none'}.")
