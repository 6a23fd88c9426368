"""Train a consistency model from images: iCT, ECT, CT, ACT and others.

    diffusers-ict train --train_data_dir my_images --resolution 64 --output_dir my-model
    accelerate launch --quiet -m diffusers_ict train --train_data_dir my_images ...         # on several GPUs

Exit codes: 0 done; 1 the training diverged; 2 bad input (nothing was written), or a file that cannot be written;
3 stopped early by a signal or by --max_train_minutes, with a checkpoint, or because another process is gone;
4 out of memory.
"""

import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import UserError
from ..files import portable
from ..hub.metadata import RunMetadata
from ..invocation import message_name, typed
from ..names import operand, shell, visible
from ..settings import as_flag
from ..training.default_size import default_levels
from ..training.recipe import OF_THE_DATA, Recipe, parse
from .program import run_program

FID_IMAGES = 2049  # one more than Inception has features


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the flags say, by default those of the command line; returns the exit code."""
    return run_program(typed("train"), lambda: _train(argv))


def _train(argv: Sequence[str] | None) -> None:
    recipe = parse(argv, typed("train"), __doc__)
    if recipe.shorter_side and not (recipe.model_config_name_or_path or recipe.pretrained_model_name_or_path):
        default_levels(recipe.shorter_side)  # refused before the images are read
    from ..training.train import train

    failure = train(recipe)
    folder = visible(recipe.output_dir)
    if not recipe.dry_run and os.environ.get("RANK", "0") == "0":
        print(f"The model is in {folder}: samples in {folder}/samples, plot in {folder}/training.png, model card in")
        print(f"{folder}/README.md. Next:")
        for command in next_commands(recipe, _images_of(Path(recipe.output_dir))):
            print(f"  {shell(['diffusers-ict', *command])}")
    if failure is not None:
        which = recipe.hub_checkpoints
        beside = [] if which is None else ["--training_checkpoints", which]
        words = ["publish", operand(recipe.output_dir), "--hub_model_id", recipe.hub_model_id, *beside]
        again = shell(["diffusers-ict", *words])
        name = message_name(typed("train"))
        print(f"{name}: {visible(failure)} Everything is in {folder}; finish with {again}", file=sys.stderr)
    elif recipe.push_to_hub and not recipe.dry_run:
        print(f"Published as {recipe.hub_model_id}.")


def _images_of(folder: Path) -> int | None:
    """How many images a run was trained on, or None where nobody knows: a hint is no reason to fail."""
    with suppress(OSError, UserError):
        return RunMetadata.read(folder).images
    return None


def next_commands(recipe: Recipe, images: int | None) -> list[list[str]]:
    """What people do with a finished run of so many images, as words behind `diffusers-ict`.

    Its folder says which images it was trained on; but of an absolute path no more than the last part. From few images,
    FID cannot be computed, and the other metrics need not be from 50,000 samples.
    """
    plain, folder = Recipe(), recipe.output_dir
    moved = portable(recipe.data_name) != recipe.data_name
    flags = {name: getattr(recipe, name) for name in OF_THE_DATA if getattr(recipe, name) != getattr(plain, name)}
    data = [word for name, value in flags.items() for word in as_flag(name, value)] if moved else []
    few = [] if images is None or images >= FID_IMAGES else ["--metrics", "kid", "pr", "--num_samples", f"{images}"]
    name = re.sub(r"[^\w.-]+", "-", os.path.basename(os.path.abspath(folder))).strip("-.")  # that a repository can have
    return [
        ["sample", operand(folder), *(["--image", "FILE"] if recipe.conditioning_image_column else [])],
        ["evaluate", operand(folder), *data, *few],
        ["publish", operand(folder), "--hub_model_id", recipe.hub_model_id or f"you/{name or 'my-model'}"],
    ]
