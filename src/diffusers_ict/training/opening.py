"""A run opened from a recipe: checks at the door, and everything that training needs."""

import dataclasses
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import ModelMixin
from torch import nn

from ..conversion import ConvertedModel
from ..data import TrainingData
from ..data.own_output import check_apart
from ..errors import UserError
from ..hub.background import BackgroundPublisher
from ..hub.publish import check_push
from ..objectives import BUILT_IN, objective_class
from ..objectives.adversarial import Adversarial
from ..objectives.base import Objective
from ..pipeline_consistency import ConsistencyPipeline
from ..processes import connect_cpus, make_accelerator
from ..scheduling_ict import ICTScheduler
from ..trial import check_call
from .adversary import build_discriminator
from .checkpoint import Checkpoint
from .ema import note_on_equal_averages
from .estimate import describe
from .log import Metrics
from .networks import Networks, config_of, configs_of, make_schedules, prepare_networks
from .opening_data import check_pairs, note_on_residuals, open_batches, open_data
from .origin import note_of_old_strategy, open_origin, resume
from .output_dir import check_output_dir, take_output_dir, write_recipe
from .recipe import OF_THE_DATA, Recipe
from .resume import Identity, circumstances, decisive, identity_of, unet_config_of
from .run import Run
from .run_settings import FROM_HUB, LATEST
from .samples import make_pipeline
from .sharing import check_alike
from .start import check_curriculum, load_start, make_objective, make_scheduler, scheduler_for, unusual_constants
from .state import state_of
from .unets import SMALL, check_fits, check_resolution, embedded_classes, make_unet, takes_small

DRY_RUN_STEPS = 4
DATA = (*OF_THE_DATA, "normalize", "pretrained_vae_name_or_path", "vae_sample")
OF_THE_UNET = (
    *("pretrained_model_name_or_path", "model_config_name_or_path", "dropout", "dropout_resolution"),
    "gradient_checkpointing",
)


def open_run(
    recipe: Recipe, model: nn.Module | None = None, dataset: Any = None, objective: Objective | None = None
) -> Run:
    """Check a recipe, print a summary, and build everything. A dry run writes nothing.

    Args:
        model, dataset, objective: instead of those that the recipe names; see `train`.

    Raises:
        UserError: the recipe or the data cannot be used; nothing is written.
    """
    if recipe.push_to_hub:
        check_push(recipe.hub_model_id, recipe.license)  # before a start is loaded or the data are read
    accelerator = _open_accelerator(recipe)
    recipe, own_objective = _check_given(recipe, model, dataset, objective)
    _print(accelerator, note_of_old_strategy(recipe))
    start = load_start(recipe) if model is None else None
    if objective is None or own_objective is None:
        objective = make_objective(recipe, start)
    objective = objective.to(accelerator.device)
    scheduler = make_scheduler(recipe, start)
    contents = _check_before_data(recipe, objective, fresh=model is None and start is None)
    data = open_data(recipe, dataset, accelerator)
    check_pairs(recipe, objective, data)
    scheduler = scheduler_for(data, scheduler, recipe.learn_residual)
    batch_size = recipe.images_in_step(accelerator.num_processes)
    recipe = _resolve(recipe, accelerator, objective, own_objective, data)
    _check_objective(objective, scheduler, recipe.max_train_steps, data, batch_size, recipe.reference_batch_size)

    with open_origin(recipe, accelerator) as origin:
        if start is None and origin.saved is None and accelerator.is_main_process:
            _print(accelerator, note_on_residuals(recipe, data))
        networks = _open_networks(recipe, accelerator, objective, scheduler, data, model, start, origin.saved)
        state = state_of(networks, accelerator, data, objective)
        configs = configs_of(networks, unusual_constants(scheduler)) | identity_of(data)
        facts = decisive(recipe, objective, own_objective, data.fingerprint(), batch_size, configs)
        identity = Identity(facts, circumstances(recipe, accelerator))
        first_step, seconds = resume(origin, recipe, state, identity)
        check_alike(accelerator, first_step, state, identity)
        accelerator.wait_for_everyone()  # what one writes, the others would take for an earlier run
        writing = accelerator.is_main_process and not recipe.dry_run
        lock = take_output_dir(recipe, contents, first_step, origin.arrived) if writing else None

    data = data.to(accelerator.device)
    steps = range(first_step, recipe.max_train_steps)[: DRY_RUN_STEPS if recipe.dry_run else None]
    return Run(
        recipe=recipe,
        accelerator=accelerator,
        objective=objective,
        scheduler=scheduler,
        data=data,
        batches=open_batches(recipe, accelerator, objective, data, steps, scheduler.config.residual_scale),
        batch_size=batch_size,
        networks=networks,
        schedules=make_schedules(recipe, networks, first_step),
        pipeline=_open_pipeline(recipe, networks, scheduler, data),
        state=state,
        steps=steps,
        identity=identity,
        metrics=_open_log(recipe, accelerator, first_step, seconds),
        publisher=_open_publisher(recipe),
        lock=lock,
    )


def _print(accelerator: Accelerator, note: str | None) -> None:
    """Print a note, if there is one."""
    if note is not None:
        accelerator.print(note)


def _open_pipeline(
    recipe: Recipe, networks: Networks, scheduler: ICTScheduler, data: TrainingData
) -> ConsistencyPipeline:
    """The pipeline that draws with the first average of the weights."""
    unet = networks.averages[recipe.ema_decays[0]].module
    return make_pipeline(unet, scheduler, data.normalization, data.vae, unlabelled=recipe.label_dropout > 0)


def _open_publisher(recipe: Recipe) -> BackgroundPublisher:
    """What publishes beside the run. Going back to a checkpoint on purpose replaces newer ones on the Hub."""
    goes_back = recipe.resume_from_checkpoint not in (None, LATEST, FROM_HUB)
    folder, model = Path(recipe.output_dir), recipe.hub_model_id
    return BackgroundPublisher(folder, model, recipe.hub_private_repo, recipe.hub_checkpoints, supersede=goes_back)


def _open_accelerator(recipe: Recipe) -> Accelerator:
    """accelerate's part of a run. Refused is an accumulation in its config that the run does not have."""
    accelerator = make_accelerator(recipe.mixed_precision, recipe.report_to, recipe.output_dir, recipe.ddp_timeout)
    connect_cpus(accelerator)
    wanted = accelerator.gradient_accumulation_steps
    if wanted not in (1, recipe.gradient_accumulation_steps):
        raise UserError(
            f"accelerate's config asks for {wanted} accumulation steps and the run has "
            f"{recipe.gradient_accumulation_steps}: give `gradient_accumulation_steps` {wanted}, or take it out there."
        )
    return accelerator


def _check_before_data(recipe: Recipe, objective: Objective, fresh: bool) -> set[str]:
    """Refuse what can be refused before the data are read; the contents of the output folder.

    Args:
        fresh: whether the run begins with a new UNet.
    """
    if recipe.num_train_epochs is None:
        check_curriculum(objective, recipe.max_train_steps)
    check_apart(recipe, "output_dir", recipe.output_dir)
    if fresh and recipe.pretrained_vae_name_or_path is None:
        check_resolution(recipe)
    return check_output_dir(Path(recipe.output_dir), recipe.resume_from_checkpoint)


def _open_networks(
    recipe: Recipe,
    accelerator: Accelerator,
    objective: Objective,
    scheduler: ICTScheduler,
    data: TrainingData,
    model: nn.Module | None,
    start: ConvertedModel | None,
    saved: Checkpoint | None,
) -> Networks:
    """The networks of a run at its beginning, after the summary of it is printed."""
    on_cpu, earlier = accelerator.device.type == "cpu", None if saved is None else unet_config_of(saved)
    unet = make_unet(recipe, data, objective, start, on_cpu, earlier) if model is None else model
    if model is None and earlier is None and takes_small(recipe, data, on_cpu):
        accelerator.print(
            f"network     the small one ({SMALL}), because there is no GPU here; to choose another, give "
            "--model_config_name_or_path"
        )
    if model is not None:
        classes = embedded_classes(recipe, data)
        check_fits(config_of(model), data.shape, classes, data.condition_channels, data.vae)
        check_call(model, data.shape, classes, data.condition_channels)
    if recipe.push_to_hub and not isinstance(unet, ModelMixin):
        raise UserError(
            f"`push_to_hub` needs a model of diffusers, a ModelMixin whose repository others can load, got "
            f"{type(unet).__name__}: leave it out."
        )
    discriminator = build_discriminator(recipe, unet, objective) if isinstance(objective, Adversarial) else None
    for note in () if start is None else start.notes:
        accelerator.print(note)
    batch_size = recipe.images_in_step(accelerator.num_processes)
    accelerator.print(describe(recipe, data, objective, unet, discriminator, batch_size))
    if recipe.ema_warmup and (equal := note_on_equal_averages(recipe.ema_decays, recipe.max_train_steps)):
        accelerator.print(equal)
    if recipe.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return prepare_networks(recipe, accelerator, objective, scheduler, unet, discriminator)


def _check_given(
    recipe: Recipe, model: nn.Module | None, dataset: Any, objective: Objective | None
) -> tuple[Recipe, str | None]:
    """Refuse settings that mean nothing beside what the caller gives.

    Returns:
        (the recipe, which names a built-in objective that was given; the description of any other one, or None).
    """
    plain = Recipe()
    idle = {"model": OF_THE_UNET if model is not None else (), "dataset": DATA if dataset is not None else ()}
    for name, settings in {**idle, "objective": ("objective",) if objective is not None else ()}.items():
        for setting in settings:
            if getattr(recipe, setting) != getattr(plain, setting):
                raise UserError(f"`{setting}` means nothing where train() is given {name}: leave one of the two out.")
    if model is not None:
        missing = {"sample_size", "in_channels", "out_channels", "num_class_embeds"} - config_of(model).keys()
        if missing:
            raise UserError(f"the config of a model must have {', '.join(sorted(missing))}, which pipelines read.")
    if objective is None:
        return recipe, None
    for loss in BUILT_IN:
        if type(objective) is objective_class(loss):
            with suppress(ValueError, KeyError):
                if objective_class(loss).from_settings(**objective.settings()) == objective:
                    return dataclasses.replace(recipe, loss=loss, objective=objective.settings()), None
    # Without the addresses of this process: a resumed run has others.
    return recipe, re.sub(r" at 0x[0-9a-fA-F]+", "", repr(objective))


def _resolve(
    recipe: Recipe, accelerator: Accelerator, objective: Objective, own_objective: str | None, data: TrainingData
) -> Recipe:
    """The recipe with everything that follows from its loss, its data and accelerate's config."""
    steps = recipe.max_train_steps
    if recipe.num_train_epochs is not None:
        if data.count is None:
            raise UserError(
                "`num_train_epochs` needs a data set that says how many images it has: give `max_train_steps` instead."
            )
        steps = max(1, round(recipe.num_train_epochs * data.count / recipe.images_in_step(accelerator.num_processes)))
    beta1, beta2 = objective.betas
    if isinstance(objective, Adversarial):
        recipe = dataclasses.replace(
            recipe,
            discriminator_learning_rate=recipe.discriminator_learning_rate or recipe.learning_rate,
            discriminator_batch_size=recipe.discriminator_micro_batch,
        )
    return dataclasses.replace(
        recipe,
        objective={**recipe.objective, **objective.settings()} if own_objective is None else {},
        max_train_steps=steps,
        mixed_precision=accelerator.mixed_precision,
        adam_beta1=beta1 if recipe.adam_beta1 is None else recipe.adam_beta1,
        adam_beta2=beta2 if recipe.adam_beta2 is None else recipe.adam_beta2,
    )


def _check_objective(
    objective: Objective,
    scheduler: ICTScheduler,
    total_steps: int,
    data: TrainingData,
    batch_size: int,
    references: int,
) -> None:
    check_curriculum(objective, total_steps)
    if data.count is not None and references > data.count:
        raise UserError(
            f"`reference_batch_size` must be at most {data.count}, the images of the data, got {references}."
        )
    if data.count is not None and batch_size > data.count:
        raise UserError(
            f"a batch must not be larger than the data: {batch_size} images a step (batch x accumulation x processes) "
            f"and {data.count} in the data; lower `train_batch_size`."
        )
    drawn = "latents" if data.vae is not None else "residuals" if scheduler.config.residual_scale is not None else ""
    if drawn and objective.settings().get("metric") == "lpips":
        raise UserError(f"`metric` lpips compares pictures, and the network draws {drawn}: take another `metric`.")
    try:
        objective.check_images(data.shape)
        scheduler.training_sigmas(
            objective, 0, total_steps, 4096, torch.Generator()
        )  # which the steps themselves do not check
    except ValueError as error:
        raise UserError(str(error)) from error


def _open_log(recipe: Recipe, accelerator: Accelerator, first_step: int, seconds: float) -> Metrics:
    """Write the recipe into the output folder, and start the log and the tracker."""
    if recipe.dry_run:
        return Metrics(accelerator, None, DRY_RUN_STEPS)
    output_dir = Path(recipe.output_dir)
    tracking = recipe.report_to is not None
    if accelerator.is_main_process:
        write_recipe(recipe)
    if tracking:
        accelerator.init_trackers("diffusers-ict", {k: str(v) for k, v in recipe.as_dict().items()})
    log = output_dir / "log.jsonl" if accelerator.is_main_process else None
    return Metrics(accelerator, log, recipe.max_train_steps, first_step, seconds, tracking)
