"""Noise levels that were published with the networks of openai/consistency_models, which its files do not hold."""

import re
from dataclasses import dataclass

from ..formulas.noise_schedule import karras_sigmas


@dataclass(frozen=True)
class Published:
    """How the authors draw images in two steps.

    Attributes:
        name: of the released file; num_levels: of the Karras grid (rho 7) that indices count from sigma_max down.
        index: of the second step.
    """

    name: str
    num_levels: int
    index: int

    @property
    def second_sigma(self) -> float:
        """The level of the second step, to four digits, as the authors' grid gives it."""
        return float(f"{karras_sigmas(self.num_levels).flip(0)[self.index]:.4g}")


# --steps and --ts of the sampling commands in scripts/launch.sh. "CD on LSUN-256" stands there for both data sets.
TWO_STEPS = {
    "ct_imagenet64": (201, 106),
    "ct_bedroom256": (151, 67),
    "ct_cat256": (151, 62),
    "cd_imagenet64_l2": (40, 22),
    "cd_imagenet64_lpips": (40, 22),
    "cd_imagenet64": (40, 22),
    "cd_bedroom256_l2": (40, 18),
    "cd_bedroom256_lpips": (40, 17),
    "cd_cat256_l2": (40, 18),
    "cd_cat256_lpips": (40, 17),
}
EDM = re.compile(r"(?<![a-z0-9])edm(?![a-z0-9])", re.I)
NAME = re.compile(r"(?<![a-z0-9])(?:" + "|".join(TWO_STEPS) + r")(?![a-z0-9])", re.I)


def published(file_name: str) -> Published | None:
    """What was published of the network of this file, recognised by its name, such as ct_imagenet64.pt."""
    found = NAME.search(file_name)
    return Published(found[0].lower(), *TWO_STEPS[found[0].lower()]) if found else None


def is_edm(file_name: str) -> bool:
    """Whether the name, such as edm_imagenet64_ema.pt, is that of one of the diffusion models among these networks."""
    return EDM.search(file_name) is not None
