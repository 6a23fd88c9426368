#!/usr/bin/env python
"""Train a consistency model from images: iCT, CT or ACT.

    accelerate launch train_scripts/train_ict.py --train_data_dir my_images --resolution 64 --output_dir my-model

Flags and their defaults: --help. Exit codes: 0 done, 1 the training diverged, 2 bad input (nothing was written).
"""

import copy
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import yaml
from torch import Tensor
from tqdm.auto import tqdm

from diffusers_ict import CT, ICT, LPIPS, ConsistencyFunction, Objective, consistency_pair, karras_sigmas, squared_l2
from diffusers_ict.errors import UserError
from diffusers_ict.objective import dropout_masks
from diffusers_ict.preconditioning import per_image
from diffusers_ict.training.adversary import Adversary, build_discriminator
from diffusers_ict.training.batch import GlobalBatch
from diffusers_ict.training.card import write_card
from diffusers_ict.training.draw import INIT, VALIDATION, Draw, derive_seed
from diffusers_ict.training.ema import EMA, move_towards
from diffusers_ict.training.estimate import describe
from diffusers_ict.training.images import load_images
from diffusers_ict.training.log import JSONLines, LossRecord, TrainingDiverged, flat, plot_training
from diffusers_ict.training.processes import average_gradients, make_accelerator
from diffusers_ict.training.publish import BackgroundPublisher, push, stage
from diffusers_ict.training.receipt import write_receipt
from diffusers_ict.training.recipe import Recipe, parse
from diffusers_ict.training.samples import export, make_pipeline, save_samples
from diffusers_ict.training.state import RunState, claim_output_dir
from diffusers_ict.training.unets import make_student

CARD_TEMPLATE = Path(__file__).resolve().parent.parent / "model_cards" / "template.md"
STUDENT, FAKE, REAL = range(3)  # whose draw: the consistency step's, and the two halves of the discriminator's


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the flags say, by default those of the command line; returns the exit code."""
    try:
        train(parse(argv, "train_ict.py", __doc__.splitlines()[0]))
    except UserError as error:
        print(f"train_ict.py: {error}", file=sys.stderr)
        return 2
    except TrainingDiverged as error:
        # tqdm.write ends the line of an open progress bar first
        tqdm.write(f"train_ict.py: {error}; the last good checkpoint is kept.", file=sys.stderr)
        return 1
    return 0


def make_metric(recipe: Recipe, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """CT's distance."""
    if recipe.metric == "l2":
        return squared_l2
    try:
        given = recipe.lpips_weights
        return (LPIPS.from_package() if given is None else LPIPS.from_safetensors(given)).to(device)
    except ImportError as error:
        raise UserError("--metric lpips needs --lpips_weights FILE, or the package: pip install lpips.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"--lpips_weights cannot be used: {error}") from error


def make_objective(recipe: Recipe, device: torch.device) -> Objective:
    """The consistency objective of a recipe; for ACT, the one the adversarial term is mixed into."""
    if (recipe.consistency if recipe.loss == "act" else recipe.loss) == "ict":
        objective = ICT(recipe.s0, recipe.s1, recipe.p_mean, recipe.p_std, recipe.huber_c)
    else:
        objective = CT(recipe.s0, recipe.s1, recipe.teacher_mu0, make_metric(recipe, device))
    try:
        objective.num_levels(0, recipe.max_train_steps)
    except ValueError as error:
        raise UserError(f"--max_train_steps: {error}") from error
    return objective


def train(recipe: Recipe) -> None:
    """One run, from the data to the published folder."""
    # ---------------------------------------------------------------- the door: everything that can be refused
    output_dir = Path(recipe.output_dir)
    resuming = recipe.resume_from_checkpoint is not None
    accelerator = make_accelerator(recipe.mixed_precision, recipe.report_to, recipe.output_dir)
    device, ranks, rank = accelerator.device, accelerator.num_processes, accelerator.process_index
    objective = make_objective(recipe, device)
    claim_output_dir(output_dir, resuming)
    images = load_images(
        dataset_name=recipe.dataset_name,
        dataset_config_name=recipe.dataset_config_name,
        train_data_dir=recipe.train_data_dir,
        split=recipe.dataset_split,
        image_column=recipe.image_column,
        label_column=recipe.label_column,
        class_conditional=recipe.class_conditional,
        resolution=recipe.resolution,
        center_crop=recipe.center_crop,
        image_mode=recipe.image_mode,
        cache_dir=recipe.image_cache_dir,
    )
    part_size, parts = recipe.train_batch_size, recipe.gradient_accumulation_steps
    batch_size = part_size * parts * ranks
    if batch_size > len(images):
        raise UserError(
            f"a batch must not be larger than the data: {batch_size} images a step (batch x accumulation x processes) "
            f"and {len(images)} in the data; lower --train_batch_size."
        )
    unet = make_student(recipe, images, derive_seed(recipe.seed, INIT, STUDENT))
    discriminator = None
    if recipe.loss == "act":
        discriminator = build_discriminator(
            dict(unet.config), recipe.discriminator_config_name_or_path, derive_seed(recipe.seed, INIT, FAKE)
        )
    summary = describe(recipe, objective, images, batch_size, unet, discriminator)
    accelerator.print(summary)
    if recipe.dry_run:
        return

    # ---------------------------------------------------------------- the players
    images = images.to(device)
    unet.to(device).train()
    teacher = None  # iCT's student is its own teacher
    if objective.teacher_decay(2) is not None:
        teacher = copy.deepcopy(unet).requires_grad_(False)
    adversary = None if discriminator is None else Adversary(recipe, accelerator, unet, discriminator)
    sampler = copy.deepcopy(unet).requires_grad_(False)
    pipeline = make_pipeline(sampler, recipe.intermediate_sigmas)

    def in_precision(net):
        """The network's call under the run's mixed precision; all arithmetic around it stays in float32."""
        net = torch.compile(net) if recipe.torch_compile else net

        def call(*args, **kwargs):
            with accelerator.autocast():
                return net(*args, **kwargs)

        return call

    if recipe.torch_compile:
        # Compiled graphs must draw dropout masks as eager ones do, or student and teacher would not share them.
        import torch._inductor.config as inductor

        inductor.fallback_random = True
    f = ConsistencyFunction(in_precision(unet))
    f_teacher = None if teacher is None else ConsistencyFunction(in_precision(teacher))
    optimizer = accelerator.prepare(
        # foreach: one call for all parameters, also on CPUs, where it is not the default
        torch.optim.RAdam(unet.parameters(), recipe.learning_rate, (recipe.adam_beta1, recipe.adam_beta2), foreach=True)
    )
    ema = EMA(unet.named_parameters(), recipe.ema_decays, recipe.ema_warmup)
    state = RunState(recipe, unet, optimizer, ema, teacher, adversary, accelerator.scaler)
    first_step, seconds_before = state.load(output_dir) if resuming else (0, 0.0)

    # ---------------------------------------------------------------- the folder
    log = None
    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / "recipe.yaml").write_text(yaml.safe_dump(recipe.as_dict(), sort_keys=False))
        log = JSONLines(output_dir / "log.jsonl", first_step)
    if recipe.report_to is not None:
        accelerator.init_trackers("diffusers-ict", {k: str(v) for k, v in recipe.as_dict().items()})
    record, facts = LossRecord(accelerator), {}
    progress = tqdm(
        total=recipe.max_train_steps,
        initial=first_step,
        unit="step",
        mininterval=1.0 if sys.stderr.isatty() else 15.0,  # a log file is no terminal
        disable=not accelerator.is_main_process,
    )

    augmented = adversary is not None and recipe.augment

    def draw_batch(step: int, player: int, sigmas: Tensor, probabilities: Tensor) -> GlobalBatch:
        draw = Draw(recipe.seed, step, batch_size, device, player)
        return GlobalBatch(draw, images, sigmas, probabilities, recipe.random_flip, augmented)

    def leave(step: int) -> None:
        """Write what others need: pipeline, variants, discriminator, plot, facts and card."""
        export(pipeline, ema, output_dir)
        if adversary is not None:
            adversary.model.save_pretrained(output_dir / "discriminator")
        plot_training(output_dir / "log.jsonl", output_dir / "training.png")
        parameters = sum(p.numel() for p in unet.parameters())
        write_receipt(output_dir, recipe, accelerator, images, parameters, step, batch_size, train_seconds)
        write_card(output_dir, CARD_TEMPLATE)

    publisher = BackgroundPublisher(
        lambda staged: push(
            staged, recipe.hub_model_id, token=recipe.hub_token, private=recipe.hub_private_repo or None
        )
    )

    # ---------------------------------------------------------------- the step
    train_seconds, images_told, clock = seconds_before, 0, time.perf_counter()
    for step in range(first_step, recipe.max_train_steps):
        num_levels = objective.num_levels(step, recipe.max_train_steps)
        sigmas = karras_sigmas(num_levels)
        probabilities = objective.pair_probabilities(sigmas)

        # First player: neighbours on one noise ray agree, and with ACT the outcome convinces the discriminator.
        whole = draw_batch(step, STUDENT, sigmas, probabilities)
        for part in range(rank, parts * ranks, ranks):
            batch = whole.part(part, part_size)
            pair = consistency_pair(
                f,
                batch.x,
                batch.noise,
                batch.sigma,
                batch.sigma_next,
                batch.labels,
                dropout_seed=batch.dropout_seed,
                teacher=f_teacher,
            )
            if adversary is None:
                loss = objective.loss(pair)
            else:
                loss = adversary.generator_losses(objective, pair, batch, num_levels)
            accelerator.backward(loss.mean() / parts)
            record.add(step, loss, batch.sigma_next)
        average_gradients(accelerator, unet.parameters())
        optimizer.step()
        optimizer.zero_grad()
        ema.update(unet.named_parameters(), step)
        if teacher is not None:
            move_towards(teacher.parameters(), unet.parameters(), objective.teacher_decay(num_levels))

        # Second player: tell images from what f makes of noise, each at a noise level of its own.
        if adversary is not None:
            fakes, reals = (draw_batch(step, player, sigmas, probabilities) for player in (FAKE, REAL))
            penalised, penalty_sum = (step + 1) % recipe.r1_interval == 0, 0.0
            for part in range(rank, parts * ranks, ranks):
                batch, real = fakes.part(part, part_size), reals.part(part, part_size)
                noisy = batch.x + per_image(batch.sigma_next, batch.x) * batch.noise
                with torch.no_grad(), dropout_masks(batch.dropout_seed, device):
                    fake = f(noisy, batch.sigma_next, batch.labels)
                loss, accuracy = adversary.discriminator_losses(fake, batch, real, num_levels)
                facts |= {"discriminator_loss": loss.detach().mean(), "discriminator_accuracy": accuracy}
                if penalised:
                    penalty = adversary.penalties(real, num_levels)
                    penalty_sum += penalty.detach().mean() / parts
                    loss = loss + penalty
                accelerator.backward(loss.mean() / parts)
            average_gradients(accelerator, adversary.model.parameters())
            adversary.optimizer.step()
            adversary.optimizer.zero_grad()
            if penalised:
                r1 = accelerator.reduce(penalty_sum, "mean").item()
                if recipe.augment:
                    adversary.strength.update(r1, batch_size * recipe.r1_interval)
                facts |= {"r1": r1, **adversary.strength.state()}

        # ------------------------------------------------------------ the records
        progress.update()
        images_told += batch_size
        last = step + 1 == recipe.max_train_steps
        validating = last or _due(step, recipe.validation_steps)
        saving = last or _due(step, recipe.checkpointing_steps)
        if validating or saving or _due(step, recipe.logging_steps):
            entry = record.summary()  # waits for the device, and stops the run at a loss that is not a number
            seconds = time.perf_counter() - clock
            train_seconds += seconds
            mean_weight = (probabilities * objective.weighting(sigmas[:-1], sigmas[1:])).sum().item()
            entry |= {
                "step": step + 1,
                "loss_unweighted": entry["loss"] / mean_weight,
                "num_levels": num_levels,
                "images_per_second": images_told / seconds,
                "train_seconds": train_seconds,
                **{name: float(value) for name, value in facts.items()},
            }
            shown = {"loss": f"{entry['loss']:.3g}", "N": num_levels, "images/s": f"{entry['images_per_second']:.0f}"}
            progress.set_postfix(shown, refresh=False)
            if log is not None:
                log.write(entry)
            if recipe.report_to is not None:
                accelerator.log(flat(entry), step + 1)
            if saving and accelerator.is_main_process:
                state.save(output_dir, step + 1, train_seconds)
            if validating and accelerator.is_main_process:
                ema.copy_to(sampler, recipe.ema_decays[0])
                noise_seed = derive_seed(recipe.seed, VALIDATION)
                save_samples(pipeline, output_dir / "samples", step + 1, recipe.num_validation_images, noise_seed)
            pushing = saving and not last and recipe.push_to_hub and recipe.hub_strategy == "checkpoint"
            if pushing and accelerator.is_main_process:
                leave(step + 1)
                publisher.submit(stage(output_dir, CARD_TEMPLATE, recipe.hub_model_id))
            accelerator.wait_for_everyone()
            facts, images_told, clock = {}, 0, time.perf_counter()
    progress.close()

    # ---------------------------------------------------------------- what is left for others
    if accelerator.is_main_process:
        leave(step=recipe.max_train_steps)
        if recipe.push_to_hub:
            publisher.submit(stage(output_dir, CARD_TEMPLATE, recipe.hub_model_id))
            _say_where(recipe, publisher.finish())
    accelerator.end_training()


def _say_where(recipe: Recipe, failure: str | None) -> None:
    """Whether publishing succeeded; a failure loses nothing."""
    if failure is None:
        print(f"Published as {recipe.hub_model_id}.")
        return
    again = f"train_scripts/publish.py {recipe.output_dir} --hub_model_id {recipe.hub_model_id}"
    print(f"train_ict.py: {failure} Everything is in {recipe.output_dir}; finish with {again}", file=sys.stderr)


def _due(step: int, every: int | None) -> bool:
    return every is not None and (step + 1) % every == 0


if __name__ == "__main__":
    sys.exit(main())
