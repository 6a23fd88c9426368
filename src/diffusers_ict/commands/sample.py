"""Draw samples from a consistency model, each class in turn, as one picture.

    diffusers-ict sample my-model                                            # a folder, or an id on the Hub
    diffusers-ict sample my-model --num_samples 100 --num_inference_steps 1 --output many.png
    diffusers-ict sample my-model --image grey-1.png grey-2.png              # a model of pairs
    diffusers-ict sample my-model --guidance_scale 1.5                       # trained with --label_dropout
    diffusers-ict sample my-model --output samples.npy                   # arrays [n, H, W, C], in units of the data

Exit codes: 0 done, 2 bad input.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..names import visible
from .program import argument, program

SAMPLES = 60


@program(
    "sample",
    __doc__,
    argument("model", help="folder or Hub id of a consistency pipeline"),
    argument("--variant", help="weights other than the published ones, such as ema9999"),
    argument("--image", type=Path, nargs="+", help="pairs: files of the conditions, used in turn"),
    argument("--num_samples", type=int, help="number of samples [60, or one for each --image]"),
    argument("--num_inference_steps", type=int, default=2, help="network evaluations of each sample [2]"),
    argument("--guidance_scale", type=float, default=1.0, help="lead samples away from worse ones; 1 is off [1]"),
    argument("--guide", help="average of the weights to lead away from, such as ema995 [the output without labels]"),
    argument("--seed", type=int, default=0, help="seed of the noise [0]"),
    argument("--output", type=Path, default=Path("samples.png"), help="picture, or .npy file [samples.png]"),
)
def main(options: argparse.Namespace) -> None:
    """Draw and save the picture: columns of one class each, with its name."""
    for name in ("num_samples", "num_inference_steps"):
        if (given := getattr(options, name)) is not None and given < 1:
            raise UserError(f"`{name}` must be at least 1, got {given}.")
    import numpy as np

    from ..evaluation.samples import as_arrays, draw_in_turn, given_sheet, read_given, sample_sheet
    from ..files import check_writable
    from ..loading import load_consistency
    from ..processes import best_device

    check_writable("output", options.output.parent)
    pipeline = load_consistency(options.model, options.variant).to(best_device())
    guidance = _guidance(options, pipeline.unlabelled)
    given = read_given(pipeline, options.image or [])
    count = options.num_samples or (SAMPLES if given is None else len(given))
    start = time.perf_counter()
    drawn = draw_in_turn(pipeline, count, options.num_inference_steps, options.seed, given, guidance)
    taken = time.perf_counter() - start
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if options.output.suffix == ".npy":
        np.save(options.output, as_arrays(pipeline, drawn))
    else:
        sheet = sample_sheet(pipeline, drawn) if given is None else given_sheet(given, drawn)
        sheet.save(options.output)
    steps = f"{options.num_inference_steps} step{'s' if options.num_inference_steps > 1 else ''}"
    print(f"{visible(options.output)}: {count} samples with {steps} in {taken:.1f} seconds.")


def _guidance(options: argparse.Namespace, unlabelled: bool) -> dict[str, Any]:
    """Arguments of the pipeline, which is known to take them.

    Raises:
        UserError: the scale is no positive number, or there is nothing to lead away from, or no need for it.
    """
    from ..loading import load_consistency

    scale, guide = options.guidance_scale, options.guide
    if not 0 < scale < float("inf"):
        raise UserError(f"`guidance_scale` must be a positive number, got {scale:g}.")
    if scale == 1:
        if guide is not None:
            raise UserError("`guide` does nothing at a scale of 1: give `guidance_scale`, too, such as 1.25.")
        return {}
    if guide is None and not unlabelled:
        raise UserError(
            "`guidance_scale` needs `guide`, an average of the weights, because the model was not trained with "
            "label_dropout."
        )
    return {"guidance_scale": scale, "guide": guide and load_consistency(options.model, guide).unet}
