from .extractors import Extractor, make_extractor
from .metrics import Moments, frechet_distance, inception_score, kernel_distance
from .neighbours import Coverage, coverage_measures, precision_recall
from .tuning import greedy_levels, ternary_search

__all__ = [
    "Coverage",
    "Extractor",
    "Moments",
    "coverage_measures",
    "frechet_distance",
    "greedy_levels",
    "inception_score",
    "kernel_distance",
    "make_extractor",
    "precision_recall",
    "ternary_search",
]
