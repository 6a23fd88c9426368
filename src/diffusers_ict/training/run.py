"""A run: everything that training needs, built from a recipe."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers import UNet2DModel
from filelock import BaseFileLock

from ..data.batch import GlobalBatch
from ..data.draw import GENERATOR, INIT, Draw, derive_seed
from ..data.stream import StreamedImages, TrainingImages, stream_images
from ..errors import TrainingStopped, UserError
from ..files import write_text
from ..formulas.dropout import share_dropout
from ..formulas.preconditioning import ConsistencyFunction
from ..hub.publish import BackgroundPublisher, check_repo_id
from ..objectives.act import AdversarialWeight
from ..objectives.base import Objective
from ..pipeline_consistency import ConsistencyPipeline
from ..processes import make_accelerator, network_precision
from . import checkpoint
from .adversary import Adversary, build_discriminator, make_adversary
from .captured import can_capture
from .ema import EMA, PowerEMA
from .estimate import describe
from .log import Metrics
from .objectives import check_curriculum, make_objective
from .optimization import make_optimizer
from .output_dir import check_output_dir, lock_output_dir
from .recipe import Recipe
from .resume import Identity, circumstances, decisive, resume
from .samples import contiguous_copy, make_pipeline
from .snapshots import remove_snapshots_after
from .start import load_start, make_scheduler, unusual_constants
from .state import RunState
from .unets import make_unet


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
        identity: what the run is compared by when it is resumed.
        own_objective: description of the user's own, or None.
        lock: on the output folder; None on processes that do not write.
    """

    recipe: Recipe
    accelerator: Accelerator
    objective: Objective
    images: TrainingImages
    batch_size: int
    unet: UNet2DModel
    f: ConsistencyFunction
    teacher: UNet2DModel | None
    f_teacher: ConsistencyFunction | None
    adversary: Adversary | None
    optimizer: torch.optim.Optimizer
    ema: EMA
    powers: PowerEMA | None
    pipeline: ConsistencyPipeline
    state: RunState
    metrics: Metrics
    publisher: BackgroundPublisher
    first_step: int
    identity: Identity
    own_objective: str | None
    lock: BaseFileLock | None

    @property
    def output_dir(self) -> Path:
        """Where everything goes."""
        return Path(self.recipe.output_dir)

    def own_randomness(self) -> AbstractContextManager:
        """A context that leaves PyTorch's global generators as they were; dropout draws from them."""
        device = self.accelerator.device
        return torch.random.fork_rng([device] if device.type == "cuda" else [])

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        """End the progress bar and the trackers, and let go of the output folder."""
        self.metrics.progress.close()
        if isinstance(self.images, StreamedImages):
            self.images.close()
        if kind in (None, TrainingStopped):  # else the other processes are still at work, and would be waited for
            self.accelerator.end_training()
        if self.lock is not None:
            self.lock.release()

    def places_in_stream(self) -> list[dict[str, int]] | None:
        """Where each process stands in the stream of images, if there is one; all processes have to call this."""
        return gather_object([self.images.place]) if isinstance(self.images, StreamedImages) else None

    def draw_batch(self, step: int, role: int) -> GlobalBatch:
        """The images, noise and noise levels of a step; `role` is GENERATOR, FAKES or REALS."""
        recipe = self.recipe
        micro_batch, size = recipe.train_batch_size, self.batch_size
        if role != GENERATOR:
            micro_batch, size = recipe.discriminator_batch_size, recipe.fakes_in_step(self.batch_size)
        return GlobalBatch(
            Draw(recipe.seed, step, size, self.accelerator.device, role),
            self.images,
            self.objective,
            recipe.max_train_steps,
            micro_batch,
            rank=self.accelerator.process_index,
            ranks=self.accelerator.num_processes,
            random_flip=self.recipe.random_flip,
            augmented=self.adversary is not None and self.adversary.strength is not None,
        )


def open_run(recipe: Recipe, objective: Objective | None = None, images: TrainingImages | None = None) -> Run:
    """Check a recipe, print a summary, and build everything. A dry run writes nothing.

    Args:
        objective, images: instead of those that the recipe names.

    Raises:
        UserError: the recipe or the data cannot be used; nothing is written.
    """
    accelerator = make_accelerator(recipe.mixed_precision, recipe.report_to, recipe.output_dir)
    recipe.mixed_precision = accelerator.mixed_precision  # the effective one, which accelerate's config may have set
    own_objective = None if objective is None else repr(objective)
    batch_size = recipe.images_in_step(accelerator.num_processes)
    start = load_start(recipe)
    objective = objective or make_objective(recipe, batch_size, accelerator.device)
    if recipe.num_train_epochs is None:
        check_curriculum(objective, recipe.max_train_steps)  # before the data are read
    scheduler, weight = make_scheduler(recipe, start), _adversarial_weight(recipe)
    if recipe.push_to_hub:
        check_repo_id(recipe.hub_model_id)
    found = check_output_dir(Path(recipe.output_dir), recipe.resume_from_checkpoint)
    images = images or _load(recipe, accelerator)
    _check_batch(batch_size, images)
    if recipe.num_train_epochs is not None:
        if images.count is None:
            raise UserError(
                "`num_train_epochs` needs a data set that says how many images it has: give `max_train_steps`."
            )
        recipe.max_train_steps = max(1, round(recipe.num_train_epochs * images.count / batch_size))
    check_curriculum(objective, recipe.max_train_steps)
    _check_channels(recipe, images)
    unet = make_unet(recipe, images, derive_seed(recipe.seed, INIT, GENERATOR), start)
    discriminator = build_discriminator(recipe, unet) if recipe.loss == "act" else None
    for note in () if start is None else start.notes:
        accelerator.print(note)
    accelerator.print(describe(recipe, accelerator, images, objective, unet, discriminator, batch_size))
    if recipe.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    unet.to(accelerator.device, memory_format=layout).train()
    adversary = (
        None
        if discriminator is None
        else make_adversary(recipe, accelerator, discriminator.to(memory_format=layout), weight)
    )
    teacher = None
    if objective.teacher_decay(0, recipe.max_train_steps) is not None:
        teacher = copy.deepcopy(unet).requires_grad_(False)
    share_dropout(*(unet, teacher) if teacher is not None else (unet,))
    betas = (recipe.adam_beta1, recipe.adam_beta2)
    capturable = can_capture(recipe, accelerator)
    optimizer = accelerator.prepare(make_optimizer(unet.parameters(), recipe.learning_rate, betas, capturable))
    ema = EMA(unet.named_parameters(), recipe.ema_decays, recipe.ema_warmup)
    powers = None if recipe.ema_snapshot_steps is None else PowerEMA(unet.named_parameters())
    state = _state(unet, optimizer, ema, powers, teacher, adversary, accelerator)
    state.stream = images if isinstance(images, StreamedImages) else None
    networks = {"unet": {**unet.config, **unusual_constants(scheduler)}} | (
        {} if discriminator is None else {"discriminator": discriminator.config}
    )
    identity = Identity(
        decisive(recipe, images.fingerprint(), batch_size, networks, own_objective), circumstances(recipe, accelerator)
    )
    first_step, seconds = resume(recipe, state, identity)
    accelerator.wait_for_everyone()  # what one writes, the others would take for an earlier run
    writing = accelerator.is_main_process and not recipe.dry_run
    own_lock = _take_folder(recipe, found, first_step) if writing else None

    def consistency_function(net: UNet2DModel) -> ConsistencyFunction:
        return scheduler.consistency_function(_in_precision(net, accelerator))

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
        powers=powers,
        pipeline=make_pipeline(contiguous_copy(unet), scheduler),
        state=state,
        metrics=_open_log(recipe, accelerator, first_step, seconds),
        publisher=BackgroundPublisher(Path(recipe.output_dir), recipe.hub_model_id, recipe.hub_private_repo),
        first_step=first_step,
        identity=identity,
        own_objective=own_objective,
        lock=own_lock,
    )


def _take_folder(recipe: Recipe, expected: set[str], first_step: int) -> BaseFileLock:
    """Lock the output folder, and clear away what would be in the way of the checkpoints of this run."""
    folder = Path(recipe.output_dir)
    lock = lock_output_dir(folder, expected)
    if recipe.resume_from_checkpoint not in (None, "latest"):
        checkpoint.set_aside_after(folder, first_step)
    checkpoint.tidy(folder, recipe.checkpoints_total_limit)
    remove_snapshots_after(folder, first_step)
    return lock


def _load(recipe: Recipe, accelerator: Accelerator) -> TrainingImages:
    if not recipe.streaming:
        return recipe.load(recipe.class_conditional, accelerator)
    rank, ranks = accelerator.process_index, accelerator.num_processes
    return stream_images(recipe, recipe.class_conditional, recipe.shuffle_buffer, recipe.seed, rank, ranks)


def _adversarial_weight(recipe: Recipe) -> AdversarialWeight:
    try:
        return AdversarialWeight(recipe.adversarial_weight, recipe.adversarial_weight_mid)
    except ValueError as error:
        raise UserError(f"`adversarial_weight` and `adversarial_weight_mid`: {error}") from error


def _open_log(recipe: Recipe, accelerator: Accelerator, first_step: int, seconds: float) -> Metrics:
    """Write the recipe into the output folder, and start the log and the tracker."""
    if recipe.dry_run:
        return Metrics(accelerator, None, recipe.max_train_steps, first_step, seconds, quiet=True)
    output_dir = Path(recipe.output_dir)
    tracking = recipe.report_to is not None
    if accelerator.is_main_process:
        write_text(output_dir / "recipe.yaml", yaml.safe_dump(recipe.as_dict(), sort_keys=False))
    if tracking:
        accelerator.init_trackers("diffusers-ict", {k: str(v) for k, v in recipe.as_dict().items()})
    log = output_dir / "log.jsonl" if accelerator.is_main_process else None
    return Metrics(accelerator, log, recipe.max_train_steps, first_step, seconds, tracking)


def _check_batch(size: int, images: TrainingImages) -> None:
    """Refuse fewer images than an optimizer step has."""
    if images.count is not None and size > images.count:
        raise UserError(
            f"a batch must not be larger than the data: {size} images a step (batch x accumulation x processes) and "
            f"{images.count} in the data; lower `train_batch_size`."
        )


def _check_channels(recipe: Recipe, images: TrainingImages) -> None:
    """Refuse images that LPIPS cannot compare."""
    lpips = recipe.metric == "lpips" and recipe.consistency_loss == "ct"
    if lpips and images.shape[0] not in (1, 3):
        raise UserError(
            f"`metric` lpips compares images of 1 or 3 channels, got {images.shape[0]}; convert them with "
            "`image_mode`, or use `metric` l2."
        )


def _in_precision(net: UNet2DModel, accelerator: Accelerator) -> Callable:
    """The network's call under the run's mixed precision; all arithmetic around it stays in float32."""
    device, precision = accelerator.device.type, network_precision(accelerator)

    def call(*args, **kwargs):
        with torch.autocast(device, precision, enabled=precision is not None):
            return net(*args, **kwargs)

    return call


def _state(
    unet, optimizer, ema: EMA, powers: PowerEMA | None, teacher, adversary: Adversary | None, accelerator: Accelerator
) -> RunState:
    """Everything of a run that a checkpoint holds."""
    modules, optimizers = {"unet": unet}, {"optimizer": (optimizer, unet)}
    if teacher is not None:
        modules["teacher"] = teacher
    if adversary is not None:
        modules["discriminator"] = adversary.model
        optimizers["discriminator_optimizer"] = (adversary.optimizer, adversary.model)
    strength = None if adversary is None else adversary.strength
    return RunState(modules, optimizers, ema, powers, accelerator.scaler, strength)
