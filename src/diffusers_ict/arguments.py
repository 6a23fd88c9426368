"""Numbers as callers give them: Python's, numpy's, or tensors without axes. A bool or a text is no number."""

import operator
from typing import Any


def integer(value: Any) -> int | None:
    """The integer that a value is, or None."""
    try:
        return None if _is_other(value) else operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError of a tensor on a device that has no data
        return None


def number(value: Any) -> float | None:
    """The number that a value is, or None; infinities and NaN are numbers."""
    if _is_other(value) or isinstance(value, (str, bytes, bytearray)):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def positive(name: str, value: Any) -> int:
    """The positive integer that an argument must be.

    Raises:
        ValueError: it is none.
    """
    count = integer(value)
    if count is None or count < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}.")
    return count


def _is_other(value: Any) -> bool:
    """Whether it is a bool, or has axes."""
    is_bool = isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")
    return is_bool or getattr(value, "ndim", 0) > 0
