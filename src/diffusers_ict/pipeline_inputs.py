"""What callers give a pipeline: checks, and what is drawn where they give nothing."""

import types
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from diffusers import ConsistencyModelPipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .arguments import integer
from .autoencoders import Autoencoder, downsampling
from .class_names import class_numbers, drawn_classes
from .normalization import Normalization

Generators = torch.Generator | list[torch.Generator] | None
Labels = Tensor | np.ndarray | Sequence[int | str] | int | str | None


class PipelineInputs(ConsistencyModelPipeline):
    """What a pipeline's network, its classes and its autoencoder let callers ask for."""

    _callback_tensor_inputs = ["latents"]
    id2label: dict[int, str] | None
    unlabelled: bool
    normalization: Normalization | None

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

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.unet.parameters()).device

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
