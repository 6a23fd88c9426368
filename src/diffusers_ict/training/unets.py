"""What is special to UNet2DModel: a config that suits the images, its dropout, time embedding and discriminator."""

import json
from pathlib import Path

import torch
from diffusers import UNet2DModel

from ..autoencoders import Autoencoder, downsampling
from ..conversion import ConvertedModel
from ..data import TrainingData
from ..data.draw import GENERATOR, INIT, derive_seed
from ..errors import UserError, first_line
from ..formulas.time_embedding import hold_fast_columns, uses_fast_columns, zero_fast_columns
from ..objectives.base import Objective
from ..trial import check_config
from .default_size import default_levels, nearest_multiples
from .recipe import Recipe, find_shipped

# Width of each level, by image size; the number of levels follows from the size itself.
WIDTHS = {
    16: (32, 64),
    32: (64, 128, 128),
    64: (128, 128, 256, 256),
    128: (128, 256, 256, 512, 512),
    256: (128, 128, 256, 256, 512, 512),
}
SMALL = "small_unet.json"  # of 1.1 M parameters: the default network of a CPU
ATTENTION = 16  # and feature maps of at most this size squared have attention


def default_unet_config(
    resolution: int, channels: int, num_classes: int | None = None, longer: int | None = None
) -> dict:
    """A UNet2DModel config for images of 8 to 256 pixels: 0.7 M parameters at 8 pixels, 119 M at 256.

    Widths grow with the image; levels are added until the coarsest is at most 8 pixels wide; attention stands where
    feature maps have 16 x 16 pixels or less, but never on the finest level.

    Args:
        resolution: side in pixels, the shorter one of images that are not square; longer: the other one.

    Raises:
        UserError: a size out of range, or one that cannot be halved often enough.
    """
    levels = default_levels(resolution)
    widths = next(w for size, w in WIDTHS.items() if resolution < size or size == 256)
    widths = (*widths, *[widths[-1]] * levels)[:levels]
    area = resolution * (longer or resolution)
    attends = [level > 0 and area / 4**level <= ATTENTION**2 for level in range(levels)]
    return {
        "sample_size": resolution,
        "in_channels": channels,
        "out_channels": channels,
        "num_class_embeds": num_classes,
        "block_out_channels": widths,
        "layers_per_block": 1 if resolution < 16 else 2,
        "down_block_types": tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        "up_block_types": tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        "norm_num_groups": min(32, widths[0] // 2),
        "attention_head_dim": 8 if widths[0] < 128 else 64,
    }


def read_config(name_or_path: str) -> dict:
    """A UNet2DModel config from a JSON file, a saved model's folder, a model on the Hub, or a shipped recipe's file.

    Raises:
        UserError: nothing there, or not a UNet2DModel config.
    """
    path = find_shipped(name_or_path)
    try:
        if path.suffix == ".json":
            config = json.loads(path.read_text("utf-8"))
        else:
            config = UNet2DModel.load_config(name_or_path, subfolder=_subfolder(name_or_path))
    except (OSError, ValueError) as error:
        raise UserError(f"no UNet2DModel config could be read from {name_or_path}: {first_line(error)}") from error
    if not isinstance(config, dict):
        raise UserError(f"{name_or_path} must hold the config of a UNet2DModel, a mapping, and holds {config!r}.")
    if config.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise UserError(f"{name_or_path} is a {config['_class_name']}; the model must be a UNet2DModel.")
    return {"block_out_channels": (224, 448, 672, 896), **config}  # UNet2DModel's own default


def takes_small(recipe: Recipe, images: TrainingData, on_cpu: bool) -> bool:
    """Whether a fresh UNet that nobody chose is the small one: on a CPU, where the default one would train for months.

    Below 32 pixels the default one is small itself.
    """
    chosen = recipe.model_config_name_or_path or recipe.pretrained_model_name_or_path
    return on_cpu and chosen is None and min(images.shape[1:]) >= 32


def embedded_classes(recipe: Recipe, images: TrainingData) -> int | None:
    """The classes that a network tells apart, of which the last stands for none where labels are dropped; or None."""
    return images.num_classes and images.num_classes + (recipe.label_dropout > 0)


def config_for(recipe: Recipe, images: TrainingData, on_cpu: bool = False, earlier: dict | None = None) -> dict:
    """The config of a fresh UNet: the given one, completed by what the data say, or one that suits the resolution.

    Args:
        on_cpu: choose the small UNet of `SMALL`, where none is given.
        earlier: config of the UNet of a checkpoint, which goes on where none is given, also on another kind of machine.

    Raises:
        UserError: the config cannot be read, or none suits the resolution.
    """
    channels, height, width = images.shape
    name = recipe.model_config_name_or_path
    seen = channels + images.condition_channels
    of_the_data = {"in_channels": seen, "out_channels": channels, "num_class_embeds": embedded_classes(recipe, images)}
    size = {"sample_size": height if height == width else [height, width]}
    if name is None and earlier is not None:
        return {**earlier, **of_the_data, **size}
    if name is None:
        if not takes_small(recipe, images, on_cpu):
            shorter, longer = sorted((height, width))
            return {
                **default_unet_config(shorter, channels, embedded_classes(recipe, images), longer),
                **of_the_data,
                **size,
            }
        name = SMALL
    return {**of_the_data, **read_config(name), **size}


def check_resolution(recipe: Recipe) -> None:
    """Check, before images are read, that the network that a recipe asks for by default has this resolution.

    Raises:
        UserError: a size out of range, or one that cannot be halved often enough.
    """
    if recipe.shorter_side is not None and recipe.model_config_name_or_path is None:
        default_levels(recipe.shorter_side)


def check_fits(
    config: dict,
    shape: tuple[int, int, int],
    num_classes: int | None,
    condition_channels: int = 0,
    vae: Autoencoder | None = None,
) -> None:
    """Check that a UNet of this config takes and returns these images and labels, or the latents of an autoencoder.

    Args:
        condition_channels: of what it is given of each image, in further input channels.

    Raises:
        UserError: what does not fit.
    """
    kind = config.get("time_embedding_type", "positional")
    if kind != "positional":
        raise UserError(
            f"time_embedding_type must be 'positional' (stock diffusers cannot sample consistency models with the "
            f"others), got {kind!r}; change it in the model's config."
        )
    channels, *sides = shape
    widths = config.get("block_out_channels", (0,))
    if not isinstance(widths, (tuple, list)):
        raise UserError(f"block_out_channels of the UNet's config must be a list of widths, got {widths!r}.")
    factor = 2 ** (len(widths) - 1)
    smaller = 1 if vae is None else downsampling(vae)
    for side in sides:
        if side % factor:
            inputs = "images" if vae is None else f"latents, {smaller} times smaller than images,"
            raise UserError(
                f"this UNet halves its {inputs} {len(widths) - 1} times, so the resolution must be a multiple of "
                f"{factor * smaller}, such as {nearest_multiples(side * smaller, factor * smaller)}, got "
                f"{side * smaller}."
            )
    given = config.get("in_channels", 3), config.get("out_channels", 3)
    if given != (channels + condition_channels, channels):
        conditions = f" and their conditions {condition_channels}" if condition_channels else ""
        needed = f"{channels + condition_channels} in and {channels} out" if conditions else f"{channels} in and out"
        remedy = "choose another model" + (", or convert the images with `image_mode`" if vae is None else "")
        raise UserError(
            f"the {'images' if vae is None else 'latents'} have {channels} channels{conditions}, so the UNet needs "
            f"{needed}, and it has {given[0]} in and {given[1]} out; {remedy}."
        )
    classes = config.get("num_class_embeds")
    if classes != num_classes:
        raise UserError(
            f"the UNet is made for {classes or 'no'} classes and the run has {num_classes or 'none'}; set "
            "`class_conditional` and `label_dropout`, which adds one, to suit, or num_class_embeds in the config."
        )


def build(config: dict, seed: int) -> UNet2DModel:
    """A freshly initialised UNet; the weights are a function of the seed, and no global generator is touched."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return UNet2DModel.from_config(config)


def choose_dropout(recipe: Recipe, config: dict, objective: Objective) -> float:
    """The dropout that is given; else that of the UNet's config; else the one published for the loss."""
    stated = recipe.dropout if recipe.dropout is not None else config.get("dropout")
    return objective.dropout if stated is None else stated


def describe_dropout(recipe: Recipe, unet: UNet2DModel, objective: Objective) -> str:
    """The dropout of the UNet to train, and where it comes from."""
    used = unet.config.dropout
    if recipe.dropout is not None:
        return f"{used}, as set"
    if used == objective.dropout and objective.method is not None:
        return f"{used}, published for {objective.method}"
    return f"{used}, of the UNet's config"


def with_dropout(given: UNet2DModel, recipe: Recipe, objective: Objective) -> UNet2DModel:
    """A UNet with the weights of another one, and with the dropout of `choose_dropout`."""
    unsaid = given.config.get("_use_default_values", ())  # what its file left out
    config = {key: value for key, value in given.config.items() if not key.startswith("_") and key not in unsaid}
    unet = UNet2DModel.from_config({**config, "dropout": choose_dropout(recipe, config, objective)})
    unet.load_state_dict(given.state_dict())
    return unet


def _subfolder(name_or_path: str) -> str | None:
    """Where the UNet is: pipelines, and anything on the Hub, have it in `unet`."""
    path = Path(name_or_path)
    return "unet" if not path.is_dir() or (path / "unet").is_dir() else None


def limit_dropout(unet: UNet2DModel, largest: int) -> None:
    """Switch dropout off at feature maps wider than `largest` pixels, as iCT does at 64x64.

    The size that counts is that of the feature map at the dropout itself: a residual block that halves or doubles the
    size does so before it. The limit is not part of the model's config, because sampling uses no dropout.
    """
    levels, size = len(unet.down_blocks), unet.config.sample_size
    size = max(size) if isinstance(size, (tuple, list)) else size
    stages = [(level, block) for level, block in enumerate(unet.down_blocks)]
    stages += [(levels - 1 - level, block) for level, block in enumerate(unet.up_blocks)]
    stages += [(levels - 1, unet.mid_block)] if unet.mid_block is not None else []
    for level, block in stages:
        for name, module in block.named_modules():
            if isinstance(module, torch.nn.Dropout):
                change = {"downsamplers": 0.5, "upsamplers": 2.0}.get(name.split(".")[0], 1.0)
                if size / 2**level * change > largest:
                    module.p = 0.0


def discriminator_config(unet_config: dict) -> dict:
    """A ConsistencyDiscriminator config like the encoder of a UNet, one layer deeper, as ACT pairs them."""
    copied = ("sample_size in_channels down_block_types block_out_channels attention_head_dim norm_num_groups norm_eps "
              "act_fn freq_shift flip_sin_to_cos num_class_embeds").split()  # fmt: skip
    config = {key: unet_config[key] for key in copied if unet_config.get(key) is not None}
    return {**config, "layers_per_block": unet_config.get("layers_per_block", 2) + 1}


def make_unet(
    recipe: Recipe,
    images: TrainingData,
    objective: Objective,
    start: ConvertedModel | None,
    on_cpu: bool = False,
    earlier: dict | None = None,
) -> UNet2DModel:
    """The UNet to train, on the CPU: fresh or that of a start, with an insensitive time embedding.

    Weights that already use the fast frequencies keep them.

    Args:
        on_cpu, earlier: of `config_for`.

    Raises:
        UserError: it does not fit the images.
    """
    classes = embedded_classes(recipe, images)
    if start is not None:
        unet = with_dropout(start.pipeline.unet, recipe, objective)
        check_fits(dict(unet.config), images.shape, classes, images.condition_channels, images.vae)
    else:
        config = config_for(recipe, images, on_cpu, earlier)
        check_fits(config, images.shape, classes, images.condition_channels, images.vae)
        config = {**config, "dropout": choose_dropout(recipe, config, objective)}
        check_config(UNet2DModel, config, "the UNet")
        unet = build(config, derive_seed(recipe.seed, INIT, GENERATOR))
        if recipe.insensitive_time_embedding:
            zero_fast_columns(unet)
    if recipe.insensitive_time_embedding and not uses_fast_columns(unet):
        hold_fast_columns(unet)
    if recipe.dropout_resolution is not None:
        limit_dropout(unet, recipe.dropout_resolution)
    if recipe.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet
