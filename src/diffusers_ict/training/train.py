"""Consistency training as the papers' algorithms have it: iCT, ECT, CT and ACT in one loop."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.batches import Batch
from ..data.draw import FAKES, GENERATOR, REALS
from ..errors import TrainingDiverged, TrainingStopped
from ..formulas.preconditioning import boundary
from ..hub.provenance import code_commit
from ..invocation import message_name, typed
from ..objectives.base import Objective, consistency_pair
from ..processes import lost_processes, synchronized
from .adversary import Adversary
from .captured import Captured, can_capture, captured_step
from .checkpoint import describe_newest
from .ema import move_towards
from .interruption import Interruption
from .opening import open_run
from .optimization import rate_of
from .outputs import (
    end_upload,
    export_run,
    is_due,
    is_sample_step,
    publish_run,
    push_run,
    pushes_now,
    sample_run,
    save_run,
    snapshot_run,
)
from .recipe import Recipe
from .run import Run


def train(
    recipe: Recipe, *, model: nn.Module | None = None, dataset: Any = None, objective: Objective | None = None
) -> str | None:
    """Train as a recipe says, from reading the data to the exported folder.

    Args:
        model: a network of your own, instead of the recipe's UNet2DModel. It is called as
            `model(x, timesteps, class_labels=..., return_dict=False)[0]`, x [B, C, H, W] -> [B, C, H, W], where x has
            the channels of the condition behind those of the images, if there is one, and its
            `config` has `sample_size`, `in_channels`, `out_channels` and `num_class_embeds`. The timesteps are
            250 ln(sigma): [B] in training, one number in sampling.
        dataset: any map-style data set of {"x": uint8 or floating point [C, H, W], "label": int}, labels being
            optional, with a "condition" for pairs, instead of the recipe's; see `MapDataset`.
        objective: one of your own, instead of the one that the recipe names.

    Returns:
        Why publishing failed, or None: a failed upload never interrupts training, and loses nothing.

    Raises:
        UserError: the recipe or the data cannot be used, and nothing is written; or the disk is full.
        TrainingDiverged: a loss or a tensor of the state is not finite; the checkpoints stay.
        TrainingStopped: by a signal, a time limit, or the end of its launcher, and a checkpoint of the last step is
            there; or another of its processes has died.
        KeyboardInterrupt: outside the loop, or by the second Ctrl-C; it says which checkpoint is the newest.
    """
    try:
        with open_run(recipe, model, dataset, objective) as run:
            return _train_run(run)
    except KeyboardInterrupt as error:  # as the model is written, or a second time
        raise KeyboardInterrupt(describe_newest(Path(recipe.output_dir))) from error
    except RuntimeError as error:
        if (lost := lost_processes(error)) is None:
            raise
        raise TrainingStopped(f"{lost}; {describe_newest(Path(recipe.output_dir))}") from error


def _train_run(run: Run) -> str | None:
    """Train to the end, and export and publish the result. Why publishing failed, or None."""
    recipe = run.recipe
    if run.accelerator.is_main_process:
        code_commit()  # for its checkpoints: a signal to the group of processes, which stops a run, would end git, too
    try:
        stuck = Interruption(run.accelerator, recipe.max_train_minutes, partial(_farewell, run.output_dir))
        with run.own_randomness(), stuck as interruption:
            _train_steps(run, interruption)
    except TrainingStopped:
        end_upload(run)
        if recipe.hub_checkpoints is not None:
            run.accelerator.wait_for_everyone()  # a launcher ends all processes when the first has ended
        raise
    except TrainingDiverged as error:
        end_upload(run)
        raise TrainingDiverged(
            f"{error}; {describe_newest(run.output_dir)}; go on with `resume_from_checkpoint` latest, "
            "`resume_with_changes`, and a lower `learning_rate` or another `seed`"
        ) from error
    if recipe.dry_run:
        run.accelerator.print(run.metrics.estimate(recipe.max_train_steps))
    if recipe.dry_run or not run.accelerator.is_main_process:
        return None
    export_run(run, recipe.max_train_steps)
    if not recipe.push_to_hub:
        return None
    publish_run(run)
    return run.publisher.finish()


def _farewell(output_dir: Path) -> str:
    """What a process says that a signal ends in the middle of a step."""
    return (
        f"{message_name(typed('train'))}: stopped by a signal in a step that did not end within a minute; "
        f"{describe_newest(output_dir)}; the same command with --resume_from_checkpoint latest goes on.\n"
    )


def _train_steps(run: Run, interruption: Interruption) -> None:
    """The training loop, from the first step of the run to its last, or to the one that is interrupted."""
    recipe, accelerator, metrics, objective = run.recipe, run.accelerator, run.metrics, run.objective
    networks, optimizer = run.networks, run.networks.optimizer
    total_steps = recipe.max_train_steps
    if run.steps.start and is_sample_step(recipe, run.steps.start - 1) and accelerator.is_main_process:
        sample_run(run, run.steps.start)  # the checkpoint came first, and the run may have ended before its samples

    def learn(batch: Batch, denoising: bool, adversary: Adversary | None) -> Tensor:
        """Add the gradient of a micro batch: outputs at neighbouring levels must agree, and D take them for real."""
        teacher, mean = (boundary, None) if denoising else (networks.f_teacher, batch.mean)
        levels = batch.sigma, batch.sigma_next
        pair = consistency_pair(networks.f, batch.x, batch.noise, *levels, batch.told, teacher=teacher, mean=mean)
        with nullcontext() if adversary is None else adversary.judging():
            # lambda(sigma_i) d(student, target), or L_G with ACT
            loss = objective.loss(pair) if adversary is None else adversary.generator_loss(pair, batch)
            accelerator.backward(loss.mean() / recipe.gradient_accumulation_steps)
        return loss.detach()

    kinds = set(product((False, True), (None, networks.adversary)))
    learn_from: dict[Any, Callable[[Batch], Tensor]] = {
        kind: partial(learn, denoising=kind[0], adversary=kind[1]) for kind in kinds
    }
    update_weights: Callable[[], object] = optimizer.step
    if can_capture(recipe, accelerator):
        learn_from = {kind: Captured(function) for kind, function in learn_from.items()}
        update_weights = captured_step(optimizer)

    for step in run.steps:
        interruption.begin_step()
        # ------------------------------------------------------------ the generator
        denoising, adversary = objective.denoises(step, total_steps), networks.adversary_at(step)
        for part, batch in enumerate(run.micro_batches(GENERATOR, step), 1):
            torch.manual_seed(batch.dropout_seed)
            with synchronized(networks.net, last=part == recipe.gradient_accumulation_steps):
                loss = learn_from[denoising, adversary](batch)
            metrics.add_losses(step, loss, batch.sigma_next)
        if recipe.max_grad_norm is not None:
            limit = recipe.max_grad_norm * objective.mean_weight(step, total_steps)
            accelerator.clip_grad_norm_(networks.unet.parameters(), limit)
        update_weights()
        optimizer.zero_grad(set_to_none=False)  # a captured step finds them where they are
        for average in (*networks.averages.values(), *networks.powers.values()):
            average.update()
        if objective.rebuilds_after(step, total_steps):
            total = partial(accelerator.reduce, reduction="sum")
            objective.rebuild(networks.f_teacher, batch.x, batch.noise, batch.told, total)
        decay = objective.teacher_decay(step, total_steps)
        if networks.teacher is not None and decay is not None:
            move_towards(list(networks.teacher.parameters()), list(networks.unet.parameters()), decay)

        # ------------------------------------------------------------ the discriminator: L_D and R1
        if adversary is not None:
            fakes, reals = run.micro_batches(FAKES, step), run.micro_batches(REALS, step)
            parts, images = recipe.gradient_accumulation_steps, sum(b.batch_size for b in run.batches.values())
            metrics.add_figures(adversary.update(networks.f_student, fakes, reals, step, parts, images))
        for schedule in run.schedules[: 1 if adversary is None else 2]:
            schedule.step()

        # ------------------------------------------------------------ log, checkpoint, samples
        metrics.count_step(run.batch_size)
        if recipe.dry_run:
            if metrics.measured_enough():
                break
            continue
        last = step + 1 == total_steps
        if last or is_due(step, recipe.ema_snapshot_steps):
            snapshot_run(run, step + 1)
        stopping = None if last else interruption.reason(step)
        saving = last or stopping is not None or is_due(step, recipe.checkpointing_steps)
        sampling = stopping is None and is_sample_step(recipe, step)
        if sampling or saving or is_due(step, recipe.logging_steps):
            places = run.places_in_stream() if saving else None
            metrics.add_figures({"learning_rate": rate_of(run.schedules[0], step)})
            metrics.write(step + 1, objective.mean_weight(step, total_steps), objective.schedule(step, total_steps))
            if accelerator.is_main_process:
                if saving:
                    save_run(run, step + 1, places)
                if sampling:
                    sample_run(run, step + 1)
                if saving and not last and pushes_now(recipe, stopping is not None):
                    push_run(run, step + 1)
            accelerator.wait_for_everyone()
            metrics.start_clock()
        if stopping is not None:
            raise TrainingStopped(f"{stopping}, and stopped after step {step + 1} of {total_steps} with a checkpoint")
