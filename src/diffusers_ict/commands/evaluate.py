"""Measure a consistency model: FID, KID, Inception score, precision, recall, density and coverage, in one command.

    diffusers-ict evaluate my-model --num_samples 50000 --steps 1 2 4           # a folder of `diffusers-ict train`
    diffusers-ict evaluate you/my-model --dataset_name cifar10 --metrics fid kid is pr
    diffusers-ict evaluate my-model --tune_sigmas 3
    accelerate launch --quiet -m diffusers_ict evaluate my-model                # on several GPUs

The real images are those of the model's run, read with the same settings, unless flags override them.
Every step count and every average of the weights is measured on the same noise, on any number of processes. Statistics
of the real images are kept in --cache_dir for later evaluations. Writes evaluation.json, which says what was measured,
and evaluation.png, and updates the model card. Exit codes: 0 done, 2 bad input.
"""

import sys
from collections.abc import Sequence

from ..data.settings import DataSettings
from ..evaluation.settings import EvaluationSettings
from ..invocation import typed
from ..settings import ArgumentParser, add_flags
from .program import run_program
from .run_data import with_run_flags


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate as the flags say; returns the exit code."""
    return run_program(typed("evaluate"), lambda: _evaluate(list(sys.argv[1:] if argv is None else argv)))


def _evaluate(words: list[str]) -> None:
    parser = ArgumentParser(typed("evaluate"), __doc__)
    parser.add_argument("model", help="folder or Hub id of a consistency pipeline, or images: a folder or file")
    add_flags(parser, {"the real images": DataSettings, "the evaluation": EvaluationSettings})
    options, settings = with_run_flags(parser, words, EvaluationSettings)
    from ..evaluation.evaluate import evaluate

    evaluate(options.model, settings, words)
