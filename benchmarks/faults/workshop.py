"""What all faults share: their shape, the runs that they disturb, and the same runs undisturbed."""

import functools
import io
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from provenance import ROOT

sys.path.insert(0, str(ROOT / "tests"))
import torch
from conftest import ONE_LEVEL, TINY, write_npz
from matplotlib.figure import Figure
from PIL import Image

import diffusers_ict.evaluation.evaluate
import diffusers_ict.training.train  # noqa: F401  imported here, children find everything in memory
from diffusers_ict import ConsistencyPipeline
from diffusers_ict.commands import evaluate
from diffusers_ict.commands import train as train_ict

from .children import Ended, Lost, descendants, in_child, recorded
from .compare import check_between, check_nothing_left

LATEST = ["--resume_from_checkpoint", "latest"]
LOSSES = {
    "ict": ["--loss", "ict", "--dropout", "0.3"],
    "ct": ["--loss", "ct", "--dropout", "0.3"],
    "act": "--loss act --dropout 0.3 --objective consistency=ict augment=true augment_tau=1e-6 augment_horizon=300 "
           "r1_interval=4".split(),
}  # fmt: skip
STEPS = 12
TRAIN = [
    *("--train_batch_size", "4", "--max_train_steps", str(STEPS)),
    *("--objective", "s0=2", "s1=16", "--learning_rate", "1e-3", "--ema_decays", "0.9", "0.5", "--random_flip"),
    *("--checkpointing_steps", "2", "--checkpoints_total_limit", "3", "--logging_steps", "1"),
    *("--num_validation_images", "2", "--validation_steps", "6"),
]
EVALUATE = ["--extractor", "pixels", "--metrics", "fid", "kid", "pr", "--num_samples", "80", "--batch_size", "10"]


@dataclass(frozen=True)
class Fault:
    """A way to disturb.

    Attributes:
        times: trials of the full form; least: of any form, 0 where a trial starts interpreters.
        trial: injects the fault in a folder of its own, and returns how many times. Everything random comes from the
            generator, and what differs from trial to trial from its number. Raises Lost where a promise is not kept.
    """

    name: str
    times: int
    trial: Callable[["Workshop", Path, int, Random], int]
    least: int = 1


@dataclass(frozen=True)
class Whole:
    """An undisturbed run: its folder, the changes of files it made, (kind, path) in order, and its seconds."""

    folder: Path
    changes: list[tuple[str, str]]
    seconds: float

    def numbers(self, phase: Callable[[str, str], bool]) -> list[int]:
        """The numbers of the changes of a phase."""
        return [number for number, change in enumerate(self.changes) if phase(*change)]


class Workshop:
    """Data, a config of a tiny UNet, and undisturbed runs.

    Args:
        base: folder for everything.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        Image.init()  # what is read and computed at the first use, children find done
        Figure().savefig(io.BytesIO())
        data = write_npz(base / "data.npz", count=80)
        # Two channels a group: where a group is one channel, no bias before it has a gradient but rounding.
        small = {"block_out_channels": (8,), "norm_num_groups": 4}
        network = {**TINY, **ONE_LEVEL, **small, "_class_name": "UNet2DModel"}
        (base / "unet.json").write_text(json.dumps(network))
        self.data = ["--dataset_name", str(data)]
        self.flags = [*self.data, "--model_config_name_or_path", str(base / "unet.json"), *TRAIN]

    def command(self, loss: str, out: Path, *more: object) -> list[str]:
        """The flags of a training run, the same ones to begin it and to go on."""
        return [*LOSSES[loss], *self.flags, "--output_dir", str(out), *LATEST, *map(str, more)]

    def train(self, loss: str, out: Path, *more: object) -> int:
        """Train in this process, which has to be a child; returns the exit code."""
        torch.set_num_threads(1)
        return train_ict.main(self.command(loss, out, *more))

    def evaluate(self, model: Path, place: Path) -> int:
        """Evaluate in this process, which has to be a child; returns the exit code."""
        torch.set_num_threads(1)
        return evaluate.main([str(model), *self.data, *EVALUATE, "--cache_dir", str(place / "cache")])

    def finish(self, loss: str, place: Path, *more: object) -> Ended:
        """Run the training of `place` to its end, and check that nothing is left of it and what was before.

        Raises:
            Lost: it does not end well.
        """
        ended = in_child(lambda: self.train(loss, place / "out", *more), place).check(0)
        self.check_alone()
        check_nothing_left(place)
        return ended

    def check_alone(self) -> None:
        """Check that no process is left of those that were started.

        Raises:
            Lost: naming those that are.
        """
        if left := descendants():
            raise Lost(f"processes are left: {left}")

    def check_between(self, place: Path) -> None:
        """Check what must hold at any moment: no process is left, checkpoints are good, what is exported loads.

        Raises:
            Lost: it does not.
        """
        self.check_alone()
        check_between(place / "out")
        if (place / "out" / "model_index.json").exists():
            in_child(lambda: load(place / "out"), place).check(0)

    @functools.cache  # noqa: B019  one workshop for the whole program
    def whole(self, loss: str, *more: str) -> Whole:
        """The undisturbed run of a loss."""
        place = self.base / "whole" / "-".join([loss, *(word.strip("-") for word in more)])
        out = place / "out"
        return Whole(out, *recorded(lambda: self.train(loss, out, *more), out, place))


def load(folder: Path) -> int:
    """Load what a run exported, with every variant; in a child."""
    for variant in [None, *{path.name.split(".")[1] for path in folder.glob("unet/*.*.safetensors")}]:
        ConsistencyPipeline.from_pretrained(folder, variant=variant)
    return 0


def copy(whole: Whole, place: Path) -> Path:
    """A copy of an undisturbed run, to be disturbed."""
    return shutil.copytree(whole.folder, place / "out")
