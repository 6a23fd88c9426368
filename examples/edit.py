#!/usr/bin/env python
"""Edit pictures with a consistency model as it was trained, and save a strip: before, what is known, after.

    python examples/edit.py model_cards/fashion32 --images shoe.png bag.png --class_labels 7 8 --output edits.png

Inpaints the lower half, super-resolves averages over 2x2 and 4x4 pixels, and colourises where the model draws colours.
Pictures are resized to the model's size. Exit codes: 0 done, 2 bad input.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from diffusers_ict import Colorize, ConsistencyEditPipeline, Edit, Inpaint, SuperResolve
from diffusers_ict.commands.program import run_program
from diffusers_ict.errors import UserError
from diffusers_ict.evaluation.samples import image_shape
from diffusers_ict.image_grid import as_pictures, labelled_blocks
from diffusers_ict.pipeline_consistency import load_consistency
from diffusers_ict.settings import ArgumentParser


def main(argv: Sequence[str] | None = None) -> int:
    """Edit as the flags say; returns the exit code."""
    return run_program("edit.py", lambda: edit(argv))


def edit(argv: Sequence[str] | None) -> None:
    """Draw and save the strip: a column for each picture."""
    parser = ArgumentParser("edit.py", __doc__)
    parser.add_argument("model", help="folder or Hub id of a consistency pipeline")
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="picture files")
    parser.add_argument("--class_labels", type=int, nargs="+", help="one for each picture [drawn]")
    parser.add_argument("--num_inference_steps", type=int, default=10, help="network evaluations of each edit [10]")
    parser.add_argument("--seed", type=int, default=0, help="[0]")
    parser.add_argument("--output", type=Path, default=Path("edits.png"), help="[edits.png]")
    options = parser.parse_args(argv)
    model = load_consistency(options.model).to("cuda" if torch.cuda.is_available() else "cpu")
    pipeline, shape = ConsistencyEditPipeline(model.unet, model.scheduler), image_shape(model)
    pipeline.set_progress_bar_config(disable=True)
    given = [opened(path, shape) for path in options.images]
    blocks = {"before": VaeImageProcessor.pil_to_numpy(given).reshape(len(given), *shape[1:], shape[0])}
    before = torch.from_numpy(blocks["before"]).permute(0, 3, 1, 2) * 2 - 1
    for name, what in edits_of(*shape).items():
        more = {"num_inference_steps": options.num_inference_steps, "output_type": "np"}
        generator = torch.Generator(pipeline.device).manual_seed(options.seed)
        try:
            drawn = pipeline(given, what, options.class_labels, generator=generator, **more).images
        except ValueError as error:
            raise UserError(str(error)) from error
        blocks[name] = as_pictures(what.project(before))
        blocks[f"{name}, after"] = drawn
    options.output.parent.mkdir(parents=True, exist_ok=True)
    labelled_blocks(blocks, len(given)).save(options.output)
    print(f"{options.output}: {len(given)} pictures, edited in {options.num_inference_steps} steps.")


def opened(path: Path, shape: tuple[int, int, int]) -> Image.Image:
    """A picture file in the model's size and number of channels."""
    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    if shape[0] not in modes:
        raise UserError(f"pictures can be edited by models of 1, 3 or 4 channels, and this one has {shape[0]}.")
    try:
        with Image.open(path) as picture:
            return picture.convert(modes[shape[0]]).resize((shape[2], shape[1]))
    except OSError as error:
        raise UserError(f"`images` must be picture files, and {path} cannot be read: {error}.") from error


def edits_of(channels: int, height: int, width: int) -> dict[str, Edit]:
    """Edits by name."""
    lower = torch.zeros(height, width)
    lower[height // 2 :] = 1
    edits: dict[str, Edit] = {
        "upper half": Inpaint(lower),
        "2x2 averages": SuperResolve(2),
        "4x4 averages": SuperResolve(4),
    }
    return edits | ({"grey": Colorize()} if channels == 3 else {})


if __name__ == "__main__":
    sys.exit(main())
