"""Look into a consistency model, beside its training images.

    diffusers-ict inspect my-model                                      # a folder of `diffusers-ict train`
    diffusers-ict inspect you/my-model --train_data_dir my_images --output_dir inspection

The images are those of the model's run, read with the same settings, unless flags override them.
Writes along_sigma.png (f(x + sigma z, sigma) for fixed noise z and growing sigma), gap.png (how much neighbouring
levels disagree), neighbours.png (samples, each above its nearest training image), inspection.json and, for the folder
of a run, losses_by_sigma.png. A model that is a folder gets a copy of inspection.json, and the card of a run is updated
with its findings. Exit codes: 0 done, 2 bad input.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from ..data.settings import DataSettings
from ..invocation import typed
from ..names import visible
from ..settings import ArgumentParser, add_flags
from .program import run_program
from .run_data import with_run_flags


def main(argv: Sequence[str] | None = None) -> int:
    """Inspect as the flags say; returns the exit code."""
    return run_program(typed("inspect"), lambda: _inspect(list(sys.argv[1:] if argv is None else argv)))


def _inspect(words: list[str]) -> None:
    parser = ArgumentParser(typed("inspect"), __doc__)
    parser.add_argument("model", help="folder or Hub id of a consistency pipeline")
    parser.add_argument("--extractor", default="pixels", help="features between which distances are measured [pixels]")
    parser.add_argument("--extractor_weights", help="a local file or folder instead of a download")
    parser.add_argument(
        "--num_samples", type=int, default=1000, help="samples whose nearest training images are searched [1000]"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("inspection"), help="a folder [inspection]")
    add_flags(parser, {"the training images": DataSettings})
    options, data = with_run_flags(parser, words, DataSettings)
    from ..evaluation.inspection import inspect
    from ..files import check_writable
    from ..training.log import read_log
    from ..training.plots import plot_losses_by_sigma

    check_writable("output_dir", options.output_dir)
    features = (options.extractor, options.extractor_weights)
    report = inspect(options.model, data, options.output_dir, *features, options.num_samples)
    log = Path(options.model) / "log.jsonl"
    if log.is_file():
        plot_losses_by_sigma(read_log(log), options.output_dir / "losses_by_sigma.png")
    print(f"Nearer to a training image than expected: {report['copies']:.1%} of {options.num_samples} samples.")
    print(
        f"Largest gap between neighbouring levels: {report['largest_gap']:.3g} at sigma {report['largest_gap_at']:.3g}."
    )
    print(f"Written: {visible(options.output_dir)}")
