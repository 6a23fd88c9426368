"""Models trained elsewhere, converted into stock consistency pipelines. One file for each layout."""

from .pipelines import ConvertedModel, convert
from .save import check_new, save_converted

__all__ = ["ConvertedModel", "check_new", "convert", "save_converted"]
