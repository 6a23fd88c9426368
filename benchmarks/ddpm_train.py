#!/usr/bin/env python
"""Train a DDPM as diffusers' unconditional training script does, with the flags of train_ict.py: a start for tuning.

    python benchmarks/ddpm_train.py --dataset_name digits.npz --max_train_steps 2000 --output_dir ddpm

OUTPUT_DIR gets the pipeline that the script publishes, with averaged weights, and log.jsonl. Heeded are the flags of
the data, and --model_config_name_or_path, --train_batch_size, --learning_rate, --max_train_steps, --random_flip,
--class_conditional and --seed.
"""

import json
import time
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.nn.functional import mse_loss

from diffusers_ict.training.recipe import parse
from diffusers_ict.training.unets import config_for


def main() -> None:
    recipe = parse(None, "ddpm_train.py", __doc__)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = recipe.load(recipe.class_conditional).to(device)
    torch.manual_seed(recipe.seed)
    unet = UNet2DModel.from_config(config_for(recipe, images)).to(device)
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")
    optimizer = torch.optim.AdamW(unet.parameters(), lr=recipe.learning_rate, betas=(0.95, 0.999), weight_decay=1e-6)
    warmup = min(500, recipe.max_train_steps // 10)
    rates = get_scheduler("cosine", optimizer, num_warmup_steps=warmup, num_training_steps=recipe.max_train_steps)
    average = EMAModel(unet.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    average.to(device)
    output = Path(recipe.output_dir)
    output.mkdir(parents=True)
    start = time.perf_counter()
    with (output / "log.jsonl").open("w") as log:
        for number in range(1, recipe.max_train_steps + 1):
            rows = torch.randint(len(images), (recipe.train_batch_size,))
            flips = torch.rand(len(rows)) < 0.5 if recipe.random_flip else None
            x, labels = images.batch(rows, flips, device)
            noise, times = torch.randn_like(x), torch.randint(0, 1000, (len(x),), device=device)
            loss = mse_loss(unet(scheduler.add_noise(x, noise, times), times, class_labels=labels).sample, noise)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
            average.step(unet.parameters())
            if number % 50 == 0 or number == recipe.max_train_steps:
                entry = {"step": number, "loss": loss.item(), "train_seconds": time.perf_counter() - start}
                log.write(json.dumps(entry) + "\n")
                log.flush()
    average.copy_to(unet.parameters())
    DDPMPipeline(unet, scheduler).save_pretrained(output)


if __name__ == "__main__":
    main()
