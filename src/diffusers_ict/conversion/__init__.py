"""Models trained elsewhere, converted into stock consistency pipelines. One file for each layout."""

from .pipelines import Converted, convert
from .save import check_new, save_converted

__all__ = ["Converted", "check_new", "convert", "save_converted"]
