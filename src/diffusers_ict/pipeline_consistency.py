"""ConsistencyPipeline: one- and few-step sampling, saved in a form that stock diffusers loads."""

import os
import re
import types
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import diffusers
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
from huggingface_hub import list_repo_files
from torch import Tensor

from .arguments import integer, positive
from .class_names import class_numbers, drawn_classes, load_class_names, save_class_names
from .errors import UserError, foreign_line
from .scheduling_ict import ICTScheduler

Generators = torch.Generator | list[torch.Generator] | None
Labels = Tensor | np.ndarray | Sequence[int | str] | int | str | None
Callback = Callable[..., dict | None] | None
# Since diffusers 0.40 the old name warns.
DTYPE = "dtype" if tuple(map(int, diffusers.__version__.split(".")[:2])) >= (0, 40) else "torch_dtype"
P = TypeVar("P", bound="ConsistencyPipelineBase")
D = TypeVar("D", bound=DiffusionPipeline)
# unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors and its shorter forms; of groups, the variant
WEIGHTS = re.compile(r"unet/[^/.]+(?:\.([^/.]+?))?(?:-\d{5}-of-\d{5})?\.(?:safetensors|bin)")


class ConsistencyPipelineBase(ConsistencyModelPipeline):
    """What the pipelines of this package have in common: components, loading, saving, and the one sampling loop.

    Repositories of stock consistency models load, too: any stock consistency scheduler becomes an `ICTScheduler`.
    A pipeline saves itself as the stock ConsistencyModelPipeline with the stock twin of its scheduler.

    Args:
        unet: a UNet2DModel with positional time embedding.
        scheduler: an ICTScheduler or a CMStochasticIterativeScheduler.

    Attributes:
        id2label: name of each class by its number, or None; read from and saved as labels.json. A class without a name
            beside others that have one had no images in training, and is drawn only where it is asked for.

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
    def from_pretrained(cls: type[P], pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> P:
        """Load a pipeline and the names of its classes. Arguments are those of `DiffusionPipeline.from_pretrained`.

        Raises:
            ValueError: labels.json cannot be read; other errors are those of diffusers.
        """
        pipeline = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        pipeline.id2label = load_class_names(pretrained_model_name_or_path, kwargs)
        return pipeline

    @classmethod
    def from_pipe(cls: type[P], pipeline: DiffusionPipeline, **kwargs: Any) -> P:
        """A pipeline with the components, class names and progress bar of another. Arguments are those of diffusers.

        The UNet is shared, and keeps its dtype unless one is given; diffusers would cast it to float32.
        """
        dtype = {} if {"dtype", "torch_dtype"} & kwargs.keys() else {DTYPE: pipeline.dtype}
        made = super().from_pipe(pipeline, **dtype, **kwargs)
        made.id2label = getattr(pipeline, "id2label", None)
        made.set_progress_bar_config(**getattr(pipeline, "_progress_bar_config", {}))
        return made

    def to(self: P, *args: Any, **kwargs: Any) -> P:
        """As in diffusers, which warns of a cast even where the network has that dtype: there, nothing is cast."""
        if all(weight.dtype == kwargs.get("dtype") for weight in self.unet.parameters()):
            kwargs["dtype"] = None
        return super().to(*args, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save as a stock ConsistencyModelPipeline with the stock twin of the scheduler, and labels.json beside it.

        Such a folder, or the Hub repository made of it, loads with and without this package and gives the same
        images with one and two steps. Arguments are those of `DiffusionPipeline.save_pretrained`. Without class names,
        a labels.json that is in the folder is removed.
        """
        save_class_names(save_directory, self.id2label)  # before the rest, which may be uploaded as soon as it is saved
        stock = ConsistencyModelPipeline(unet=self.unet, scheduler=self.scheduler.to_stock())
        stock.save_pretrained(save_directory, **kwargs)

    # As diffusers has them, for networks that are no ModelMixin, too.

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return next(self.unet.parameters()).dtype

    @property
    def num_timesteps(self) -> int:
        """The number of steps of the last call, as in other pipelines."""
        return len(self.scheduler.timesteps)

    def _sample(
        self,
        sample: Tensor,
        labels: Tensor | None,
        generator: Generators,
        after_step: Callable[[int, Tensor, Tensor], Tensor],
        edit: Callable[[Tensor], Tensor] = lambda estimate: estimate,
    ) -> Tensor:
        """Evaluate, edit, and add noise again, through the levels that are set: CM, Algorithms 1 and 4.

        Args:
            sample: noisy images of the first level, float32 [B, C, H, W].
            labels: int64 [B], or None.
            after_step: called with (step, timestep, sample); what it returns is the sample.
            edit: called with the clipped estimate; what it returns is the estimate.
        """
        timesteps = self.scheduler.timesteps
        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for step, t in enumerate(timesteps):
                scaled = self.scheduler.scale_model_input(sample, t).to(self.dtype)
                output = self.unet(scaled, t, class_labels=labels, return_dict=False)[0]
                # The sample stays in float32 whatever the network computes in.
                estimate = edit(self.scheduler.estimate(output.float(), sample))
                sample = after_step(step, t, self.scheduler.renoise(estimate, generator))
                progress_bar.update()
        return sample

    def _output(
        self, sample: Tensor, output_type: str, return_dict: bool, in_unit: bool = False
    ) -> ImagePipelineOutput | tuple:
        """Samples as the images that a caller asked for; `in_unit`, they are in [0, 1], else in [-1, 1]."""
        images = self.image_processor.postprocess(sample, output_type, [not in_unit] * len(sample))
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _call_back(self, callback: Callback, step: int, t: Tensor, sample: Tensor) -> Tensor:
        """The sample, or what `callback_on_step_end` returns in its place."""
        returned = None if callback is None else callback(self, step, t, {"latents": sample})
        return (returned or {}).get("latents", sample)

    def _image_size(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """Height and width in pixels, by default the model's, checked against the UNet's halvings."""
        native = self.unet.config.sample_size
        if native is None and (height is None or width is None):
            raise ValueError("this model has no sample_size in its config: give height and width.")
        native = native if isinstance(native, (tuple, list)) else (native, native)
        sides = [integer(own if side is None else side) for side, own in zip((height, width), native)]
        factor = 2 ** (len(getattr(self.unet.config, "block_out_channels", [1])) - 1)
        if not all(side and side > 0 and side % factor == 0 for side in sides):
            shown = "x".join(str(own if side is None else side) for side, own in zip((width, height), native[::-1]))
            raise ValueError(f"height and width must be multiples of {factor} for this model, got {shown}.")
        return cast(tuple[int, int], tuple(sides))

    def _check_inputs(self, batch_size, generator, output_type, tensor_inputs) -> None:
        for one in generator if isinstance(generator, list) else [generator]:
            if not isinstance(one, (torch.Generator, types.NoneType)):
                raise ValueError(
                    f"generator must be a torch.Generator or a list of them, got {one!r}; for a seed, give "
                    "torch.Generator().manual_seed(0)."
                )
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"a list of generators needs one for each of {batch_size} images, got {len(generator)}.")
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type must be 'pil', 'np', 'pt' or 'latent', got {output_type!r}.")
        channels = self.unet.config.out_channels
        if output_type == "pil" and channels not in (1, 3, 4):
            raise ValueError(
                f"PIL images have 1, 3 or 4 channels and this model's have {channels}: choose output_type 'np' or 'pt'."
            )
        if unknown := set(tensor_inputs) - set(self._callback_tensor_inputs):
            raise ValueError(f"callback_on_step_end_tensor_inputs may hold 'latents' only, got {sorted(unknown)}.")

    def _noise(self, shape: tuple[int, ...], generator: Generators, latents: Tensor | None) -> Tensor:
        """z, float32 [batch_size, C, height, width]: `latents` where they are given."""
        device = self._execution_device
        if latents is None:
            return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        if latents.shape != shape:
            raise ValueError(f"latents must have the shape {tuple(shape)}, got {tuple(latents.shape)}.")
        return latents.to(device, torch.float32)

    def _labels(self, batch_size: int, class_labels: Labels, generator: Generators) -> Tensor | None:
        """Class labels as int64 [batch_size], or None for an unconditional model."""
        classes = self.unet.config.num_class_embeds
        if classes is None:
            if class_labels is not None:
                raise ValueError("this model is unconditional: leave class_labels out.")
            return None
        if class_labels is None:
            sources, shape = (generator, (1,)) if isinstance(generator, list) else ([generator], (batch_size,))
            known = torch.tensor(drawn_classes(self.id2label, classes))  # the others had no images in training
            drawn = [torch.randint(len(known), shape, generator=g, device=g.device if g else "cpu") for g in sources]
            return known[torch.cat(drawn).cpu()].to(self._execution_device)
        labels = class_numbers(class_labels, self.id2label)
        if len(labels) not in (1, batch_size) or None in labels:
            raise ValueError(f"class_labels must be one integer or {batch_size} of them, got {class_labels!r}.")
        if not all(0 <= label < classes for label in cast(list[int], labels)):
            raise ValueError(f"class_labels must lie within 0 and {classes - 1}, got {labels}.")
        return torch.tensor(labels, device=self._execution_device).expand(batch_size)


class ConsistencyPipeline(ConsistencyPipelineBase):
    """Unconditional or class-conditional image generation with a consistency model.

    Takes what diffusers' ConsistencyModelPipeline takes and more (`sigmas`, `height`, `width`, `output_type="latent"`,
    `callback_on_step_end`, labels in any form, any number of channels). Repositories of either kind load into
    either pipeline. Components, loading and saving are those of `ConsistencyPipelineBase`.
    """

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: Labels = None,
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
        callback_on_step_end: Callback = None,
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
        batch_size, callback_steps = positive("batch_size", batch_size), positive("callback_steps", callback_steps)
        if timesteps is not None and sigmas is not None:
            raise ValueError("give timesteps or sigmas, not both.")
        self._check_inputs(batch_size, generator, output_type, callback_on_step_end_tensor_inputs)
        steps = num_inference_steps if timesteps is None and sigmas is None else None
        self.scheduler.set_timesteps(steps, self._execution_device, timesteps, sigmas)

        shape = (batch_size, self.unet.config.in_channels, height, width)
        sample = self._noise(shape, generator, latents) * self.scheduler.init_noise_sigma
        labels = self._labels(batch_size, class_labels, generator)

        def after_step(step: int, t: Tensor, sample: Tensor) -> Tensor:
            sample = self._call_back(callback_on_step_end, step, t, sample)
            if callback is not None and step % callback_steps == 0:
                callback(step, t, sample)
            return sample

        return self._output(self._sample(sample, labels, generator, after_step), output_type, return_dict)


def variants_of(repository: str) -> list[str | None]:
    """The variants of its UNet's weights that a repository holds; None, for those that are no variant, comes first.

    Raises:
        Exception: of the Hub's client, which raises many kinds, where a repository is there and cannot be listed.
    """
    folder = Path(repository)
    names = (f"unet/{path.name}" for path in folder.glob("unet/*")) if folder.is_dir() else list_repo_files(repository)
    found = {match[1] for name in names if (match := WEIGHTS.fullmatch(name))}
    return sorted(found, key=lambda variant: (variant is not None, variant))


def _load(kind: type[D], repository: str, variant: str | None = None) -> D:
    """A pipeline with float32 weights; where a repository has variants only, such as fp16, with the first of them."""
    local = Path(repository).is_dir()
    if variant is None and local:
        variant = next(iter(variants_of(repository)), None)
    try:
        return kind.from_pretrained(repository, variant=variant)
    except Exception:
        if local or variant is not None:
            raise
        with suppress(Exception):  # the first error tells more than that of a Hub that does not answer
            variant = next(iter(variants_of(repository)), None)
        if variant is None:
            raise
    return kind.from_pretrained(repository, variant=variant)


def load_pipeline(repository: str) -> DiffusionPipeline:
    """A repository, by path or Hub id, as stock diffusers loads it, or a UserError."""
    try:
        return _load(DiffusionPipeline, repository)
    except Exception as error:  # damaged files raise what they like
        raise UserError(f"stock diffusers cannot load {repository}: {foreign_line(error)}") from error


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
    """A consistency repository, by path or Hub id, as this package loads it, without a progress bar, or a UserError."""
    try:
        pipeline = _load(ConsistencyPipeline, repository, variant)
    except Exception as error:  # damaged files raise what they like
        reason, known = foreign_line(error), [variant]
        with suppress(Exception):  # a Hub that does not answer says less than the error
            known = variants_of(repository) if variant is not None else known
        if variant not in known:
            allowed = ", ".join(filter(None, known)) or "left out, as there is none"
            reason = f"`variant` may be {allowed}, got {variant}."
        raise UserError(f"no consistency pipeline could be loaded from {repository}: {reason}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
