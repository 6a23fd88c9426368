"""A run: everything that a training loop needs."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from filelock import BaseFileLock
from torch.optim.lr_scheduler import LambdaLR

from ..data import TrainingData
from ..data.batches import Batch, Batches
from ..data.draw import Draw
from ..data.stream import StreamedImages
from ..errors import TrainingStopped
from ..hub.background import BackgroundPublisher
from ..objectives.base import Objective
from ..pipeline_consistency import ConsistencyPipeline
from ..scheduling_ict import ICTScheduler
from .log import Metrics
from .networks import Networks
from .recipe import Recipe
from .resume import Identity
from .state import RunState

SECONDS_OF_GLOO = 0.5  # for its threads to end what they do


@dataclass
class Run:
    """The parts of a training run.

    Attributes:
        recipe: resolved: nothing in it changes any more.
        data: the images; batches: their micro batches on this process, by player.
        batch_size: images of one optimizer step on all processes together.
        schedules: of the learning rates.
        pipeline: draws samples with the first EMA.
        steps: those to come.
        identity: what the run is compared by when it is resumed.
        lock: on the output folder; None on processes that do not write.
    """

    recipe: Recipe
    accelerator: Accelerator
    objective: Objective
    scheduler: ICTScheduler
    data: TrainingData
    batches: dict[int, Batches]
    batch_size: int
    networks: Networks
    schedules: list[LambdaLR]
    pipeline: ConsistencyPipeline
    state: RunState
    steps: range
    identity: Identity
    metrics: Metrics
    publisher: BackgroundPublisher
    lock: BaseFileLock | None

    @property
    def output_dir(self) -> Path:
        """Where everything goes."""
        return Path(self.recipe.output_dir)

    def own_randomness(self) -> AbstractContextManager:
        """A context that leaves PyTorch's global generators as they were; dropout draws from them."""
        device = self.accelerator.device
        return torch.random.fork_rng([device] if device.type == "cuda" else [])

    def micro_batches(self, role: int, step: int) -> Iterator[Batch]:
        """The micro batches of a player in a step: its images, each with noise and a pair of levels of its own."""
        batches, total_steps = self.batches[role], self.recipe.max_train_steps
        draw = Draw(self.recipe.seed, step, batches.batch_size, self.accelerator.device, role)
        levels = self.scheduler.training_sigmas(self.objective, step, total_steps, uniform=draw.pair_uniform())
        return batches.step(draw, *levels)

    def places_in_stream(self) -> list[dict[str, Any]] | None:
        """Where each process stands in the stream of images, if there is one; all processes have to call this."""
        return gather_object([self.data.place]) if isinstance(self.data, StreamedImages) else None

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        """End the progress bar and the trackers, and let go of the output folder."""
        self.metrics.progress.close()
        if isinstance(self.data, StreamedImages):
            self.data.close()
        if kind in (None, TrainingStopped):  # else the other processes are still at work, and would be waited for
            self.accelerator.end_training()
            if self.accelerator.num_processes > 1:
                # The threads of gloo let go of Python's tensors after a collective has ended, and need the lock of the
                # interpreter for it. Destroying DistributedDataParallel holds that lock and waits for the threads.
                time.sleep(SECONDS_OF_GLOO)
        if self.lock is not None:
            self.lock.release()
