"""Consistency training as the papers' algorithms have it: iCT, CT and ACT in one loop."""

from ..data.draw import FAKES, GENERATOR, REALS
from ..objective import Objective, consistency_pair
from ..processes import average_gradients
from .ema import move_towards
from .outputs import export_run, publish_run, sample_run, save_run
from .recipe import Recipe
from .run import open_run


def train(recipe: Recipe, objective: Objective | None = None) -> str | None:
    """Train as a recipe says, from reading the data to the exported folder.

    Args:
        objective: one of your own, instead of the one that the recipe names.

    Returns:
        Why publishing failed, or None: a failed upload never interrupts training, and loses nothing.

    Raises:
        UserError: the recipe or the data cannot be used; nothing is written.
        TrainingDiverged: a loss or a weight is not a number; the checkpoints stay.
    """
    run = open_run(recipe, objective)
    if run is None:  # a dry run
        return None
    accelerator, metrics, optimizer, ema = run.accelerator, run.metrics, run.optimizer, run.ema
    objective, adversary, total_steps = run.objective, run.adversary, recipe.max_train_steps

    for step in range(run.first_step, total_steps):
        # ------------------------------------------------------------ the generator
        # Outputs at neighbouring noise levels must agree; with ACT, D must also take the noisier one for a real image.
        batches = run.draw_batch(step, GENERATOR)
        for batch in batches:
            pair = consistency_pair(
                run.f,
                batch.x,
                batch.noise,
                batch.sigma,
                batch.sigma_next,
                batch.labels,
                dropout_seed=batch.dropout_seed,
                teacher=run.f_teacher,
            )
            # lambda(sigma_i) d(student, target), and with ACT L_G
            loss = objective.loss(pair) if adversary is None else adversary.generator_loss(objective, pair, batch)
            accelerator.backward(loss.mean() / len(batches))
            metrics.add_losses(step, loss, batch.sigma_next)
        average_gradients(accelerator, run.unet.parameters())
        optimizer.step()
        optimizer.zero_grad()
        ema.update(run.unet.named_parameters(), step)
        decay = objective.teacher_decay(step, total_steps)
        if run.teacher is not None and decay is not None:
            move_towards(run.teacher.parameters(), run.unet.parameters(), decay)

        # ------------------------------------------------------------ the discriminator
        if adversary is not None:
            fakes, reals = run.draw_batch(step, FAKES), run.draw_batch(step, REALS)
            metrics.add_figures(adversary.update(run.f, fakes, reals, step, run.batch_size))  # L_D and R1

        # ------------------------------------------------------------ log, checkpoint, samples
        metrics.count_step(run.batch_size)
        last = step + 1 == total_steps
        validating = last or _due(step, recipe.validation_steps)
        saving = last or _due(step, recipe.checkpointing_steps)
        if validating or saving or _due(step, recipe.logging_steps):
            metrics.write(step + 1, objective.mean_weight(step, total_steps), objective.schedule(step, total_steps))
            if accelerator.is_main_process:
                if saving:
                    save_run(run, step + 1)
                if validating:
                    sample_run(run, step + 1)
                if saving and not last and recipe.push_to_hub and recipe.hub_strategy == "checkpoint":
                    export_run(run, step + 1)
                    publish_run(run)
            accelerator.wait_for_everyone()
            metrics.start_clock()
    metrics.progress.close()

    # ---------------------------------------------------------------- the export
    failure = None
    if accelerator.is_main_process:
        export_run(run, total_steps)
        if recipe.push_to_hub:
            publish_run(run)
            failure = run.publisher.finish()
    accelerator.end_training()
    return failure


def _due(step: int, every: int | None) -> bool:
    return every is not None and (step + 1) % every == 0
