"""Measure a consistency model: FID, KID, Inception score, precision, recall, density and coverage, in one command.

    python train_scripts/evaluate.py my-model --train_data_dir my_images --num_samples 50000 --steps 1 2 4
    accelerate launch --quiet train_scripts/evaluate.py you/my-model --dataset_name cifar10 --metrics fid kid is pr
    python train_scripts/evaluate.py my-model --train_data_dir my_images --tune_sigmas 3

Every step count and every average of the weights is measured on the same noise, on any number of processes. Statistics
of the real images are kept in --cache_dir for later evaluations. Writes evaluation.json, which says what was measured,
and evaluation.png; renews the model card. Exit codes: 0 done, 2 bad input.
"""

import sys
from collections.abc import Sequence

from ..data.settings import DataSettings
from ..evaluation.settings import EvaluationSettings
from ..settings import ArgumentParser, add_flags, check_bounds
from .program import run_program

NAME = "evaluate.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate as the flags say; returns the exit code."""
    return run_program(NAME, lambda: _evaluate(list(sys.argv[1:] if argv is None else argv)))


def _evaluate(words: list[str]) -> None:
    parser = ArgumentParser(NAME, __doc__)
    parser.add_argument("model", help="folder or Hub id of a consistency pipeline, or images: a folder or file")
    add_flags(parser, {"the real images": DataSettings, "the evaluation": EvaluationSettings})
    given = vars(parser.parse_args(words))
    model, settings = given.pop("model"), EvaluationSettings(**given)
    check_bounds(settings)
    from ..evaluation.evaluate import evaluate

    evaluate(model, settings, words)
