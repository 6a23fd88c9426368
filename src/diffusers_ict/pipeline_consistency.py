"""ConsistencyPipeline: one- and few-step sampling, saved in a form that stock diffusers loads."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DiffusionPipeline,
    ImagePipelineOutput,
    UNet2DModel,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled
from torch import Tensor

from .errors import UserError, first_line
from .files import write_json
from .scheduling_ict import ICTScheduler

Generators = torch.Generator | list[torch.Generator] | None
LABELS_NAME = "labels.json"  # beside model_index.json; stock diffusers neither downloads nor reads it


class ConsistencyPipeline(ConsistencyModelPipeline):
    """Unconditional or class-conditional image generation with a consistency model.

    Takes what diffusers' ConsistencyModelPipeline takes and more (`sigmas`, `height`, `width`, `output_type="latent"`,
    `callback_on_step_end`, labels in any form, any number of channels). Repositories of either kind load into
    either pipeline: this one turns any stock consistency scheduler into an `ICTScheduler`, and saves itself as the
    stock pipeline with the stock twin of its scheduler.

    Args:
        unet: a UNet2DModel with positional time embedding.
        scheduler: an ICTScheduler or a CMStochasticIterativeScheduler.

    Attributes:
        id2label: name of each class by its number, or None; read from and saved as labels.json.

    Raises:
        ValueError: any other scheduler.
    """

    _callback_tensor_inputs = ["latents"]

    def __init__(self, unet: UNet2DModel, scheduler: CMStochasticIterativeScheduler) -> None:
        if not isinstance(scheduler, CMStochasticIterativeScheduler):
            raise ValueError(
                "a consistency pipeline needs an ICTScheduler or a CMStochasticIterativeScheduler, got "
                f"{type(scheduler).__name__}."
            )
        if not isinstance(scheduler, ICTScheduler):
            scheduler = ICTScheduler.from_stock(scheduler)
        super().__init__(unet=unet, scheduler=scheduler)
        self.image_processor = VaeImageProcessor(vae_scale_factor=1)
        self.id2label: dict[int, str] | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> "ConsistencyPipeline":
        """Load a pipeline and the names of its classes. Arguments are those of `DiffusionPipeline.from_pretrained`.

        Raises:
            ValueError: labels.json cannot be read; other errors are those of diffusers.
        """
        pipeline = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        path = _labels_file(pretrained_model_name_or_path, kwargs)
        pipeline.id2label = None if path is None else _read_labels(path)
        return pipeline

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> "ConsistencyPipeline":
        """A pipeline with the components and the class names of another. Arguments are those of diffusers."""
        made = super().from_pipe(pipeline, **kwargs)
        made.id2label = getattr(pipeline, "id2label", None)
        return made

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save as a stock ConsistencyModelPipeline with the stock twin of the scheduler, and labels.json beside it.

        Such a folder, or the Hub repository made of it, loads with and without this package and gives the same
        images with one and two steps. Arguments are those of `DiffusionPipeline.save_pretrained`. Without class names,
        a labels.json that is in the folder is removed.
        """
        labels = Path(save_directory) / LABELS_NAME
        if self.id2label is None:
            labels.unlink(missing_ok=True)
        else:  # before the rest, which may be uploaded as soon as it is saved
            write_json(labels, {"id2label": {str(number): name for number, name in self.id2label.items()}})
        stock = ConsistencyModelPipeline(unet=self.unet, scheduler=self.scheduler.to_stock())
        stock.save_pretrained(save_directory, **kwargs)

    @property
    def num_timesteps(self) -> int:
        """The number of steps of the last call, as in other pipelines."""
        return len(self.scheduler.timesteps)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: Tensor | np.ndarray | Sequence[int | str] | int | str | None = None,
        num_inference_steps: int = 1,
        timesteps: Sequence[int] | None = None,
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback: Callable[[int, Tensor, Tensor], None] | None = None,
        callback_steps: int = 1,
        *,
        sigmas: Sequence[float] | None = None,
        height: int | None = None,
        width: int | None = None,
        callback_on_step_end: Callable[..., dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple:
        """Draw images: Algorithm 1 of Consistency Models (arXiv:2303.01469).

        Args:
            batch_size: number of images.
            class_labels: one class for all images, or one for each, by number or by name (`id2label`); drawn with
                `generator` when the model is class-conditional and none are given.
            num_inference_steps: evaluations of the network; ignored where `timesteps` or `sigmas` are given.
            timesteps: descending integer indices into the grid of the scheduler's `rho`.
            generator: one, or a list with one for each image.
            latents: standard normal noise, [batch_size, C, height, width], instead of drawn noise.
            output_type: "pil", "np" ([B, H, W, C] in [0, 1]), "pt" ([B, C, H, W] in [0, 1]) or "latent" (in [-1, 1]).
            return_dict: an ImagePipelineOutput, or else a tuple with the images.
            callback, callback_steps: callback(step, timestep, sample) after every `callback_steps`-th step.
            sigmas: descending noise levels, the first usually sigma_max.
            height, width: in pixels; by default the model's sample size.
            callback_on_step_end: callback(pipe, step, timestep, {"latents": ...}) after each step; a "latents" entry in
                the dictionary it returns replaces the sample.
            callback_on_step_end_tensor_inputs: which tensors it is handed; only "latents" exists.

        Raises:
            ValueError: an argument out of range or of a wrong shape; the message says what is allowed.
        """
        height, width = self._image_size(height, width)
        self._check_inputs(batch_size, timesteps, sigmas, generator, output_type, callback_steps)
        if unknown := set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise ValueError(f"callback_on_step_end_tensor_inputs may hold 'latents' only, got {sorted(unknown)}.")
        device = self._execution_device
        steps = num_inference_steps if timesteps is None and sigmas is None else None
        self.scheduler.set_timesteps(steps, device, timesteps, sigmas)

        sample = self._initial_noise(batch_size, height, width, generator, latents, device)
        labels = self._labels(batch_size, class_labels, generator, device)

        with self.progress_bar(total=len(self.scheduler.timesteps)) as progress_bar:
            for step, t in enumerate(self.scheduler.timesteps):
                scaled = self.scheduler.scale_model_input(sample, t).to(self.unet.dtype)
                output = self.unet(scaled, t, class_labels=labels, return_dict=False)[0]
                # The sample stays in float32 whatever the network computes in.
                sample = self.scheduler.step(output.float(), t, sample, generator=generator, return_dict=False)[0]
                if callback_on_step_end is not None:
                    returned = callback_on_step_end(self, step, t, {"latents": sample})
                    sample = (returned or {}).get("latents", sample)
                if callback is not None and step % callback_steps == 0:
                    callback(step, t, sample)
                progress_bar.update()

        images = self.image_processor.postprocess(sample, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _image_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width in pixels, checked against the UNet's halvings."""
        native = self.unet.config.sample_size
        if native is None and (height is None or width is None):
            raise ValueError("this model has no sample_size in its config: give height and width.")
        native = native if isinstance(native, (tuple, list)) else (native, native)
        height, width = height or native[0], width or native[1]
        factor = 2 ** (len(self.unet.config.block_out_channels) - 1)
        if height % factor or width % factor or min(height, width) < 1:
            raise ValueError(f"height and width must be multiples of {factor} for this model, got {height}x{width}.")
        return height, width

    def _check_inputs(self, batch_size, timesteps, sigmas, generator, output_type, callback_steps) -> None:
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise ValueError(f"batch_size must be a positive integer, got {batch_size!r}.")
        if timesteps is not None and sigmas is not None:
            raise ValueError("give timesteps or sigmas, not both.")
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(
                f"a list of generators needs one for each of the {batch_size} images, got {len(generator)}."
            )
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type must be 'pil', 'np', 'pt' or 'latent', got {output_type!r}.")
        channels = self.unet.config.out_channels
        if output_type == "pil" and channels not in (1, 3, 4):
            raise ValueError(
                f"PIL images have 1, 3 or 4 channels and this model's have {channels}: choose output_type 'np' or 'pt'."
            )
        if not isinstance(callback_steps, int) or callback_steps < 1:
            raise ValueError(f"callback_steps must be a positive integer, got {callback_steps!r}.")

    def _initial_noise(self, batch_size, height, width, generator, latents, device) -> Tensor:
        """sigma_max z, float32 [batch_size, C, height, width]."""
        shape = (batch_size, self.unet.config.in_channels, height, width)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        elif latents.shape != shape:
            raise ValueError(f"latents must have the shape {shape}, got {tuple(latents.shape)}.")
        return latents.to(device, torch.float32) * self.scheduler.init_noise_sigma

    def _labels(self, batch_size, class_labels, generator: Generators, device) -> Tensor | None:
        """Class labels as int64 [batch_size], or None for an unconditional model."""
        classes = self.unet.config.num_class_embeds
        if classes is None:
            if class_labels is not None:
                raise ValueError("this model is unconditional: leave class_labels out.")
            return None
        if class_labels is None:
            sources, shape = (generator, (1,)) if isinstance(generator, list) else ([generator], (batch_size,))
            drawn = [torch.randint(classes, shape, generator=g, device=g.device if g else "cpu") for g in sources]
            return torch.cat(drawn).to(device)
        labels = torch.as_tensor(self._numbers(class_labels)).reshape(-1)
        if len(labels) == 1:
            labels = labels.expand(batch_size)
        if len(labels) != batch_size or labels.is_floating_point():
            raise ValueError(f"class_labels must be one integer or {batch_size} of them, got {class_labels!r}.")
        if labels.min() < 0 or labels.max() >= classes:
            raise ValueError(f"class_labels must lie within 0 and {classes - 1}, got {labels.tolist()}.")
        return labels.to(device, torch.int64)

    def _numbers(self, class_labels):
        """Class labels with every name replaced by the number of its class."""
        if isinstance(class_labels, str):
            return self._number(class_labels)
        if isinstance(class_labels, np.ndarray) and class_labels.dtype.kind == "U":
            class_labels = class_labels.reshape(-1).tolist()
        if isinstance(class_labels, (list, tuple)):
            return [self._number(label) if isinstance(label, str) else label for label in class_labels]
        return class_labels

    def _number(self, name: str) -> int:
        """The number of the class of that name."""
        if not self.id2label:
            raise ValueError(f"this model does not name its classes: give class_labels as integers, got {name!r}.")
        for number, known in self.id2label.items():
            if known == name:
                return int(number)
        known_names = list(self.id2label.values())
        more = f" and {len(known_names) - 10} more" if len(known_names) > 10 else ""
        shown = ", ".join(map(repr, known_names[:10]))
        raise ValueError(f"class_labels by name must be among {shown}{more}, got {name!r}.")


def _labels_file(repository: str | os.PathLike, options: dict[str, Any]) -> Path | None:
    """labels.json of a folder or of a Hub repository, or None.

    Args:
        options: what the pipeline was loaded with.
    """
    if os.path.isdir(repository):
        path = Path(repository) / LABELS_NAME
        return path if path.is_file() else None
    names = ("cache_dir", "revision", "token", "local_files_only", "force_download")
    given = {name: options[name] for name in names if options.get(name) is not None}
    try:
        return Path(hf_hub_download(str(repository), LABELS_NAME, **given))
    except (EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled):
        # There is none, or the Hub does not answer and the pipeline came from the cache, which has none.
        return None


def _read_labels(path: Path) -> dict[int, str]:
    """Names of classes by number."""
    try:
        names = {int(number): name for number, name in json.loads(path.read_text(encoding="utf-8"))["id2label"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f'{path} must hold {{"id2label": {{"0": NAME, ...}}}}: {first_line(error)}') from error
    return names


def load_pipeline(repository: str) -> DiffusionPipeline:
    """A repository, by path or Hub id, as stock diffusers loads it.

    Raises:
        UserError: nothing to be loaded.
    """
    try:
        return DiffusionPipeline.from_pretrained(repository)
    except Exception as error:  # damaged files raise what they like
        raise UserError(f"stock diffusers cannot load {repository}: {first_line(error)}") from error


def load_stock(repository: str) -> ConsistencyModelPipeline:
    """A consistency repository, by path or Hub id, as stock diffusers loads it.

    Raises:
        UserError: nothing to be loaded, or another kind of pipeline.
    """
    stock = load_pipeline(repository)
    if not isinstance(stock, ConsistencyModelPipeline):
        raise UserError(f"{repository} must hold a ConsistencyModelPipeline, and holds a {type(stock).__name__}.")
    return stock


def load_consistency(repository: str, variant: str | None = None) -> ConsistencyPipeline:
    """A consistency repository, by path or Hub id, as this package loads it, without a progress bar.

    Raises:
        UserError: there is none, or a damaged one.
    """
    try:
        pipeline = ConsistencyPipeline.from_pretrained(repository, variant=variant)
    except Exception as error:  # damaged files raise what they like
        raise UserError(f"no consistency pipeline could be loaded from {repository}: {first_line(error)}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
