#!/usr/bin/env python
"""Train as diffusers' own consistency training script does, with the flags of train_ict.py: the peer of compare.py.

    python benchmarks/diffusers_train.py --dataset_name digits.npz --max_train_steps 500 --output_dir peer

OUTPUT_DIR gets the pipeline that the script publishes, OUTPUT_DIR/averaged the same with the averaged weights, and
log.jsonl what compare.py reads. Heeded are the flags of the data, and --model_config_name_or_path, --dropout,
--train_batch_size, --learning_rate, --max_train_steps, --random_flip, --class_conditional and --seed.
"""

import json
import time
from pathlib import Path

import torch
from diffusers import UNet2DModel
from diffusers_step import DiffusersStep

from diffusers_ict.data.load import load_images
from diffusers_ict.training.recipe import parse
from diffusers_ict.training.unets import config_for


def main() -> None:
    recipe = parse(None, "diffusers_train.py", __doc__)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = load_images(recipe, class_conditional=recipe.class_conditional).to(device)
    torch.manual_seed(recipe.seed)
    unet = UNet2DModel.from_config(
        {**config_for(recipe, images, device.type == "cpu"), "dropout": recipe.dropout or 0.0}
    )
    step = DiffusersStep(
        unet.to(device), recipe.max_train_steps, recipe.learning_rate, torch.autocast(device.type, enabled=False)
    )
    output = Path(recipe.output_dir)
    output.mkdir(parents=True)
    start = time.perf_counter()
    with (output / "log.jsonl").open("w") as log:
        for number in range(1, recipe.max_train_steps + 1):
            rows = torch.randint(len(images), (recipe.train_batch_size,))
            flips = torch.rand(len(rows)) < 0.5 if recipe.random_flip else None
            step(*images.batch(rows, flips, device))
            passed = time.perf_counter() - start
            entry = {"step": number, "images_per_second": number * recipe.train_batch_size / passed}
            log.write(json.dumps({**entry, "train_seconds": passed}) + "\n")
    step.publish(output, averaged=False)
    step.publish(output / "averaged", averaged=True)


if __name__ == "__main__":
    main()
