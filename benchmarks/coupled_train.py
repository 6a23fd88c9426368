#!/usr/bin/env python
"""Training as train_ict.py does it, with images, noise or levels that are drawn together: couplings that were tried.

    python benchmarks/coupled_train.py --coupling gc --coupling_share 0.5 --dataset_name digits.npz --output_dir model

- gc: a share of the images are the model's own (Issenhuth et al., Improving Consistency Models with Generator-Augmented
  Flows, arXiv:2406.09570): x becomes f(x + sigma_next z, sigma_next) in both points of a pair. The share is 0 in the
  first quarter of the run and grows in the second.
- ot: the noise of a micro batch is exchanged between images of one class, so that their squared distances are least
  (minibatch optimal transport: Pooladian et al., Multisample Flow Matching, arXiv:2304.14772).
- stratified: each image of a batch has a part of all noise levels of its own, of equal probability, so that no batch
  misses a range (as Kingma et al., Variational Diffusion Models, arXiv:2107.00630, appendix I.1, do it).

They are no flags of train_ict.py. The first two did not help: see results/digits_tuning.md. The third gains 5 %, no
more than seeds differ by: see results/digits_methods.md.
"""

import argparse
import sys
from collections.abc import Callable

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from diffusers_ict.data.draw import Draw
from diffusers_ict.formulas.preconditioning import per_image
from diffusers_ict.objectives.base import Pair, consistency_pair
from diffusers_ict.training import run, train
from diffusers_ict.training.recipe import Recipe, parse


def generated(f: Callable, x: Tensor, noise: Tensor, sigma_next: Tensor, labels: Tensor | None, count: int) -> Tensor:
    """The images [B, C, H, W], of which the first `count` are the model's own."""
    if count == 0:
        return x
    first = slice(count)
    with torch.no_grad():
        noisy = x[first] + per_image(sigma_next[first], x) * noise[first]
        own = f(noisy, sigma_next[first], None if labels is None else labels[first])
    return torch.cat([own.clamp(-1, 1), x[first.stop :]])


def transported(x: Tensor, noise: Tensor, labels: Tensor | None) -> Tensor:
    """The same noise [B, C, H, W] in the order that is nearest to the images, within each class."""
    cost = torch.cdist(x.flatten(1), noise.flatten(1)).square()
    if labels is not None:
        cost += (labels[:, None] != labels) * cost.sum()
    return noise[torch.from_numpy(linear_sum_assignment(cost.cpu().numpy())[1]).to(noise.device)]


def share_at(progress: float, share: float) -> float:
    """The share of generated images: 0 in the first quarter of the run, then growing through the second."""
    return share * min(max(4 * progress - 1, 0), 1)


def coupled_pair(recipe: Recipe, coupling: str, share: float) -> Callable[..., Pair]:
    """`consistency_pair` with a coupling; it counts the steps of the run by itself."""
    done = 0

    def pair(f: Callable, x: Tensor, noise: Tensor, sigma: Tensor, sigma_next: Tensor, labels: Tensor | None, **kwargs):
        nonlocal done
        progress = done / (recipe.max_train_steps * recipe.gradient_accumulation_steps)
        done += 1
        if coupling == "gc":
            x = generated(f, x, noise, sigma_next, labels, round(share_at(progress, share) * len(x)))
        else:
            noise = transported(x, noise, labels)
        return consistency_pair(f, x, noise, sigma, sigma_next, labels, **kwargs)

    return pair


def stratified(uniform: Tensor) -> Tensor:
    """Independent uniform numbers [B], moved so that one lies in each of B equal parts of [0, 1)."""
    return (torch.arange(len(uniform), dtype=uniform.dtype, device=uniform.device) + uniform) / len(uniform)


class StratifiedDraw(Draw):
    """The draws of a step, with stratified levels."""

    def pair_uniform(self) -> Tensor:
        return stratified(super().pair_uniform())


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--coupling", choices=("gc", "ot", "stratified"), required=not {"-h", "--help"} & set(sys.argv))
    parser.add_argument("--coupling_share", type=float, default=0.5)
    options, flags = parser.parse_known_args()
    recipe = parse(flags, "coupled_train.py", __doc__)
    if recipe.resume_from_checkpoint is not None or recipe.torch_compile:
        sys.exit("coupled_train.py counts its steps from the beginning of a run, and cannot be resumed or compiled.")
    if options.coupling == "stratified":
        run.Draw = StratifiedDraw  # type: ignore[misc]
    else:
        train.consistency_pair = coupled_pair(recipe, options.coupling, options.coupling_share)
    train.train(recipe)


if __name__ == "__main__":
    main()
