"""A run: everything that training needs, built from a recipe, and the files it writes."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from diffusers import UNet2DModel

from ..act import AdaptiveStrength, AdversarialWeight
from ..data.batch import GlobalBatch
from ..data.draw import FAKES, GENERATOR, INIT, VALIDATION, Draw, derive_seed
from ..data.images import Images
from ..errors import UserError
from ..files import public_name, write_text
from ..hub.card import write_card
from ..hub.metadata import RunMetadata
from ..hub.provenance import code_commit, hardware
from ..hub.publish import BackgroundPublisher, push, stage
from ..objective import Objective
from ..pipeline_consistency import ConsistencyPipeline
from ..preconditioning import ConsistencyFunction
from ..processes import make_accelerator
from ..scheduling_ict import ICTScheduler
from ..time_embedding import uses_fast_columns
from ..version import __version__
from . import checkpoint
from .adversary import Adversary, build_discriminator
from .ema import EMA
from .estimate import describe
from .log import Metrics
from .objectives import make_objective
from .plots import plot_training
from .recipe import Recipe
from .samples import export, make_pipeline, save_samples
from .state import RunState, claim_output_dir
from .unets import describe_dropout, make_unet


@dataclass
class Run:
    """The parts of a training run.

    Attributes:
        batch_size: images of one optimizer step on all processes together.
        unet: the student; f: the consistency function around it.
        teacher, f_teacher: CT's EMA teacher; None where the student is its own teacher.
        adversary: ACT's discriminator, or None.
        pipeline: draws samples, with a UNet of its own for the averaged weights.
        first_step: optimizer steps done before the run was resumed.
    """

    recipe: Recipe
    accelerator: Accelerator
    objective: Objective
    images: Images
    batch_size: int
    unet: UNet2DModel
    f: ConsistencyFunction
    teacher: UNet2DModel | None
    f_teacher: ConsistencyFunction | None
    adversary: Adversary | None
    optimizer: torch.optim.Optimizer
    ema: EMA
    pipeline: ConsistencyPipeline
    state: RunState
    metrics: Metrics
    publisher: BackgroundPublisher
    first_step: int

    @property
    def output_dir(self) -> Path:
        """Where everything goes."""
        return Path(self.recipe.output_dir)

    def draw_batch(self, step: int, role: int) -> GlobalBatch:
        """The images, noise and noise levels of a step; `role` is GENERATOR, FAKES or REALS."""
        return GlobalBatch(
            Draw(self.recipe.seed, step, self.batch_size, self.accelerator.device, role),
            self.images,
            self.objective,
            self.recipe.max_train_steps,
            self.recipe.train_batch_size,
            rank=self.accelerator.process_index,
            ranks=self.accelerator.num_processes,
            random_flip=self.recipe.random_flip,
            augmented=self.adversary is not None and self.adversary.strength is not None,
        )


def open_run(recipe: Recipe, objective: Objective | None = None) -> Run | None:
    """Check a recipe, print a summary, and build everything. A dry run ends after the summary and returns None.

    Args:
        objective: instead of the one that the recipe names.

    Raises:
        UserError: the recipe or the data cannot be used; nothing is written.
    """
    # ---------------------------------------------------------------- checks
    accelerator = make_accelerator(recipe.mixed_precision, recipe.report_to, recipe.output_dir)
    objective = objective or make_objective(recipe, accelerator.device)
    scheduler, weight = _scheduler(recipe), _adversarial_weight(recipe)
    claim_output_dir(Path(recipe.output_dir), resuming=recipe.resume_from_checkpoint is not None)
    images = recipe.load(recipe.class_conditional)
    batch_size = _batch_size(recipe, accelerator, images)
    unet = make_unet(recipe, images, derive_seed(recipe.seed, INIT, GENERATOR))
    discriminator = None
    if recipe.loss == "act":
        discriminator = build_discriminator(
            dict(unet.config),
            recipe.discriminator_config_name_or_path,
            derive_seed(recipe.seed, INIT, FAKES),
            recipe.insensitive_time_embedding,
        )
    summary = describe(
        images,
        objective,
        unet,
        discriminator,
        steps=recipe.max_train_steps,
        batch_size=batch_size,
        micro_batch_size=recipe.train_batch_size,
        emas=len(recipe.ema_decays),
        half_precision=accelerator.mixed_precision in ("fp16", "bf16"),
        dropout=describe_dropout(recipe, unet),
    )
    accelerator.print(summary)
    if recipe.insensitive_time_embedding and uses_fast_columns(unet):
        accelerator.print("time        the given weights use fast frequencies of the time embedding: they are kept")
    if recipe.dry_run:
        return None

    # ---------------------------------------------------------------- the networks
    unet.to(accelerator.device).train()
    teacher = None
    if objective.teacher_decay(0, recipe.max_train_steps) is not None:
        teacher = copy.deepcopy(unet).requires_grad_(False)
    pipeline = make_pipeline(copy.deepcopy(unet).requires_grad_(False), scheduler)
    if recipe.torch_compile:
        # Compiled graphs must draw dropout masks as eager ones do, or student and teacher would not share them.
        import torch._inductor.config as inductor

        inductor.fallback_random = True

    def consistency_function(net: UNet2DModel) -> ConsistencyFunction:
        return scheduler.consistency_function(_in_precision(net, accelerator, recipe.torch_compile))

    optimizer = accelerator.prepare(
        # foreach: one call for all parameters, also on CPUs, where it is not the default
        torch.optim.RAdam(unet.parameters(), recipe.learning_rate, (recipe.adam_beta1, recipe.adam_beta2), foreach=True)
    )
    ema = EMA(unet.named_parameters(), recipe.ema_decays, recipe.ema_warmup)
    adversary = None if discriminator is None else _adversary(recipe, accelerator, discriminator, weight)
    state = _state(unet, optimizer, ema, teacher, adversary, accelerator)
    first_step, seconds = _resume(recipe, state)

    # ---------------------------------------------------------------- the folder
    output_dir = Path(recipe.output_dir)
    if accelerator.is_main_process:
        write_text(output_dir / "recipe.yaml", yaml.safe_dump(recipe.as_dict(), sort_keys=False))
    if recipe.report_to is not None:
        accelerator.init_trackers("diffusers-ict", {k: str(v) for k, v in recipe.as_dict().items()})
    log = output_dir / "log.jsonl" if accelerator.is_main_process else None
    return Run(
        recipe=recipe,
        accelerator=accelerator,
        objective=objective,
        images=images.to(accelerator.device),
        batch_size=batch_size,
        unet=unet,
        f=consistency_function(unet),
        teacher=teacher,
        f_teacher=None if teacher is None else consistency_function(teacher),
        adversary=adversary,
        optimizer=optimizer,
        ema=ema,
        pipeline=pipeline,
        state=state,
        metrics=Metrics(accelerator, log, recipe.max_train_steps, first_step, seconds, recipe.report_to is not None),
        publisher=BackgroundPublisher(
            lambda staged: push(
                staged, recipe.hub_model_id, token=recipe.hub_token, private=recipe.hub_private_repo or None
            )
        ),
        first_step=first_step,
    )


def save_run(run: Run, step: int) -> None:
    """Write a checkpoint after `step` optimizer steps."""
    recipe = run.recipe
    run.state.save(run.output_dir, step, run.metrics.train_seconds, recipe.computed(), recipe.checkpoints_total_limit)


def sample_run(run: Run, step: int) -> None:
    """Save a grid of samples of the first EMA after `step` optimizer steps."""
    run.ema.copy_to(run.pipeline.unet, run.recipe.ema_decays[0])
    seed = derive_seed(run.recipe.seed, VALIDATION)
    save_samples(run.pipeline, run.output_dir / "samples", step, run.recipe.num_validation_images, seed)


def export_run(run: Run, step: int) -> None:
    """Write the published files: pipeline, variants, discriminator, plot, metadata and card after `step` steps."""
    folder, recipe = run.output_dir, run.recipe
    export(run.pipeline, run.ema, folder)
    if run.adversary is not None:
        run.adversary.model.save_pretrained(folder / "discriminator")
    plot_training(folder / "log.jsonl", folder / "training.png")
    dataset, dataset_on_hub = public_name(recipe.data_name)
    start = recipe.pretrained_model_name_or_path
    base, base_on_hub = (None, False) if start is None else public_name(start)
    RunMetadata(
        dataset=dataset,
        dataset_on_hub=dataset_on_hub and recipe.dataset_name is not None,
        base_model=base,
        base_model_on_hub=base_on_hub,
        images=len(run.images),
        shape=list(run.images.shape),
        classes=run.images.num_classes,
        class_names=None if run.images.class_names is None else list(run.images.class_names),
        parameters=sum(p.numel() for p in run.unet.parameters()),
        steps=step,
        batch_size=run.batch_size,
        images_seen=step * run.batch_size,
        train_seconds=run.metrics.train_seconds,
        hardware=hardware(run.accelerator),
        version=__version__,
        commit=code_commit(),
        command=recipe.command(),
    ).write(folder)
    write_card(folder)


def publish_run(run: Run) -> None:
    """Publish what was exported, in the background."""
    run.publisher.submit(stage(run.output_dir, run.recipe.hub_model_id))


def _scheduler(recipe: Recipe) -> ICTScheduler:
    try:
        return ICTScheduler(intermediate_sigmas=recipe.intermediate_sigmas)
    except ValueError as error:
        raise UserError(f"`intermediate_sigmas`: {error}") from error


def _adversarial_weight(recipe: Recipe) -> AdversarialWeight:
    try:
        return AdversarialWeight(recipe.adversarial_weight, recipe.adversarial_weight_mid)
    except ValueError as error:
        raise UserError(f"`adversarial_weight` and `adversarial_weight_mid`: {error}") from error


def _batch_size(recipe: Recipe, accelerator: Accelerator, images: Images) -> int:
    """Images of one optimizer step on all processes together."""
    size = recipe.train_batch_size * recipe.gradient_accumulation_steps * accelerator.num_processes
    if size > len(images):
        raise UserError(
            f"a batch must not be larger than the data: {size} images a step (batch x accumulation x processes) and "
            f"{len(images)} in the data; lower `train_batch_size`."
        )
    return size


def _in_precision(net: UNet2DModel, accelerator: Accelerator, compile: bool) -> Callable:
    """The network's call under the run's mixed precision; all arithmetic around it stays in float32."""
    called = torch.compile(net) if compile else net

    def call(*args, **kwargs):
        with accelerator.autocast():
            return called(*args, **kwargs)

    return call


def _adversary(recipe: Recipe, accelerator: Accelerator, discriminator, weight: AdversarialWeight) -> Adversary:
    return Adversary(
        accelerator,
        discriminator,
        weight,
        learning_rate=recipe.discriminator_learning_rate,
        betas=(recipe.discriminator_beta1, recipe.discriminator_beta2),
        r1_gamma=recipe.r1_gamma,
        r1_interval=recipe.r1_interval,
        time_weight=recipe.discriminator_time_weight,
        strength=AdaptiveStrength(recipe.augment_tau, recipe.augment_horizon) if recipe.augment else None,
        compile=recipe.torch_compile,
    )


def _state(unet, optimizer, ema: EMA, teacher, adversary: Adversary | None, accelerator: Accelerator) -> RunState:
    """Everything of a run that a checkpoint holds."""
    modules, optimizers = {"unet": unet}, {"optimizer": (optimizer, unet)}
    if teacher is not None:
        modules["teacher"] = teacher
    if adversary is not None:
        modules["discriminator"] = adversary.model
        optimizers["discriminator_optimizer"] = (adversary.optimizer, adversary.model)
    strength = None if adversary is None else adversary.strength
    return RunState(modules, optimizers, ema, accelerator.scaler, strength)


def _resume(recipe: Recipe, state: RunState) -> tuple[int, float]:
    """Continue from the checkpoint that the recipe names, if any: (steps done, seconds trained)."""
    wanted = recipe.resume_from_checkpoint
    if wanted is None:
        return 0, 0.0
    saved = checkpoint.load_latest(Path(recipe.output_dir)) if wanted == "latest" else checkpoint.load(Path(wanted))
    recipe.check_resumes(saved.state["recipe"])
    state.load(saved)
    return saved.state["step"], saved.state["train_seconds"]
