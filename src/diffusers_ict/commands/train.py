"""Train a consistency model from images: iCT, ECT, CT or ACT.

accelerate launch --quiet train_scripts/train_ict.py --train_data_dir my_images --resolution 64 --output_dir my-model

Exit codes: 0 done; 1 the training diverged; 2 bad input (nothing was written), or a file that cannot be written;
3 stopped early by a signal or by --max_train_minutes, with a checkpoint, or because another process is gone.
"""

import os
import sys
from collections.abc import Sequence

from ..training.recipe import parse
from .program import run_program

NAME = "train_ict.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the flags say, by default those of the command line; returns the exit code."""
    return run_program(NAME, lambda: _train(argv))


def _train(argv: Sequence[str] | None) -> None:
    recipe = parse(argv, NAME, __doc__)
    from ..training.train import train

    failure = train(recipe)
    if not recipe.dry_run and os.environ.get("RANK", "0") == "0":
        folder = recipe.output_dir
        print(f"The model is in {folder}: samples in {folder}/samples, plot in {folder}/training.png, model card in")
        print(f"{folder}/README.md. Next: diffusers-ict evaluate {folder} with the data flags of this run, or")
        print(f"diffusers-ict publish {folder} --hub_model_id you/{os.path.basename(folder)}")
    if failure is not None:
        again = f"diffusers-ict publish {recipe.output_dir} --hub_model_id {recipe.hub_model_id}"
        print(f"{NAME}: {failure} Everything is in {recipe.output_dir}; finish with {again}", file=sys.stderr)
    elif recipe.push_to_hub and not recipe.dry_run:
        print(f"Published as {recipe.hub_model_id}.")
