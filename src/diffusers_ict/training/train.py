"""Consistency training as the papers' algorithms have it: iCT, ECT, CT and ACT in one loop."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from ..data.batch import Batch
from ..data.draw import FAKES, GENERATOR, REALS
from ..data.stream import TrainingImages
from ..errors import TrainingDiverged, TrainingStopped
from ..formulas.preconditioning import boundary
from ..objectives.base import Objective, consistency_pair
from ..processes import GradientMean
from .captured import Captured, can_capture, captured_step
from .checkpoint import describe_newest
from .ema import move_towards
from .interruption import Interruption
from .optimization import learning_rate_factor, set_learning_rate
from .outputs import export_run, publish_run, sample_run, save_run, snapshot_run
from .recipe import Recipe
from .run import Run, open_run
from .schedule import is_due, is_sample_step, last_step


def train(recipe: Recipe, objective: Objective | None = None, images: TrainingImages | None = None) -> str | None:
    """Train as a recipe says, from reading the data to the exported folder.

    Args:
        objective: one of your own, instead of the one that the recipe names.
        images: of your own, instead of those that the recipe names; see `read_images`.

    Returns:
        Why publishing failed, or None: a failed upload never interrupts training, and loses nothing.

    Raises:
        UserError: the recipe or the data cannot be used, and nothing is written; or the disk is full.
        TrainingDiverged: a loss or a tensor of the state is not finite; the checkpoints stay.
        TrainingStopped: by a signal, a time limit, or the end of its launcher; a checkpoint of the last step is there.
    """
    with open_run(recipe, objective, images) as run:
        try:
            with run.own_randomness(), Interruption(run.accelerator, recipe.max_train_minutes) as interruption:
                _train_steps(run, interruption)
        except TrainingDiverged as error:
            raise TrainingDiverged(
                f"{error}; {describe_newest(run.output_dir)}; go on with `resume_from_checkpoint` latest, "
                "`resume_with_changes`, and a lower `learning_rate` or another `seed`"
            ) from error
        if recipe.dry_run:
            run.accelerator.print(run.metrics.time_estimate(recipe.max_train_steps))
            return None
        failure = None
        if run.accelerator.is_main_process:
            export_run(run, recipe.max_train_steps)
            if recipe.push_to_hub:
                publish_run(run)
                failure = run.publisher.finish()
        return failure


def _train_steps(run: Run, interruption: Interruption) -> None:
    """The training loop, from the first step of the run to its last, or to the one that is interrupted."""
    recipe, accelerator, metrics, optimizer, ema = run.recipe, run.accelerator, run.metrics, run.optimizer, run.ema
    objective, adversary, total_steps = run.objective, run.adversary, recipe.max_train_steps
    gradients = GradientMean(accelerator, run.unet.parameters())
    rate = learning_rate_factor(recipe.lr_scheduler, recipe.lr_warmup_steps, total_steps)
    if run.first_step and is_sample_step(recipe, run.first_step - 1) and accelerator.is_main_process:
        sample_run(run, run.first_step)  # the checkpoint came first, and the run may have ended before its samples

    def generator_loss(batch: Batch, denoising: bool) -> Tensor:
        f, teacher = run.f, boundary if denoising else run.f_teacher
        pair = consistency_pair(f, batch.x, batch.noise, batch.sigma, batch.sigma_next, batch.labels, teacher=teacher)
        # lambda(sigma_i) d(student, target), and with ACT L_G
        return objective.loss(pair) if adversary is None else adversary.generator_loss(objective, pair, batch)

    def learn(batch: Batch, denoising: bool) -> Tensor:
        with nullcontext() if adversary is None else adversary.judging():
            loss = generator_loss(batch, denoising)
        accelerator.backward(loss.mean() / recipe.gradient_accumulation_steps)
        return loss.detach()

    if recipe.torch_compile:
        generator_loss = torch.compile(generator_loss, fullgraph=True)
    learn_from: dict[bool, Callable[[Batch], Tensor]]
    learn_from = {denoising: partial(learn, denoising=denoising) for denoising in (False, True)}
    update_weights: Callable[[], object] = optimizer.step
    if can_capture(recipe, accelerator):
        learn_from = {denoising: Captured(own) for denoising, own in learn_from.items()}
        update_weights = captured_step(optimizer)

    for step in range(run.first_step, last_step(recipe, run.first_step)):
        # ------------------------------------------------------------ the generator
        # Outputs at neighbouring noise levels must agree, the less noisy one being the image itself where the objective
        # denoises; with ACT, D must also take the noisier one for a real image.
        set_learning_rate(optimizer, recipe.learning_rate * rate(step))
        denoising = objective.denoises(step, total_steps)
        batches = run.draw_batch(step, GENERATOR)
        for part, batch in enumerate(batches, 1):
            torch.manual_seed(batch.dropout_seed)
            with gradients.over_processes(last=part == len(batches)):
                loss = learn_from[denoising](batch)
            metrics.add_losses(step, loss, batch.sigma_next)
        if recipe.max_grad_norm is not None:
            limit = recipe.max_grad_norm * objective.mean_weight(step, total_steps)
            accelerator.clip_grad_norm_(run.unet.parameters(), limit)
        update_weights()
        optimizer.zero_grad(set_to_none=False)  # a captured step finds them where they are
        ema.update(step)
        if run.powers is not None:
            run.powers.update(step)
        decay = objective.teacher_decay(step, total_steps)
        if run.teacher is not None and decay is not None:
            move_towards(run.teacher.parameters(), run.unet.parameters(), decay)

        # ------------------------------------------------------------ the discriminator
        if adversary is not None:
            set_learning_rate(adversary.optimizer, recipe.discriminator_learning_rate * rate(step))
            fakes, reals = run.draw_batch(step, FAKES), run.draw_batch(step, REALS)
            metrics.add_figures(adversary.update(run.f, fakes, reals, step, run.batch_size))  # L_D and R1

        # ------------------------------------------------------------ log, checkpoint, samples
        metrics.count_step(run.batch_size)
        if recipe.dry_run:
            continue
        last = step + 1 == total_steps
        if last or is_due(step, recipe.ema_snapshot_steps):
            snapshot_run(run, step + 1)
        stopping = None if last else interruption.reason()
        saving = last or stopping is not None or is_due(step, recipe.checkpointing_steps)
        sampling = stopping is None and is_sample_step(recipe, step)
        if sampling or saving or is_due(step, recipe.logging_steps):
            places = run.places_in_stream() if saving else None
            metrics.write(step + 1, objective.mean_weight(step, total_steps), objective.schedule(step, total_steps))
            if accelerator.is_main_process:
                if saving:
                    save_run(run, step + 1, places)
                if sampling:
                    sample_run(run, step + 1)
                if saving and not (last or stopping) and recipe.push_to_hub and recipe.hub_strategy == "checkpoint":
                    export_run(run, step + 1)
                    publish_run(run)
            accelerator.wait_for_everyone()
            metrics.start_clock()
        if stopping is not None:
            raise TrainingStopped(f"{stopping}, and stopped after step {step + 1} of {total_steps} with a checkpoint")
