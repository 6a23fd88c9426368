"""The files that a run writes: checkpoints, samples, and the published folder."""

import dataclasses
import errno
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from ..data import TrainingData
from ..data.dataset import Images
from ..data.draw import VALIDATION, derive_seed
from ..errors import UserError, first_line
from ..files import public_name, staged_folder
from ..hub.card import write_card
from ..hub.metadata import RunMetadata, origin_on_hub
from ..hub.provenance import code_commit, hardware
from ..version import __version__
from .checkpoint import describe_newest
from .plots import plot_training
from .recipe import Recipe
from .run import Run
from .samples import contiguous_copy, export, sample_picture
from .snapshots import save_snapshot

SAMPLES_AT = (0.01, 0.03, 0.1, 0.3, 1.0)  # shares of the run


def is_due(step: int, every: int | None) -> bool:
    """Whether optimizer step `step` (from 0) is one of every `every`."""
    return every is not None and (step + 1) % every == 0


def is_sample_step(recipe: Recipe, step: int) -> bool:
    """Whether samples are drawn after optimizer step `step` (from 0).

    Every `validation_steps` if they are given, else early and at every checkpoint; after the last step in any case.
    """
    total = recipe.max_train_steps
    if recipe.validation_steps is not None:
        return is_due(step, recipe.validation_steps) or step + 1 == total
    early = {max(1, math.ceil(share * total)) for share in SAMPLES_AT}
    return step + 1 in early or is_due(step, recipe.checkpointing_steps)


@contextmanager
def optional(what: str) -> Iterator[None]:
    """Around work that is not the training itself: where it fails, its users are told, and the run goes on.

    A full disk ends the run: the next checkpoint would not fit either.
    """
    try:
        yield
    except Exception as error:  # of drawing, trackers, damaged files that people left, and the Hub
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
        warnings.warn(f"{what} could not be made, and the run goes on: {reason}", stacklevel=3)


def save_run(run: Run, step: int, places: list[dict[str, int]] | None) -> None:
    """Write a checkpoint after `step` optimizer steps; `places` are those of all processes in the stream of images."""
    written_by = {"version": __version__, "commit": code_commit()}
    facts = {**dataclasses.asdict(run.identity), **written_by, **({} if places is None else {"stream": places})}
    run.state.save(run.output_dir, step, run.metrics.train_seconds, facts, run.recipe.checkpoints_total_limit)


def snapshot_run(run: Run, step: int) -> None:
    """Keep the averages of which others are made later, if the run has some; before a checkpoint of the same step."""
    if run.networks.powers and run.accelerator.is_main_process:
        save_snapshot(run.output_dir, run.networks.powers, step)


def sample_run(run: Run, step: int) -> None:
    """Save samples of the first EMA after `step` optimizer steps, give them to the trackers, and renew the plot."""
    with optional("samples"):
        seed = derive_seed(run.recipe.seed, VALIDATION)
        picture = sample_picture(run.pipeline, run.data.examples, run.recipe.num_validation_images, seed)
        folder = run.output_dir / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"step-{step:07d}.png")
        for tracker in run.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"samples": np.asarray(picture)[None]}, step, **layout)
    plot_run(run)


def plot_run(run: Run) -> None:
    """Renew the plot of the log."""
    with optional("training.png"):
        plot_training(run.output_dir / "log.jsonl", run.output_dir / "training.png", run.objective.stage_name)


def export_run(run: Run, step: int) -> None:
    """Write the published files: pipeline, variants, discriminator, plot, metadata and card after `step` steps."""
    folder, recipe = run.output_dir, run.recipe
    run.pipeline.id2label = class_names_of(run.data)
    try:
        with staged_folder(folder, last="model_index.json") as staged:
            export(run.pipeline, run.networks.averages, staged, run.networks.teacher)
            if run.networks.adversary is not None:
                contiguous_copy(run.networks.adversary.model).save_pretrained(staged / "discriminator")
    except SafetensorError as error:  # a full disk, in the words of this library
        raise UserError(f"the model cannot be written: {first_line(error)}; {describe_newest(folder)}.") from error
    plot_run(run)
    dataset, dataset_on_hub = public_name(recipe.data_name)
    start = recipe.pretrained_model_name_or_path
    base, base_on_hub = (None, False) if start is None else public_name(start)
    RunMetadata(
        objective=run.identity.decisive["objective"],
        dataset=dataset or "images of its own",
        dataset_on_hub=dataset_on_hub and recipe.dataset_name is not None,
        base_model=base,
        base_model_on_hub=base_on_hub,
        base_model_origin=_origin(start) if start is not None and not base_on_hub else None,
        images=run.data.count,
        shape=list(run.data.examples.shape),
        classes=run.data.num_classes,
        class_names=None if run.data.class_names is None else list(run.data.class_names),
        parameters=sum(p.numel() for p in run.networks.unet.parameters()),
        steps=step,
        batch_size=run.batch_size,
        images_seen=step * run.batch_size,
        train_seconds=run.metrics.train_seconds,
        hardware=hardware(run.accelerator),
        version=__version__,
        commit=code_commit(),
        command=recipe.command(),
        **_latents_of(run),
        condition=run.data.condition_channels,
        changes=run.identity.changes,
    ).write(folder)
    if (folder / "model_index.json").is_file():  # else nobody could follow what the card says of loading it
        with optional("the model card"):
            write_card(folder)


def _origin(start: str) -> str | None:
    """The model of the Hub from which the folder came that a run started from, where its files say so."""
    with optional("the base model's entry in the model card"):
        return origin_on_hub(Path(start))
    return None


def _latents_of(run: Run) -> dict[str, Any]:
    """What the metadata say of latents."""
    if run.data.vae is None:
        return {}
    name = run.recipe.pretrained_vae_name_or_path
    vae, on_hub = ("an autoencoder of its own", False) if name is None else public_name(name)
    return {"autoencoder": vae, "autoencoder_on_hub": on_hub, "latent_shape": list(run.data.shape)}


def class_names_of(data: TrainingData) -> dict[int, str] | None:
    """Names of classes by number; a class without images has none, because the model cannot draw it."""
    empty = data.empty_classes if isinstance(data, Images) else []
    names = data.class_names or ([f"class {number}" for number in range(data.num_classes or 0)] if empty else [])
    return {number: name for number, name in enumerate(names) if number not in empty} or None


def publish_run(run: Run) -> None:
    """Publish what was exported, in the background."""
    with optional("a copy to publish"):
        run.publisher.submit()


def pushes_now(recipe: Recipe, stopping: bool) -> bool:
    """Whether the checkpoint that was written is published. Where a run stops, only if others can go on from it."""
    if not recipe.push_to_hub or recipe.hub_strategy == "end":
        return False
    return not stopping or recipe.hub_checkpoints is not None


def push_run(run: Run, step: int) -> None:
    """Export and publish after `step` steps of a run that goes on, or stops."""
    with optional("the model to publish"):
        export_run(run, step)
        publish_run(run)


def end_upload(run: Run) -> None:
    """Give the last training checkpoint of a run that ends early its time to reach the Hub."""
    recipe = run.recipe
    if recipe.hub_checkpoints is None or recipe.dry_run or not run.accelerator.is_main_process:
        return
    print(f"uploading to {recipe.hub_model_id}, for at most {recipe.hub_stop_seconds:g} seconds", flush=True)
    if (failure := run.publisher.finish(recipe.hub_stop_seconds)) is not None:
        warnings.warn(failure, stacklevel=2)
