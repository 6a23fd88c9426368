"""Models trained elsewhere, converted into stock consistency pipelines. One file for each layout."""

from .pipelines import Converted, convert
from .save import save_converted

__all__ = ["Converted", "convert", "save_converted"]
