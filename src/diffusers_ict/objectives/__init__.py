"""Objectives: what a training step minimises, one file for each method.

A built-in method is its file and its line here.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Objective

# The choices of `--loss`, and the class in the file of that name. No import: `--help` lists them without torch.
BUILT_IN = {"ict": "ICT", "ect": "ECT", "ct": "CT", "act": "ACT", "relativistic": "Relativistic", "adcm": "ADCM"}


def objective_class(loss: str) -> "type[Objective]":
    """The objective of a built-in loss, which says its method, paper and defaults.

    Raises:
        KeyError: there is no such loss.
    """
    name = BUILT_IN[loss]
    return getattr(import_module(f".{loss}", __name__), name)
