"""The settings of a run that leave its result as it is: where it writes, and what it keeps, logs and publishes."""

from dataclasses import dataclass

from ..errors import UserError
from ..settings import setting


@dataclass(kw_only=True)
class RunSettings:
    """Where a run writes, and what it keeps, logs and publishes."""

    output_dir: str = setting("consistency-model", "where everything goes", changes="nothing")
    validation_steps: int | None = setting(
        None,
        "steps between samples [at 1, 3, 10, 30 and 100 percent of the run, and every checkpoint]",
        at_least=1,
        changes="nothing",
    )
    num_validation_images: int = setting(16, "images of a sample grid", at_least=1, changes="nothing")
    checkpointing_steps: int = setting(1000, "steps between checkpoints", at_least=1, changes="nothing")
    checkpoints_total_limit: int | None = setting(2, "newest checkpoints to keep", at_least=1, changes="nothing")
    max_train_minutes: float | None = setting(
        None, "stop with a checkpoint after so many minutes [never]", above=0, changes="nothing"
    )
    resume_from_checkpoint: str | None = setting(
        None, "'latest' (the beginning, if there is none), or a checkpoint folder", changes="nothing"
    )
    resume_with_changes: bool = setting(
        False, "let a resumed run differ from its checkpoint, and record how", changes="nothing"
    )
    report_to: str | None = setting(
        None, "tracker beside the JSON lines", choices=("tensorboard", "wandb", "trackio"), changes="nothing"
    )
    logging_steps: int = setting(10, "steps between log lines", at_least=1, changes="nothing")
    dry_run: bool = setting(False, "estimate time and memory, print the stages, and stop", changes="nothing")
    license: str | None = setting(None, "licence of the weights, a Hub identifier such as cc-by-4.0", changes="nothing")
    push_to_hub: bool = setting(False, "publish the result on the Hub", changes="nothing")
    hub_model_id: str = setting(None, "repository: user/name or organisation/name", changes="nothing")
    hub_private_repo: bool = setting(False, "if the repository has to be created, create it private", changes="nothing")
    hub_strategy: str = setting(
        "end", "publish at the end, or at every checkpoint too", choices=("end", "checkpoint"), changes="nothing"
    )

    def check_publishing(self) -> None:
        """Check the repository.

        Raises:
            UserError: it has no owner or no name.
        """
        if self.push_to_hub and "/" not in (self.hub_model_id or ""):
            raise UserError(f"`push_to_hub` needs `hub_model_id` USER/NAME, got {self.hub_model_id or 'none'}.")
