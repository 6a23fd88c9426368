#!/usr/bin/env python
"""Train a DDPM as diffusers' unconditional training script does, with the flags of train_ict.py: a start for tuning.

    python benchmarks/ddpm_train.py --dataset_name digits.npz --max_train_steps 2000 --output_dir ddpm

OUTPUT_DIR gets the pipeline that the script publishes, with averaged weights, and log.jsonl. Heeded are the flags of
the data, and --model_config_name_or_path, --train_batch_size, --learning_rate, --max_train_steps, --random_flip,
--class_conditional, --mixed_precision, --torch_compile, --max_train_minutes and --seed. A run that was stopped goes on
when it is called again.
Exit codes: 0 done, 3 stopped by --max_train_minutes.
"""

import json
import shutil
import sys
import time
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import LambdaLR

from diffusers_ict.data.dataset import Images
from diffusers_ict.data.load import load_images
from diffusers_ict.training import checkpoint
from diffusers_ict.training.recipe import Recipe, parse
from diffusers_ict.training.unets import config_for

SAVING = 60  # seconds between saved states


class DDPMTraining:
    """What changes in a run: the network, its average and its optimizer; `done` steps and `seconds` so far."""

    def __init__(self, recipe: Recipe, images: Images, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.images, self.device = recipe, images, device
        self.unet = UNet2DModel.from_config(config_for(recipe, images, device.type == "cpu")).to(device)
        self.scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")
        self.optimizer = torch.optim.AdamW(
            self.unet.parameters(), lr=recipe.learning_rate, betas=(0.95, 0.999), weight_decay=1e-6
        )
        self.schedule = self._schedule(0)
        self.average = EMAModel(self.unet.parameters(), use_ema_warmup=True, inv_gamma=1.0, power=0.75)
        self.average.to(device)
        self.done, self.seconds = 0, 0.0
        self.predict = torch.compile(self.unet) if recipe.torch_compile else self.unet

    def _schedule(self, done: int) -> LambdaLR:
        for group in self.optimizer.param_groups:
            group["initial_lr"] = self.recipe.learning_rate
        steps = self.recipe.max_train_steps
        counts = {"num_warmup_steps": min(500, steps // 10), "num_training_steps": steps}
        return get_scheduler("cosine", self.optimizer, **counts, last_epoch=done - 1)

    def step(self) -> Tensor:
        """One optimizer step; the loss."""
        torch.manual_seed(self.recipe.seed + 1000 * (self.done + 1))  # so that no state of it has to be saved
        rows = torch.randint(len(self.images), (self.recipe.train_batch_size,))
        flips = torch.rand(len(rows)) < 0.5 if self.recipe.random_flip else None
        x, labels = self.images.batch(rows, flips, self.device)
        noise, times = torch.randn_like(x), torch.randint(0, 1000, (len(x),), device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.mixed_precision == "bf16"):
            predicted = self.predict(self.scheduler.add_noise(x, noise, times), times, class_labels=labels).sample
        loss = mse_loss(predicted.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.average.step(self.unet.parameters())
        self.done += 1
        return loss.detach()

    def save(self, folder: Path) -> None:
        """Write a checkpoint with everything that going on needs."""
        moments = self.optimizer.state_dict()["state"].items()
        tensors = {
            "unet": self.unet.state_dict(),
            "average": {str(n): tensor for n, tensor in enumerate(self.average.shadow_params)},
            "optimizer": {f"{n}.{name}": tensor for n, own in moments for name, tensor in own.items()},
        }
        saved = checkpoint.Checkpoint({"step": self.done, "seconds": self.seconds}, tensors)
        checkpoint.save(folder, self.done, saved, keep=1)

    def load(self, saved: checkpoint.Checkpoint) -> None:
        """Go on from what `save` has written."""
        self.unet.load_state_dict(saved.tensors["unet"])
        average = saved.tensors["average"]
        self.average.shadow_params = [average[str(n)].to(self.device) for n in range(len(average))]
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in saved.tensors["optimizer"].items():
            n, moment = name.split(".")
            moments.setdefault(int(n), {})[moment] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.done, self.seconds = saved.state["step"], saved.state["seconds"]
        self.average.optimization_step = self.done
        self.schedule = self._schedule(self.done)


def main() -> int:
    recipe = parse(None, "ddpm_train.py", __doc__)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training = DDPMTraining(recipe, load_images(recipe, class_conditional=recipe.class_conditional).to(device), device)
    output = Path(recipe.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    if saved_state := checkpoint.load_latest(output):
        training.load(saved_state)
    before, begun, saved = training.seconds, time.perf_counter(), time.perf_counter()
    with (output / "log.jsonl").open("a") as log:
        while training.done < recipe.max_train_steps:
            loss = training.step()
            if training.done % 50 == 0 or training.done == recipe.max_train_steps:
                entry = {"step": training.done, "loss": loss.item()}
                now = time.perf_counter()
                training.seconds = before + now - begun
                log.write(json.dumps({**entry, "train_seconds": training.seconds}) + "\n")
                log.flush()
                stopping = recipe.max_train_minutes is not None and now - begun > 60 * recipe.max_train_minutes
                if stopping or now - saved > SAVING:
                    training.save(output)
                    saved = now
                if stopping:
                    return 3
    training.average.copy_to(training.unet.parameters())
    DDPMPipeline(training.unet, training.scheduler).save_pretrained(output)
    for folder in checkpoint.list_checkpoints(output):
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
