from .extractors import Extractor, make_extractor
from .features import Features
from .metrics import Moments, coverage_measures, frechet_distance, inception_score, kernel_distance
from .selection import FID, IS, KID, PR, Metric
from .tuning import ternary_search, tune

__all__ = [
    "FID",
    "IS",
    "KID",
    "PR",
    "Extractor",
    "Features",
    "Metric",
    "Moments",
    "coverage_measures",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "make_extractor",
    "ternary_search",
    "tune",
]
