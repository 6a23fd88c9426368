"""What the pipelines share: components, loading, saving in a form that stock diffusers loads, and one sampling loop."""

import os
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import diffusers
import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DiffusionPipeline,
    ImagePipelineOutput,
    LDMPipeline,
    UNet2DModel,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from .arguments import integer
from .autoencoders import Autoencoder, decode, downsampling, encode
from .class_names import class_numbers, drawn_classes, load_class_names, save_class_names
from .formulas.preconditioning import with_condition
from .normalization import Normalization, load_normalization, save_normalization
from .scheduling_ict import ICTScheduler

Generators = torch.Generator | list[torch.Generator] | None
Labels = Tensor | np.ndarray | Sequence[int | str] | int | str | None
Callback = Callable[..., dict | None] | None
# Since diffusers 0.40 the old name warns.
DTYPE = "dtype" if tuple(map(int, diffusers.__version__.split(".")[:2])) >= (0, 40) else "torch_dtype"
P = TypeVar("P", bound="ConsistencyPipelineBase")


@dataclass(frozen=True)
class Guide:
    """What samples are moved away from: f_guide + scale (f - f_guide).

    Attributes:
        network: f_guide, called with `label` for all images where that is not None, else with theirs.
    """

    network: nn.Module
    scale: float
    label: int | None = None


class ConsistencyPipelineBase(ConsistencyModelPipeline):
    """What the pipelines of this package have in common: components, loading, saving, and the one sampling loop.

    Repositories of stock consistency models load, too: any stock consistency scheduler becomes an `ICTScheduler`.
    A pipeline saves itself as the stock ConsistencyModelPipeline, or LDMPipeline, with the stock twin of its scheduler.

    Args:
        unet: a UNet2DModel with positional time embedding.
        scheduler: an ICTScheduler or a CMStochasticIterativeScheduler.
        vqvae: the autoencoder that decodes what the network draws, named as in LDMPipeline; None for a model of pixels.

    Attributes:
        id2label: name of each class by its number, or None; read from and saved as labels.json. A class without a name
            beside others that have one had no images in training, and is drawn only where it is asked for.
        unlabelled: whether the network was also trained without labels, which the last of its classes stands for; read
            from and saved in labels.json.
        normalization: of a model whose data are no pictures, how they came to what the network draws, or None; read
            from and saved as normalization.json.

    Raises:
        ValueError: any other scheduler.
    """

    _callback_tensor_inputs = ["latents"]
    _optional_components = ["vqvae"]
    model_cpu_offload_seq = "unet->vqvae"

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: CMStochasticIterativeScheduler,
        vqvae: AutoencoderKL | AutoencoderTiny | None = None,
    ) -> None:
        if not isinstance(scheduler, CMStochasticIterativeScheduler):
            raise ValueError(
                "a consistency pipeline needs an ICTScheduler or a CMStochasticIterativeScheduler, got "
                f"{type(scheduler).__name__}."
            )
        if not isinstance(scheduler, ICTScheduler):
            scheduler = ICTScheduler.from_stock(scheduler)
        super().__init__(unet=unet, scheduler=scheduler)
        self.register_modules(vqvae=vqvae)
        self.image_processor = VaeImageProcessor(vae_scale_factor=1)
        self.id2label: dict[int, str] | None = None
        self.unlabelled = False
        self.normalization: Normalization | None = None

    @classmethod
    def from_pretrained(cls: type[P], pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> P:
        """Load a pipeline, the names of its classes and its normalization.

        Arguments are those of `DiffusionPipeline.from_pretrained`.

        Raises:
            ValueError: labels.json or normalization.json cannot be read; other errors are those of diffusers.
        """
        pipeline = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        pipeline.id2label, pipeline.unlabelled = load_class_names(pretrained_model_name_or_path, kwargs)
        pipeline.normalization = load_normalization(pretrained_model_name_or_path, kwargs)
        return pipeline

    @classmethod
    def from_pipe(cls: type[P], pipeline: DiffusionPipeline, **kwargs: Any) -> P:
        """A pipeline with the components, class names, normalization and progress bar of another.

        Arguments are those of diffusers.
        The UNet is shared, and keeps its dtype unless one is given; diffusers would cast it to float32.
        """
        dtype = {} if {"dtype", "torch_dtype"} & kwargs.keys() else {DTYPE: pipeline.dtype}
        made = super().from_pipe(pipeline, **dtype, **kwargs)
        made.id2label, made.unlabelled = getattr(pipeline, "id2label", None), getattr(pipeline, "unlabelled", False)
        made.normalization = getattr(pipeline, "normalization", None)
        made.set_progress_bar_config(**getattr(pipeline, "_progress_bar_config", {}))
        return made

    def to(self: P, *args: Any, **kwargs: Any) -> P:
        """As in diffusers, which warns of a cast even where the network has that dtype: there, nothing is cast."""
        networks = filter(None, (self.unet, self.vqvae))
        if all(weight.dtype == kwargs.get("dtype") for network in networks for weight in network.parameters()):
            kwargs["dtype"] = None
        return super().to(*args, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save as a stock ConsistencyModelPipeline with the stock twin of the scheduler, and labels.json beside it.

        A model of latents becomes a stock LDMPipeline, which holds its autoencoder.
        Such a folder, or the Hub repository made of it, loads with and without this package and gives the same
        images with one and two steps. Arguments are those of `DiffusionPipeline.save_pretrained`. Without class names,
        a labels.json that is in the folder is removed, and so is a normalization.json of other data.
        """
        save_normalization(save_directory, self.normalization)
        # Before the rest, which may be uploaded as soon as it is saved.
        save_class_names(save_directory, self.id2label, self.unlabelled)
        parts = {"unet": self.unet, "scheduler": self.scheduler.to_stock()}
        vqvae = self.vqvae
        stock = ConsistencyModelPipeline(**parts) if vqvae is None else LDMPipeline(vqvae=vqvae, **parts)
        stock.save_pretrained(save_directory, **kwargs)

    @property
    def num_classes(self) -> int | None:
        """How many classes images can be asked of, or None."""
        embedded = self.unet.config.num_class_embeds
        return embedded if embedded is None else embedded - self.unlabelled

    @property
    def condition_channels(self) -> int:
        """Channels of the images that a model of pairs is given, which it sees behind those of the sample; else 0."""
        return max(0, self.unet.config.in_channels - self.unet.config.out_channels)

    @property
    def vae(self) -> Autoencoder | None:
        """The autoencoder, by the name that other pipelines give it."""
        return self.vqvae

    @property
    def vae_scale_factor(self) -> int:
        """How many times smaller the sides are of what the network draws than those of images; 1 for pixels."""
        return 1 if self.vqvae is None else downsampling(self.vqvae)

    @property
    def image_channels(self) -> int:
        """Channels of the images."""
        return self.unet.config.out_channels if self.vqvae is None else self.vqvae.config.out_channels

    def encode_images(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] as the network draws them: themselves, or the scaled means of their latents."""
        return images if self.vqvae is None else encode(self.vqvae, images)[0] * self.vqvae.config.scaling_factor

    def decode_images(self, sample: Tensor) -> Tensor:
        """What the network draws as images in [-1, 1]: the inverse of `encode_images`, as far as there is one."""
        return sample if self.vqvae is None else decode(self.vqvae, sample)

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
        guide: Guide | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Evaluate, edit, and add noise again, through the levels that are set: CM, Algorithms 1 and 4.

        Args:
            sample: noisy images of the first level, float32 [B, C, H, W].
            labels: int64 [B], or None.
            after_step: called with (step, timestep, sample); what it returns is the sample.
            edit: called with the clipped estimate; what it returns is the estimate.
            guide: what the estimate is moved away from, or None.
            condition: what the networks see in further input channels, [B, C', H, W] in [-1, 1], or None.
        """
        timesteps = self.scheduler.timesteps
        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for step, t in enumerate(timesteps):
                seen = with_condition(self.scheduler.scale_model_input(sample, t).to(self.dtype), condition)
                output = self.unet(seen, t, class_labels=labels, return_dict=False)[0]
                if guide is not None:  # f_guide + scale (f - f_guide), for f is linear in what its network gives
                    told = labels if guide.label is None or labels is None else torch.full_like(labels, guide.label)
                    other = guide.network(seen, t, class_labels=told, return_dict=False)[0]
                    output = torch.lerp(other.float(), output.float(), guide.scale)
                # The sample stays in float32 whatever the network computes in.
                estimate = edit(self.scheduler.estimate(output.float(), sample))
                sample = after_step(step, t, self.scheduler.renoise(estimate, generator))
                progress_bar.update()
        return sample

    def _output(
        self,
        sample: Tensor,
        output_type: str,
        return_dict: bool,
        in_unit: bool = False,
        denormalize: bool = False,
        finish: Callable[[Tensor], Tensor] = lambda images: images,
    ) -> ImagePipelineOutput | tuple:
        """Samples as the images that a caller asked for.

        Args:
            sample: what the network draws; or, `in_unit`, images in [0, 1].
            denormalize: give them in the units of the data.
            finish: called with decoded images in [-1, 1]; what it returns are the images.
        """
        if not (in_unit or output_type == "latent"):
            sample = finish(self.decode_images(sample))
        if denormalize:
            assert self.normalization is not None
            values = self.normalization.undo(sample)
            images = values if output_type == "pt" else values.permute(0, 2, 3, 1).cpu().numpy()
        else:
            images = self.image_processor.postprocess(sample, output_type, [not in_unit] * len(sample))
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _call_back(self, callback: Callback, step: int, t: Tensor, sample: Tensor) -> Tensor:
        """The sample, or what `callback_on_step_end` returns in its place."""
        returned = None if callback is None else callback(self, step, t, {"latents": sample})
        return (returned or {}).get("latents", sample)

    def _image_size(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """Height and width in pixels, by default the model's, checked against the halvings of its networks."""
        native, smaller = self.unet.config.sample_size, self.vae_scale_factor
        if native is None and (height is None or width is None):
            raise ValueError("this model has no sample_size in its config: give height and width.")
        native = [side and side * smaller for side in (native if isinstance(native, (tuple, list)) else [native] * 2)]
        sides = [integer(own if side is None else side) for side, own in zip((height, width), native)]
        factor = smaller * 2 ** (len(getattr(self.unet.config, "block_out_channels", [1])) - 1)
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
        channels = self.image_channels
        if output_type == "pil" and channels not in (1, 3, 4):
            raise ValueError(
                f"PIL images have 1, 3 or 4 channels and this model's have {channels}: choose output_type 'np' or 'pt'."
            )
        if unknown := set(tensor_inputs) - set(self._callback_tensor_inputs):
            raise ValueError(f"callback_on_step_end_tensor_inputs may hold 'latents' only, got {sorted(unknown)}.")

    def _check_denormalize(self, denormalize: bool, output_type: str) -> None:
        if denormalize and self.normalization is None:
            raise ValueError("this model has no normalization.json and draws pictures: leave denormalize out.")
        if denormalize and output_type not in ("np", "pt"):
            raise ValueError(
                f"data in their own units are arrays: choose output_type 'np' or 'pt', got {output_type!r}."
            )

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
        classes = self.num_classes
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
