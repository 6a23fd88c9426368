"""Train a consistency model from images: iCT, ECT, CT or ACT.

accelerate launch --quiet train_scripts/train_ict.py --train_data_dir my_images --resolution 64 --output_dir my-model

Exit codes: 0 done; 1 the training diverged; 2 bad input (nothing was written), or a file that cannot be written;
3 stopped early by a signal or by --max_train_minutes, with a checkpoint.
"""

import os
import sys
from collections.abc import Sequence

from ..errors import UserError
from ..training.recipe import parse
from .program import run_program

NAME = "train_ict.py"


# Flags of diffusers' training scripts that have no counterpart here, each with the reason.
FROM_DIFFUSERS = {
    "--dataloader_num_workers": "images are decoded once before training, on all cores, so there is no data loader",
    "--enable_xformers_memory_efficient_attention": "attention already uses PyTorch's own memory-efficient kernels",
    "--use_ema": "averages are always kept: choose their decays with --ema_decays",
    "--ema_max_decay": "averages have fixed decays: choose them with --ema_decays",
    "--ema_inv_gamma": "averages have fixed decays: choose them with --ema_decays",
    "--ema_power": "averages have fixed decays: choose them with --ema_decays",
    "--use_8bit_adam": "the published methods use RAdam, and so does this script",
    "--adam_weight_decay": "the published methods use RAdam without weight decay, and so does this script",
    "--adam_epsilon": "RAdam keeps its published epsilon of 1e-8",
    "--prediction_type": "a consistency model has one parametrisation, that of its paper",
    "--ddpm_num_steps": "noise levels come from the curriculum: see --s0 and --s1",
    "--ddpm_beta_schedule": "noise levels come from the curriculum: see --s0 and --s1",
    "--ddpm_num_inference_steps": "samples are drawn with one step and with two",
    "--snr_gamma": "the weight of each noise level is part of the method",
    "--logger": "choose a tracker with --report_to",
    "--logging_dir": "everything goes into --output_dir",
    "--cache_dir": "downloads go to the cache of the Hub library; --image_cache_dir keeps decoded images",
    "--eval_batch_size": "choose the number of samples with --num_validation_images",
    "--save_images_epochs": "choose the steps between sample grids with --validation_steps",
    "--validation_epochs": "choose the steps between sample grids with --validation_steps",
    "--save_model_epochs": "choose the steps between checkpoints with --checkpointing_steps",
    "--hub_token": "log in with `hf auth login`, or set HF_TOKEN; process lists and trackers show command lines",
    "--overwrite_output_dir": "nothing is overwritten: name another --output_dir, or delete the folder",
    "--scale_lr": "multiply --learning_rate yourself",
    "--local_rank": "accelerate and torchrun set the rank through the environment",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the flags say, by default those of the command line; returns the exit code."""
    return run_program(NAME, lambda: _train(argv))


def _train(argv: Sequence[str] | None) -> None:
    for word in sys.argv[1:] if argv is None else argv:
        if reason := FROM_DIFFUSERS.get(word.split("=")[0]):
            raise UserError(f"{word.split('=')[0]} does not exist here: {reason}.")
    recipe = parse(argv, NAME, __doc__)
    from ..training.train import train

    failure = train(recipe)
    if not recipe.dry_run and os.environ.get("RANK", "0") == "0":
        folder = recipe.output_dir
        print(f"The model is in {folder}: samples in {folder}/samples, plot in {folder}/training.png, model card in")
        print(f"{folder}/README.md. Next: diffusers-ict evaluate {folder} with the data flags of this run, or")
        print(f"diffusers-ict publish {folder} --hub_model_id you/{os.path.basename(folder)}")
    if failure is not None:
        again = f"diffusers-ict publish {recipe.output_dir} --hub_model_id {recipe.hub_model_id}"
        print(f"{NAME}: {failure} Everything is in {recipe.output_dir}; finish with {again}", file=sys.stderr)
    elif recipe.push_to_hub and not recipe.dry_run:
        print(f"Published as {recipe.hub_model_id}.")
