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
import sys
import time
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import LambdaLR

from diffusers_ict.data.dataset import Images
from diffusers_ict.training.recipe import Recipe, parse
from diffusers_ict.training.unets import config_for

SAVING = 60  # seconds between saved states


class DDPMTraining:
    """What changes in a run: the network, its average and its optimizer; `done` steps and `seconds` so far."""

    def __init__(self, recipe: Recipe, images: Images, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.images, self.device = recipe, images, device
        self.unet = UNet2DModel.from_config(config_for(recipe, images)).to(device)
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

    def save(self, file: Path) -> None:
        """Everything that going on needs."""
        state = {f"unet.{n}": tensor for n, tensor in enumerate(self.unet.parameters())}
        state |= {f"average.{n}": tensor for n, tensor in enumerate(self.average.shadow_params)}
        for n, moments in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{n}.{name}": tensor for name, tensor in moments.items()}
        state = {name: tensor.detach().contiguous() for name, tensor in state.items()}
        part = file.with_suffix(".part")
        save_file(state, part, {"done": str(self.done), "seconds": str(self.seconds)})
        part.replace(file)

    def load(self, file: Path) -> None:
        """Go on from what `save` has written."""
        state = load_file(file, str(self.device))
        with torch.no_grad():
            for n, parameter in enumerate(self.unet.parameters()):
                parameter.copy_(state[f"unet.{n}"])
        self.average.shadow_params = [state[f"average.{n}"] for n in range(len(self.average.shadow_params))]
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            if name.startswith("optimizer."):
                _, n, moment = name.split(".")
                moments.setdefault(int(n), {})[moment] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        with file.open("rb") as handle:
            header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))["__metadata__"]
        self.done, self.seconds = int(header["done"]), float(header["seconds"])
        self.average.optimization_step = self.done
        self.schedule = self._schedule(self.done)


def main() -> int:
    recipe = parse(None, "ddpm_train.py", __doc__)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training = DDPMTraining(recipe, recipe.load(recipe.class_conditional).to(device), device)
    output = Path(recipe.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    state = output / "state.safetensors"
    if state.exists():
        training.load(state)
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
                    training.save(state)
                    saved = now
                if stopping:
                    return 3
    training.average.copy_to(training.unet.parameters())
    DDPMPipeline(training.unet, training.scheduler).save_pretrained(output)
    state.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
