"""Models trained elsewhere, brought into the form of a stock consistency pipeline. One file for each layout."""

from .pipelines import Converted, convert

__all__ = ["Converted", "convert"]
