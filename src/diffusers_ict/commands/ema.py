"""Make averages of any length from a finished run: it needs the snapshots of `--ema_snapshot_steps`.

    diffusers-ict ema my-model --std 0.05 0.1 0.15

Writes each as a variant of the weights (std005, std01, std015) beside those of the run, and updates the model card.
`diffusers-ict evaluate my-model` then measures them all. Standard deviations are shares of the run: with 0.1, the
average is mostly over the last fifth of the steps.
Exit codes: 0 done, 2 not done, for example because the run has no snapshots; the reason is printed.
"""

import argparse
from pathlib import Path

from ..names import operand, shell
from .program import argument, program


@program(
    "ema",
    __doc__,
    argument("folder", type=Path, help="output folder of a training run"),
    argument("--std", type=float, nargs="+", required=True, help="standard deviations, as shares of the run"),
    argument("--step", type=int, help="end of the averages: a step that has a snapshot [the last]"),
)
def main(options: argparse.Namespace) -> None:
    """Make averages as the flags say."""
    from ..training.snapshots import write_variants

    for name, distance in write_variants(options.folder, options.std, options.step):
        print(f"{name}: its weights of the steps are those of the exact average within {max(distance, 1e-4):.2%}.")
    print(f"Next: {shell(['diffusers-ict', 'evaluate', operand(options.folder)])}")
