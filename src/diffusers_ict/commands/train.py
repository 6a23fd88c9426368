"""Train a consistency model from images: iCT, CT or ACT.

accelerate launch train_scripts/train_ict.py --train_data_dir my_images --resolution 64 --output_dir my-model

Exit codes: 0 done, 1 the training diverged, 2 bad input (nothing was written).
"""

import sys
from collections.abc import Sequence

from ..training.recipe import parse
from .program import run_program

NAME = "train_ict.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the flags say, by default those of the command line; returns the exit code."""
    return run_program(NAME, lambda: _train(argv))


def _train(argv: Sequence[str] | None) -> None:
    recipe = parse(argv, NAME, (__doc__ or "").splitlines()[0])
    from ..training.train import train

    failure = train(recipe)
    if failure is not None:
        again = f"train_scripts/publish.py {recipe.output_dir} --hub_model_id {recipe.hub_model_id}"
        print(f"{NAME}: {failure} Everything is in {recipe.output_dir}; finish with {again}", file=sys.stderr)
    elif recipe.push_to_hub and not recipe.dry_run:
        print(f"Published as {recipe.hub_model_id}.")
