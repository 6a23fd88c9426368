"""All that keeps the pictures of a data set from becoming images of one shape, with the settings that mend it."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from ..transparency import may_be_transparent
from .transform import MODES, PictureFormat, open_picture


def all_problems(stored: Iterable[Any], form: PictureFormat) -> str | None:
    """One sentence where two or more settings are needed, else None. Pictures are opened and not decoded."""
    sizes, modes = set[tuple[int, int]](), set[str]()
    for each in stored:
        with suppress(Exception), open_picture(each) as picture:  # a damaged one is told of when the others are mended
            sizes.add(picture.size)
            modes.add("RGBA" if may_be_transparent(picture) else {"P": "RGB", "1": "L"}.get(picture.mode, picture.mode))
    shorter = {min(size) for size in sizes}
    across, high = form.size or (1, 1)
    odd = next((f"{width}x{height}" for width, height in sorted(sizes) if width * high != height * across), None)
    shape = "square" if across == high else f"of the shape {across}x{high}"
    found = {
        "`image_mode` RGB": f"their modes are {', '.join(sorted(modes))}"
        if form.mode is None and (len(modes) > 1 or not modes <= set(MODES))
        else "",
        f"`resolution` {max(8, 1 << (min(shorter).bit_length() - 1)) if shorter else 8}": (
            f"their shorter sides are {min(shorter)} to {max(shorter)} pixels"
            if form.resolution is None and len(shorter) > 1
            else ""
        ),
        "`center_crop`": f"some are not {shape}, such as {odd}" if odd and not form.center_crop else "",
    }
    mends = [mend for mend, problem in found.items() if problem]
    if len(mends) < 2:
        return None
    return f"the images must become alike, and {'; '.join(filter(None, found.values()))}: try {' '.join(mends)}."
