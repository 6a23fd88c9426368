"""Make averages of any length of a finished run, from the snapshots that `--ema_snapshot_steps` kept.

    python train_scripts/ema.py my-model --std 0.05 0.1 0.15

Writes each as a variant of the weights (std005, std01, std015) beside those of the run, and renews the model card.
`evaluate.py my-model` then measures them all. The standard deviation is a share of the run: 0.1 averages mostly over
its last fifth.
Exit codes: 0 done, 2 the run has no snapshots or there is no such average, and why.
"""

from collections.abc import Sequence
from pathlib import Path

from ..settings import ArgumentParser
from .program import run_program


def main(argv: Sequence[str] | None = None) -> int:
    """Make averages as the flags say; returns the exit code."""
    return run_program("ema.py", lambda: _make(argv))


def _make(argv: Sequence[str] | None) -> None:
    parser = ArgumentParser("ema.py", __doc__)
    parser.add_argument("folder", type=Path, help="output folder of a training run")
    parser.add_argument(
        "--std", type=float, nargs="+", required=True, help="standard deviations of the averages, as shares of the run"
    )
    parser.add_argument("--step", type=int, help="end of the averages: a step that has a snapshot [the last]")
    options = parser.parse_args(argv)
    from ..training.snapshots import write_variants

    for name, distance in write_variants(options.folder, options.std, options.step):
        print(f"{name}: its profile is within {100 * distance:.2g} % of the exact one.")
    print(f"Next: diffusers-ict evaluate {options.folder} with the data flags of the run")
