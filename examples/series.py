#!/usr/bin/env python
"""Series instead of images: a network of one dimension, given to `train(model=...)`, and sampled in the data's units.

    python examples/series.py --steps 3000 --output_dir runs/series

The data are oscillations that fade: position and velocity of a spring, 64 moments each. A UNet2DModel halves both sides
of its images, so the network of series is diffusers' UNet1DModel, which sees [B, C, 1, L] as [B, C, L].
"""

import argparse
import sys
from types import SimpleNamespace

import diffusers_ict.commands  # isort: skip  # noqa: F401 - before torch: threads that wait do not spin beside other work
import numpy as np
import torch
from diffusers import UNet1DModel
from safetensors.torch import load_model

from diffusers_ict import ConsistencyPipeline, ICTScheduler
from diffusers_ict.commands.program import run_program
from diffusers_ict.data.dataset import Images
from diffusers_ict.normalization import fit, load_normalization
from diffusers_ict.training.recipe import Recipe
from diffusers_ict.training.train import train

LENGTH = 64
WIDTHS = (32, 64, 128)


class SeriesNet(torch.nn.Module):
    """UNet1DModel with the call of a UNet2DModel: x [B, C, 1, L], timesteps [B] or one number -> ([B, C, 1, L],)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = UNet1DModel(
            sample_size=LENGTH,
            in_channels=channels,
            out_channels=channels,
            time_embedding_type="positional",
            use_timestep_embedding=True,
            block_out_channels=WIDTHS,
            down_block_types=("DownResnetBlock1D",) * 3,
            up_block_types=("UpResnetBlock1D",) * 2,
            mid_block_type="MidResTemporalBlock1D",
            out_block_type="OutConv1DBlock",
            act_fn="swish",
            norm_num_groups=8,
        )
        shape = {"sample_size": (1, LENGTH), "in_channels": channels, "out_channels": channels}
        self.config = SimpleNamespace(**shape, num_class_embeds=None)

    def forward(self, x, timesteps, class_labels=None, return_dict=False):
        timesteps = torch.as_tensor(timesteps, device=x.device).expand(len(x)).to(x.dtype)
        return (self.net(x[:, :, 0], timesteps).sample[:, :, None],)


def springs(count: int, seed: int) -> torch.Tensor:
    """Position and velocity of springs of random frequency, phase and friction: float32 [n, 2, 1, 64]."""
    frequency, phase, friction = np.random.default_rng(seed).uniform((1, 0, 0.5), (4, 2 * np.pi, 2), (count, 3)).T
    time = np.linspace(0, 1, LENGTH)
    z = np.exp(np.outer(-friction + 2j * np.pi * frequency, time)) * np.exp(1j * phase)[:, None]
    velocity = z * (-friction + 2j * np.pi * frequency)[:, None]
    return torch.from_numpy(np.stack([z.real, velocity.real], 1)[:, :, None].astype(np.float32))


def error_of_motion(series: np.ndarray) -> float:
    """How far the velocity is from the difference quotient of the position, as a share of its size: [n, 1, 64, 2]."""
    position, velocity = series[:, 0, :, 0], series[:, 0, :, 1]
    quotient = (position[:, 2:] - position[:, :-2]) * (LENGTH - 1) / 2
    return float(np.sqrt(np.mean((quotient - velocity[:, 1:-1]) ** 2) / np.mean(velocity**2)))


def load(folder: str) -> ConsistencyPipeline:
    """The pipeline of a run: of a network of one's own, its folder holds the weights."""
    network = SeriesNet(channels=2)
    load_model(network, f"{folder}/unet/diffusion_pytorch_model.safetensors")
    pipeline = ConsistencyPipeline(network.eval(), ICTScheduler.from_pretrained(folder, subfolder="scheduler"))
    pipeline.normalization = load_normalization(folder, {})
    return pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--output_dir", default="runs/series")
    options = parser.parse_args()
    values = springs(4000, seed=0)
    normalization = fit(values, "mean-std")
    recipe = Recipe(
        max_train_steps=options.steps, train_batch_size=64, learning_rate=1e-3, lr_scheduler="cosine",
        objective={"s1": 40}, ema_decays=[0.99], output_dir=options.output_dir,
    )  # fmt: skip
    train(recipe, model=SeriesNet(channels=2), dataset=Images(normalization.apply(values), normalization=normalization))
    drawn = load(options.output_dir)(500, num_inference_steps=2, output_type="np", denormalize=True).images
    of_data = error_of_motion(springs(500, seed=1).permute(0, 2, 3, 1).numpy())
    print(f"velocity against the slope of the position: {error_of_motion(drawn):.3f} in samples, {of_data:.3f} in data")
    np.save(f"{options.output_dir}/samples.npy", drawn)


if __name__ == "__main__":
    sys.exit(run_program("series.py", main))
