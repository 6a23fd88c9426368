"""Pictures that a model edits in every way it knows, beside what it was shown of them."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..data.settings import DataSettings
from ..data.transform import PictureFormat
from ..errors import UserError
from ..formulas.editing import LUMINANCE, Colorize, Edit, Inpaint, SuperResolve
from ..image_grid import as_pictures, labelled_blocks
from ..pipeline_consistency import ConsistencyPipeline
from ..pipeline_consistency_edit import ConsistencyEditPipeline
from ..transparency import MODES
from .samples import image_shape


def read_pictures(files: list[Path], model: ConsistencyPipeline, data: DataSettings) -> Tensor:
    """Picture files in the model's size and number of channels, cropped and laid on a background as `data` says.

    Returns:
        [n, C, H, W] in [-1, 1].

    Raises:
        UserError: a file cannot be read, or the model draws no pictures that files hold.
    """
    channels, height, width = image_shape(model)
    if model.normalization is not None or channels not in MODES:
        raise UserError(
            "pictures of 1, 3 or 4 channels can be edited, and this model draws "
            f"{'images' if model.normalization is None else 'arrays'} of {width}x{height} of {channels}; edit others "
            "from Python."
        )
    form = PictureFormat(height, data.center_crop, MODES[channels], data.background, width)
    read = [form.convert({"bytes": None, "path": str(file)}, number).pixels for number, file in enumerate(files)]
    return torch.stack([torch.from_numpy(pixels.copy()) for pixels in read]).float() / 127.5 - 1


def edit_strip(
    model: ConsistencyPipeline, before: Tensor, class_labels: list[int] | None, steps: int, seed: int
) -> Image.Image:
    """A column for each picture of `before`, [n, C, H, W] in [-1, 1]: as it is, and what is known and drawn by edit.

    Raises:
        UserError: an argument that the edit pipeline refuses.
    """
    pipeline = ConsistencyEditPipeline(model.unet, model.scheduler, model.vqvae)
    pipeline.set_progress_bar_config(disable=True)
    blocks = {"before": as_pictures(before)}
    for name, edit in edits_of(tuple(before.shape[1:]), model.vqvae is not None).items():
        generator = torch.Generator(pipeline.device).manual_seed(seed)
        options: dict[str, Any] = {"num_inference_steps": steps, "output_type": "pt", "generator": generator}
        try:
            (drawn,) = pipeline((before + 1) / 2, edit, class_labels, return_dict=False, **options)
        except ValueError as error:
            raise UserError(str(error)) from error
        blocks[name] = as_pictures(known(edit, before))
        blocks[f"{name}, after"] = as_pictures(drawn * 2 - 1)
    return labelled_blocks(blocks, len(before))


def edits_of(shape: tuple[int, ...], latents: bool) -> dict[str, Edit]:
    """Edits of images (C, H, W) by name; a model of latents knows no others than of whole pixels."""
    channels, height, width = shape
    lower = torch.zeros(height, width)
    lower[height // 2 :] = 1
    if latents:
        return {"upper half": Inpaint(lower)}
    edits: dict[str, Edit] = {
        "upper half": Inpaint(lower),
        "2x2 averages": SuperResolve(2),
        "4x4 averages": SuperResolve(4),
    }
    return edits | ({"grey": Colorize()} if channels == 3 else {})


def known(edit: Edit, x: Tensor) -> Tensor:
    """What an edit knows of images [n, C, H, W] in [-1, 1], as one would look at it.

    A luminance looks grey. As a projection, which has no part of the other directions, it would look green.
    """
    if not isinstance(edit, Colorize):
        return edit.project(x)
    return (x * x.new_tensor(LUMINANCE)[:, None, None]).sum(1, keepdim=True).expand_as(x)
