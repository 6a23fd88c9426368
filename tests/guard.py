"""A run in which no number of a tensor may be read for a while: what would make the host wait for the device.

Among several processes it is started as a script, with the flags of the run.
"""

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed
from torch.utils._python_dispatch import TorchDispatchMode

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
from short_run import run

from diffusers_ict.training.interruption import CHECK_EVERY
from diffusers_ict.training.log import Metrics
from diffusers_ict.training.run import Run

FIRST, LAST = 7, 9  # steps, from 0: the first has a gradient penalty, and begins a vote that the next one reads
SEVERAL = os.environ.get("WORLD_SIZE", "1") != "1"
assert (FIRST + 1) % CHECK_EVERY == 0
READS = ("item", "cpu", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__")


class Guard(TorchDispatchMode):
    """While it is active, no number of a tensor may be read, by a method or by the kernel that PyTorch reads with."""

    active = False
    votes: Tensor | None = None  # of the processes: the one tensor that may be read, and is on the CPU

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        for name in READS:
            patch.setattr(torch.Tensor, name, self.guarded(getattr(torch.Tensor, name)))

    def guarded(self, method):
        def read(*args, **kwargs):
            assert not self.active or args[0] is self.votes, "a tensor is read by the host"
            return method(*args, **kwargs)

        return read

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        reads = function is torch.ops.aten._local_scalar_dense.default
        # DistributedDataParallel's own map of the parameters that were used, int32, is on the CPU whatever the device.
        on_cpu = reads and (args[0] is self.votes or (SEVERAL and args[0].dtype == torch.int32))
        assert on_cpu or not (self.active and reads), "a kernel's result is read by the host"
        return function(*args, **(kwargs or {}))


def guarded_run(patch: pytest.MonkeyPatch, guard: Guard, *flags) -> int:
    """Train twelve steps, two of them guarded but for logging and RAdam; the exit code.

    On CPUs, RAdam reads its step counts; on CUDA it is capturable and does not.
    """
    draw, count, step, reduce = Run.micro_batches, Metrics.count_step, torch.optim.RAdam.step, distributed.all_reduce
    guarded = []

    def drawing(self, role, number):
        guard.active = FIRST <= number < LAST
        guarded.append(guard.active)
        return draw(self, role, number)

    def unguarded(function):
        def call(*args, **kwargs):
            was, guard.active = guard.active, False
            done = function(*args, **kwargs)
            guard.active = was
            return done

        return call

    def voting(votes, *args, **kwargs):
        guard.votes = votes
        return reduce(votes, *args, **kwargs)

    patch.setattr(Run, "micro_batches", drawing)
    patch.setattr(torch.optim.RAdam, "step", unguarded(step))
    patch.setattr(Metrics, "count_step", unguarded(count))
    patch.setattr(distributed, "all_reduce", voting)
    code = run(*flags, "--logging_steps", 12, "--max_train_steps", 12, "--checkpointing_steps", 12)
    assert any(guarded), "no step was guarded"
    assert (guard.votes is not None) == SEVERAL, "processes, and no others, vote"
    return code


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch, Guard(patch) as guard:
        sys.exit(guarded_run(patch, guard, *sys.argv[1:]))
