"""What the pictures were before they were converted: it shows at a glance whether the right data were read."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

Size = tuple[int, int]


@dataclass(frozen=True)
class Originals:
    """The pictures of a data set as they were found.

    Attributes:
        smallest, largest: width and height of the pictures with the shortest and the longest shorter side.
        modes: how many there are of each mode of Pillow, or type of arrays.
        enlarged: how many had to be enlarged.
    """

    smallest: Size
    largest: Size
    modes: dict[str, int]
    enlarged: int

    @classmethod
    def of(cls, sizes: Counter[Size], modes: Counter[str], side: int) -> "Originals":
        """Of pictures that were resized to `side`."""
        ordered = sorted(sizes, key=lambda size: (min(size), max(size)))
        enlarged = sum(number for size, number in sizes.items() if min(size) < side)
        return cls(ordered[0], ordered[-1], dict(modes.most_common()), enlarged)

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> "Originals":
        """From the JSON form of `dataclasses.asdict`.

        Raises:
            KeyError, TypeError, ValueError: it is no such form.
        """
        modes = {str(mode): int(number) for mode, number in dict(said["modes"]).items()}
        return cls(_size(said["smallest"]), _size(said["largest"]), modes, int(said["enlarged"]))

    def __str__(self) -> str:
        """Such as "32x24 to 640x480, 79 RGB, 1 L"."""
        smallest, largest = ("x".join(map(str, size)) for size in (self.smallest, self.largest))
        sizes = smallest if smallest == largest else f"{smallest} to {largest}"
        return ", ".join([sizes, *(f"{number} {mode}" for mode, number in self.modes.items())])


def _size(said: Any) -> Size:
    width, height = said
    return int(width), int(height)
