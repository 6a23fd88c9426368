"""Measuring samples against data, on features of any network. Nothing here knows where features come from."""

from .metrics import frechet_distance, precision_recall

__all__ = ["frechet_distance", "precision_recall"]
