#!/usr/bin/env python
"""Draw samples from a consistency model, each class in turn, as one picture.

    python examples/sample.py model_cards/fashion32 --num_samples 60 --num_inference_steps 1 --output samples.png

Exit codes: 0 done, 2 bad input.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from diffusers_ict.commands.program import run_program
from diffusers_ict.errors import UserError
from diffusers_ict.evaluation.samples import drawer
from diffusers_ict.image_grid import as_pictures, classes_in_turn
from diffusers_ict.pipeline_consistency import load_consistency
from diffusers_ict.settings import ArgumentParser


def main(argv: Sequence[str] | None = None) -> int:
    """Sample as the flags say; returns the exit code."""
    return run_program("sample.py", lambda: sample(argv))


def sample(argv: Sequence[str] | None) -> None:
    """Draw and save the picture: columns of one class each, with its name."""
    parser = ArgumentParser("sample.py", __doc__)
    parser.add_argument("model", help="folder or Hub id of a consistency pipeline")
    parser.add_argument("--variant", help="weights other than the published ones, such as ema9999")
    parser.add_argument("--num_samples", type=int, default=60, help="[60]")
    parser.add_argument("--num_inference_steps", type=int, default=2, help="network evaluations of each sample [2]")
    parser.add_argument("--seed", type=int, default=0, help="[0]")
    parser.add_argument("--output", type=Path, default=Path("samples.png"), help="[samples.png]")
    options = parser.parse_args(argv)
    for name in ("num_samples", "num_inference_steps"):
        if (given := getattr(options, name)) < 1:
            raise UserError(f"`{name}` must be at least 1, got {given}.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipeline = load_consistency(options.model, options.variant).to(device)
    start = time.perf_counter()
    levels = pipeline.scheduler.sampling_sigmas(options.num_inference_steps).tolist()
    draw = drawer(pipeline, None, options.seed, levels)
    pixels = draw(torch.arange(options.num_samples))
    taken = time.perf_counter() - start
    images = as_pictures(pixels.float() / 127.5 - 1)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    numbers = range(pipeline.unet.config.num_class_embeds or 0)
    names = [(pipeline.id2label or {}).get(number, str(number)) for number in numbers]
    classes_in_turn({"": images}, names).save(options.output)
    steps = f"{options.num_inference_steps} step{'s' if options.num_inference_steps > 1 else ''}"
    print(f"{options.output}: {options.num_samples} samples with {steps} in {taken:.1f} seconds.")


if __name__ == "__main__":
    sys.exit(main())
