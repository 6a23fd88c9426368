"""Models trained elsewhere, brought into the form of a stock consistency pipeline. One file for each layout."""

from .pipelines import Converted, convert
from .receipt import write_receipt

__all__ = ["Converted", "convert", "write_receipt"]
