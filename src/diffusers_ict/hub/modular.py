"""Blocks of Modular Diffusers beside a model: two small files, which use the weights that are there."""

from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import read_json, write_json, write_text

BLOCKS = resources.files(__package__) / "templates" / "blocks.py"
MODULAR_CONFIG = "modular_config.json"  # where ModularPipeline finds the code
CONFIG: dict[str, Any] = {
    "_class_name": "ConsistencyBlocks",
    "auto_map": {"ModularPipelineBlocks": "blocks.ConsistencyBlocks"},
}


def write_blocks(folder: Path) -> None:
    """Write blocks.py and modular_config.json into a model's folder; blocks.py needs the pipeline.py beside it.

    Raises:
        UserError: there is no model, or not one that draws pictures from noise, by a UNet alone.
    """
    if not (folder / "model_index.json").is_file():
        raise UserError(f"{folder} must be the output folder of a training run or a conversion; it has no model.")
    for name, what in (("vqvae", "draws latents"), ("normalization.json", "draws arrays")):
        if (folder / name).exists():
            raise UserError(f"blocks of Modular Diffusers are for models of pictures, and this one {what}.")
    config = read_json(folder / "unet" / "config.json")
    if config.get("in_channels") != config.get("out_channels"):
        raise UserError("blocks of Modular Diffusers draw from noise alone, and this model is given images.")
    write_text(folder / "blocks.py", BLOCKS.read_text("utf-8"))
    write_json(folder / MODULAR_CONFIG, CONFIG)
