"""Edit pictures with a consistency model, and save a strip: before, the known part, after.

    diffusers-ict edit my-model --images shoe.png bag.png --class_labels 7 8 --output edits.png

Inpaints the lower half, super-resolves averages over 2x2 and 4x4 pixels, and colourises if the model draws colours.
Pictures are read as the model's training images were: by the settings of its recipe, unless flags override them.
Exit codes: 0 done, 2 bad input.
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

AS_TRAINED = ("center_crop", "background")  # what the model itself does not say of its pictures


def main(argv: Sequence[str] | None = None) -> int:
    """Edit as the flags say; returns the exit code."""
    return run_program(typed("edit"), lambda: _edit(list(sys.argv[1:] if argv is None else argv)))


def _edit(words: list[str]) -> None:
    """Draw and save the strip: a column for each picture."""
    parser = ArgumentParser(typed("edit"), __doc__)
    parser.add_argument("model", help="folder or Hub id of a consistency pipeline")
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="picture files (required)")
    parser.add_argument("--class_labels", type=int, nargs="+", help="one class for each picture [drawn at random]")
    parser.add_argument("--num_inference_steps", type=int, default=10, help="network evaluations of each edit [10]")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers [0]")
    parser.add_argument("--output", type=Path, default=Path("edits.png"), help="file for the strip [edits.png]")
    add_flags(parser, {"how pictures are read": DataSettings}, only=AS_TRAINED)
    options, data = with_run_flags(parser, words, DataSettings)
    from ..evaluation.edits import edit_strip, read_pictures
    from ..files import check_writable
    from ..loading import load_consistency
    from ..processes import best_device

    check_writable("output", options.output.parent)
    model = load_consistency(options.model).to(best_device())
    pictures = read_pictures(options.images, model, data)
    strip = edit_strip(model, pictures, options.class_labels, options.num_inference_steps, options.seed)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    strip.save(options.output)
    count = f"{len(pictures)} picture{'s' if len(pictures) > 1 else ''}"
    print(f"{visible(options.output)}: {count}, edited in {options.num_inference_steps} steps.")
