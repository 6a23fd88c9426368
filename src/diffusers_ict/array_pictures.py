"""Arrays that are no pictures, shown: their values in colours, and a bar that says which colour has which value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .image_grid import TEXT, font_of

TAIL = 0.002  # of the values at either end is out of the range of the colours
COLOURS = "viridis"
BAR = 12  # pixels: height of the bar


@dataclass(frozen=True)
class Shades:
    """The range of values that the colours of each channel span.

    Attributes:
        low, high: one number for each channel, in the units of the data.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def of(cls, values: Tensor) -> Shades:
        """The range of arrays [n, C, H, W], but for a few of the smallest and the largest values."""
        flat = values.double().transpose(0, 1).flatten(1).sort(1).values
        last = flat.shape[1] - 1
        low, high = (flat[:, round(share * last)] for share in (TAIL, 1 - TAIL))
        return cls(tuple(low.tolist()), tuple(high.tolist()))

    def rows(self, blocks: dict[str, Tensor]) -> dict[str, np.ndarray]:
        """Blocks of arrays [n, C, H, W] as pictures in [0, 1], [n, H, W, 3] each.

        Three channels are the colours of one picture. Any other number makes a row for each channel, named after it
        where there are several.
        """
        shown = {}
        for name, values in blocks.items():
            low, high = (torch.tensor(end, dtype=torch.float64)[:, None, None] for end in (self.low, self.high))
            shares = ((values.cpu().double() - low) / (high - low).clamp(min=1e-300)).clamp(0, 1).numpy()
            if shares.shape[1] == 3:
                shown[name] = shares.transpose(0, 2, 3, 1)
                continue
            for channel in range(shares.shape[1]):
                title = name if shares.shape[1] == 1 else f"{name}, channel {channel}"
                shown[title] = coloured(shares[:, channel])
        return shown

    def with_bar(self, sheet: Image.Image) -> Image.Image:
        """A picture of arrays above the bar of its colours, with the values at its ends, a line for each channel."""
        single, picture = len(self.low) == 1, len(self.low) == 3
        lines = [
            ("" if single else f"channel {number}: ") + f"{low:.4g} to {high:.4g}"
            for number, (low, high) in enumerate(zip(self.low, self.high))
        ]
        height = (0 if picture else BAR + 4) + len(lines) * (TEXT + 4) + 4
        widest = max(int(font_of(TEXT).getlength(line)) for line in lines) + 8
        whole = Image.new("RGB", (max(sheet.width, widest), sheet.height + height), "white")
        whole.paste(sheet)
        top = sheet.height + 4
        if not picture:
            ramp = np.broadcast_to(np.linspace(0, 1, sheet.width), (BAR, sheet.width))
            whole.paste(Image.fromarray((coloured(ramp[None])[0] * 255).round().astype(np.uint8)), (0, top))
            top += BAR + 4
        pen = ImageDraw.Draw(whole)
        for number, line in enumerate(lines):
            pen.text((4, top + number * (TEXT + 4)), line, "black", font_of(TEXT))
        return whole


def coloured(shares: np.ndarray) -> np.ndarray:
    """[n, H, W] in [0, 1] -> colours [n, H, W, 3] in [0, 1]; grey where matplotlib is not installed."""
    try:
        from matplotlib import colormaps
    except ImportError:
        return np.repeat(shares[..., None], 3, -1)
    return colormaps[COLOURS](shares)[..., :3]
