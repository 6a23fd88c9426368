"""Which images the default UNet takes: known before anything is imported or read."""

from ..errors import UserError

MIDDLE = 8  # the coarsest feature map is at most this wide


def nearest_multiples(side: int, factor: int) -> str:
    """The multiples of a factor next to a size that is none: "48 or 56"."""
    below = side // factor * factor
    return f"{below} or {below + factor}" if below else str(factor)


def default_levels(resolution: int) -> int:
    """How many levels the default UNet has for images whose shorter side has so many pixels.

    Raises:
        UserError: a size out of range, or one that cannot be halved often enough.
    """
    if not 8 <= resolution <= 256:
        raise UserError(
            f"a UNet is chosen for resolutions from 8 to 256 pixels, got {resolution}; for others give "
            "`model_config_name_or_path`."
        )
    levels = 2
    while resolution / 2 ** (levels - 1) > MIDDLE:
        levels += 1
    factor = 2 ** (levels - 1)
    if resolution % factor:
        raise UserError(
            f"a UNet for images of this size halves them {levels - 1} times, so the resolution must be a multiple "
            f"of {factor}, got {resolution}; choose `resolution` {nearest_multiples(resolution, factor)}."
        )
    return levels
