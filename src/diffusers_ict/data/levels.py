"""Values of pixels in 8 bits, by the range of their type and never by a guess."""

import numpy as np


def as_bytes(values: np.ndarray) -> np.ndarray:
    """uint8 as they are, uint16 divided by 257, floats from 0 to 1 multiplied by 255; the results are rounded.

    Raises:
        ValueError: floats out of this range, or another type.
    """
    kind, size = values.dtype.kind, values.dtype.itemsize
    if (kind, size) == ("u", 1):
        return values
    if (kind, size) == ("u", 2):
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if kind not in "biuf":
        raise ValueError(f"its values are {values.dtype} and must be uint8, uint16 or floats from 0 to 1")
    least, most = values.min(), values.max()
    if kind == "f" and least >= 0 and most <= 1:  # false for NaN
        return np.rint(values.astype(np.float64) * 255).astype(np.uint8)
    raise ValueError(
        f"its values are {values.dtype} from {least:g} to {most:g} and must be uint8, uint16 or floats from 0 to 1"
    )
