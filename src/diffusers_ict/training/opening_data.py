"""The data of a run, and its micro batches."""

from typing import Any

from accelerate import Accelerator

from ..autoencoders import latent_shape
from ..data import TrainingData
from ..data.batches import Batches, streamed
from ..data.dataset import Images
from ..data.draw import FAKES, GENERATOR, REALS
from ..data.latents import Latents, encode_images
from ..data.load import load_images
from ..data.map_dataset import MapDataset
from ..data.pairs import scale_of_residuals
from ..data.references import open_references
from ..data.sampler import StepSampler, batches_of, step_loader
from ..data.stream import StreamedImages
from ..errors import UserError
from ..formulas.preconditioning import SIGMA_DATA
from ..loading import load_vae
from ..objectives.adversarial import Adversarial
from ..objectives.base import Objective
from .recipe import Recipe

NEAR = 0.5  # scale of residuals below which to learn them is worth a note


def open_data(recipe: Recipe, dataset: Any, accelerator: Accelerator) -> TrainingData:
    """The data that the caller of `train` gives, or that of the recipe.

    Raises:
        UserError: it cannot be read, or the recipe asks for what it does not have.
    """
    if recipe.label_dropout and dataset is None and not recipe.class_conditional:
        raise UserError("`label_dropout` leaves out classes, and the run learns none: set `class_conditional`.")
    if dataset is not None:
        data = dataset if isinstance(dataset, (Images, StreamedImages)) else MapDataset(dataset)
        if (recipe.class_conditional or recipe.label_dropout) and data.num_classes is None:
            name = "class_conditional" if recipe.class_conditional else "label_dropout"
            raise UserError(f"`{name}` needs labels, and the items of the data set have none.")
        if recipe.random_flip and isinstance(data, Latents) and not data.mirrored:
            raise UserError("`random_flip` needs latents of mirrored images: encode them with mirrored=True.")
        return data
    if recipe.pretrained_vae_name_or_path is not None:
        return _open_latents(recipe, recipe.pretrained_vae_name_or_path, accelerator)
    if not recipe.streaming:
        return load_images(recipe, class_conditional=recipe.class_conditional, accelerator=accelerator)
    rank, ranks = accelerator.process_index, accelerator.num_processes
    return StreamedImages(recipe, recipe.class_conditional, recipe.shuffle_buffer, recipe.seed, rank, ranks)


def _open_latents(recipe: Recipe, name: str, accelerator: Accelerator) -> Latents:
    """The images of a recipe as latents of its autoencoder, which is loaded and checked before they are read."""
    vae = load_vae(name)
    if recipe.resolution is not None:
        latent_shape(vae, (vae.config.in_channels, recipe.resolution, recipe.width or recipe.resolution))
    images = load_images(recipe, class_conditional=recipe.class_conditional, accelerator=accelerator)
    options: dict[str, Any] = {"sampled": recipe.vae_sample, "mirrored": recipe.random_flip}
    return encode_images(images, vae, recipe, **options, accelerator=accelerator)


def check_pairs(recipe: Recipe, objective: Objective, data: TrainingData) -> None:
    """Refuse, by a UserError, what takes images of one class for interchangeable: the conditions of pairs are not.

    And residuals of data that have none.
    """
    if recipe.learn_residual and not data.condition_channels:
        raise UserError("`learn_residual` is for pairs: leave it out, or set `conditioning_image_column`.")
    if recipe.learn_residual and data.condition_channels not in (1, data.shape[0]):
        raise UserError(
            f"`learn_residual` is for conditions of 1 channel or of the {data.shape[0]} of the images, got "
            f"{data.condition_channels}: leave it out, or set `conditioning_image_mode`."
        )
    if recipe.learn_residual and data.normalization is not None:
        raise UserError("`learn_residual` is for pictures, and the data have a normalization: leave it out.")
    if not data.condition_channels:
        return
    if recipe.reference_batch_size:
        raise UserError("`reference_batch_size` averages targets over images, and those of pairs differ: leave it out.")
    if isinstance(objective, Adversarial):
        raise UserError(
            f"`loss` must be ict, ect, ct or adcm for pairs, whose conditions no discriminator sees, got {recipe.loss}."
        )


def note_on_residuals(recipe: Recipe, data: TrainingData) -> str | None:
    """A sentence where `learn_residual` would help: its scale is that of a deviation of sigma_data."""
    if recipe.learn_residual or data.condition_channels not in (1, data.shape[0]) or data.normalization is not None:
        return None
    scale = scale_of_residuals(data.examples, most=256)
    if not 0 < scale < NEAR:
        return None
    return (
        f"residuals   images are near their conditions (root mean square {scale * SIGMA_DATA:.2g}, where white is 1 "
        "and black -1): --learn_residual learns the difference, which takes far less training"
    )


def open_batches(
    recipe: Recipe,
    accelerator: Accelerator,
    objective: Objective,
    data: TrainingData,
    steps: range,
    residual_scale: float | None = None,
) -> dict[int, Batches]:
    """The micro batches of each player."""
    augmented, its_steps, sizes = False, steps, {GENERATOR: recipe.train_batch_size}
    if isinstance(objective, Adversarial):
        augmented, first = objective.augmented, objective.first_step(recipe.max_train_steps)
        its_steps = range(max(first, steps.start), max(first, steps.stop))
        sizes |= dict.fromkeys((FAKES, REALS), recipe.discriminator_micro_batch)
    opened = {}
    for role, micro_batch_size in sizes.items():
        size = micro_batch_size * recipe.gradient_accumulation_steps * accelerator.num_processes
        if isinstance(data, StreamedImages):
            images = streamed(data, micro_batch_size, accelerator.device)
        else:
            sampler = StepSampler(
                recipe.seed, role, len(data), size, micro_batch_size, steps if role == GENERATOR else its_steps
            )
            images = batches_of(step_loader(data, sampler, accelerator, recipe.dataloader_num_workers))
        rank, ranks = accelerator.process_index, accelerator.num_processes
        opened[role] = Batches(images, size, micro_batch_size, rank, ranks, recipe.random_flip, augmented)
        opened[role].transform, opened[role].residual_scale = data.transform, residual_scale
        opened[role].label_dropout, opened[role].unlabelled = recipe.label_dropout, data.num_classes
    if recipe.reference_batch_size and not isinstance(data, StreamedImages):
        opened[GENERATOR].references = open_references(
            data, recipe.seed, recipe.reference_batch_size, steps, accelerator, recipe.random_flip
        )
    return opened
