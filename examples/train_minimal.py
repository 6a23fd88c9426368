#!/usr/bin/env python
"""iCT (arXiv:2310.14189) in plain torch: the complete method, on the digits of scikit-learn, without a trainer.

python examples/train_minimal.py --steps 1400 --output_dir runs/minimal
"""

import argparse
import sys

import diffusers_ict.commands  # isort: skip  # noqa: F401 - before torch: threads that wait do not spin beside other work
import torch
from diffusers import UNet2DModel
from sklearn.datasets import load_digits

from diffusers_ict import (
    ICT,
    ConsistencyPipeline,
    ICTScheduler,
    consistency_pair,
    hold_fast_columns,
    zero_fast_columns,
)
from diffusers_ict.commands.program import run_program
from diffusers_ict.training.ema import exponential_average


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--output_dir", default="runs/minimal")
    options = parser.parse_args()
    torch.manual_seed(0)

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1  # 0..16 -> [-1, 1], [n, 1, 8, 8]
    labels = torch.tensor(digits.target)

    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        num_class_embeds=10,
    )
    zero_fast_columns(unet)  # the time embedding must not separate neighbouring noise levels
    hold_fast_columns(unet)

    objective, scheduler = ICT(), ICTScheduler()
    f = scheduler.consistency_function(unet)
    optimizer = torch.optim.RAdam(unet.parameters(), lr=1e-3)
    average = exponential_average(unet, 0.99)

    for step in range(options.steps):
        rows = torch.randint(len(images), (options.batch_size,))
        sigma, sigma_next = scheduler.training_sigmas(objective, step, options.steps, options.batch_size)
        noise = torch.randn_like(images[rows])
        pair = consistency_pair(f, images[rows], noise, sigma, sigma_next, labels[rows])
        loss = objective.loss(pair).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update()
        if step % 100 == 0:
            print(f"step {step}: N = {objective.num_levels(step, options.steps)}, loss = {loss:.3f}")

    pipeline = ConsistencyPipeline(average.module, scheduler)
    pipeline.save_pretrained(options.output_dir)
    pipeline(4, class_labels=[0, 1, 2, 3], num_inference_steps=2).images[0].resize((64, 64)).save(
        f"{options.output_dir}/zero.png"
    )


if __name__ == "__main__":
    sys.exit(run_program("train_minimal.py", main))
