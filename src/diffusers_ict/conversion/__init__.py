"""Models trained elsewhere, brought into the form of a stock consistency pipeline. One file for each layout."""

from .card import write_card
from .pipelines import Converted, convert

__all__ = ["Converted", "convert", "write_card"]
