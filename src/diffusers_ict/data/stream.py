"""Images that are read while a run needs them: shards in random order, and their images shuffled in blocks.

The order follows from the seed and the place in the stream, as every draw of a run does: no state of a generator has to
be kept, and a run that is resumed at the same place sees the same images. Each process reads shards of its own, so the
images of a run depend on the number of its processes.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .decode import decode, in_memory
from .draw import BLOCK_ORDER, SHARD, derive_seed
from .images import Images, fingerprint_of
from .labels import checked_labels
from .picture_format import PictureFormat
from .settings import DataSettings
from .shards import Item, Shards, open_shards
from .source import Source


@dataclass(frozen=True)
class Place:
    """Where a block begins in the stream of one process.

    Attributes:
        block: its number.
        epoch: passes through the shards before it.
        shard: place of its first shard in the order of that epoch.
        offset: images of that shard that belong to earlier blocks.
    """

    block: int = 0
    epoch: int = 0
    shard: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Block:
    """Images of a block in their random order, where it begins, and where the next one begins."""

    images: Images
    place: Place
    after: Place


class StreamedImages:
    """The training images of one process, read block by block; the next block is read while this one is in use.

    Args:
        shards: what is read.
        form: what the pictures are converted to.
        buffer: images of a block.
        seed: of the run; rank, ranks: which of how many processes reads.

    Raises:
        UserError: the first block cannot be read.
    """

    def __init__(
        self, shards: Shards, form: PictureFormat, buffer: int, seed: int, rank: int = 0, ranks: int = 1
    ) -> None:
        self.shards, self.form, self.buffer, self.seed = shards, form, buffer, seed
        self.rank, self.ranks = rank, ranks
        self._shape: tuple[int, int, int] | None = None  # of the first block
        self._next: Future[Block] | None = None
        self._used, self._closed = 0, False
        self._reader = ThreadPoolExecutor(1)
        first = self._read(Place(), background=False)
        self.examples = first.images
        self._shape = self.examples.shape
        self._enter(first, 0)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.examples.shape

    @property
    def num_classes(self) -> int | None:
        """Or None."""
        return self.shards.num_classes

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """One for each class, or None."""
        return self.shards.class_names

    @property
    def count(self) -> int | None:
        """Images of the data set, or None where nobody knows before they are read."""
        return self.shards.count

    @property
    def nbytes(self) -> int:
        """Bytes of the images that are in memory: two blocks."""
        return 2 * self._block.images.nbytes

    def fingerprint(self) -> str:
        """What the images are and in which order they come, in 32 hexadecimal digits."""
        return fingerprint_of([self.shards.identity, asdict(self.form), self.buffer, self.ranks])

    def to(self, device: torch.device | str) -> "StreamedImages":
        """These images, which stay in host memory."""
        return self

    def take(self, count: int) -> tuple[Tensor, Tensor | None]:
        """The next images, uint8 [count, C, H, W], and their labels [count] or None.

        Raises:
            UserError: they cannot be read.
        """
        parts = []
        while count:
            if self._next is None:  # not before: a resumed run goes to another place first
                self._next = self._reader.submit(self._read, self._block.after)
            if self._used == self.buffer:
                self._enter(self._next.result(), 0)
                continue
            part = slice(self._used, min(self._used + count, self.buffer))
            parts.append(self._block.images.part(part))
            count -= part.stop - part.start
            self._used = part.stop
        pixels, labels = zip(*parts)
        return torch.cat(pixels), None if labels[0] is None else torch.cat(labels)

    @property
    def place(self) -> dict[str, int]:
        """Where the next image stands, as JSON types."""
        return {**asdict(self._block.place), "used": self._used}

    def seek(self, places: list[dict[str, int]]) -> None:
        """Go on from the `place` of each process; other processes begin an epoch that none of these has begun.

        Raises:
            UserError: the images there cannot be read.
        """
        if len(places) == self.ranks:
            begin = Place(**{name: value for name, value in places[self.rank].items() if name != "used"})
            used = places[self.rank]["used"]
        else:
            # Two epochs on: a block that begins at the end of an epoch is made of the next one.
            begin = Place(*(2 + max(place[name] for place in places) for name in ("block", "epoch")))
            used = 0
        self._enter(self._read(begin, background=False), used)

    def _enter(self, block: Block, used: int) -> None:
        self._block, self._used, self._next = block, used, None

    def close(self) -> None:
        """Stop reading ahead, so that nobody waits for it at the end of the program."""
        self._closed = True
        self._reader.shutdown(wait=False, cancel_futures=True)

    def _read(self, place: Place, background: bool = True) -> Block:
        """The block that begins at a place: a function of its arguments, the seed and the process."""
        labels: list[int | None] = []
        after = place

        def pictures() -> Iterator[Any]:
            nonlocal after
            for (picture, label), behind in islice(self._from(place), self.buffer):
                if self._closed:
                    return
                labels.append(label)
                after = behind
                yield picture

        decoded = decode(
            Source(pictures(), self.buffer), self.form, partial(_allocate, self._shape), background=background
        )
        known = None
        if self.num_classes is not None:
            names = self.class_names or tuple(map(str, range(self.num_classes)))
            known, _ = checked_labels(labels, self.buffer, names)  # type: ignore[arg-type]
        order = torch.from_numpy(
            np.random.default_rng(derive_seed(self.seed, BLOCK_ORDER, self.rank, place.block)).permutation(self.buffer)
        )
        images = Images(
            torch.from_numpy(decoded.pixels)[order],
            None if known is None else known[order],
            self.num_classes,
            self.class_names,
            decoded.originals,
        )
        return Block(images, place, replace(after, block=place.block + 1))

    def _from(self, place: Place) -> Iterator[tuple[Item, Place]]:
        """The images of this process from a place on, without end, each with the place behind it."""
        epoch, shard, offset = place.epoch, place.shard, place.offset
        while True:
            found = (shard, offset) != (0, 0)  # else every image of an epoch is ahead
            order = self._order(epoch)
            for at in range(shard, len(order)):
                for number, item in enumerate(self.shards.read(order[at], offset), offset):
                    found = True
                    if self._is_own(number):
                        yield item, Place(place.block, epoch, at, number + 1)
                offset = 0
            if not found:
                raise UserError("the stream holds no images; check its name and `dataset_split`.")
            epoch, shard = epoch + 1, 0

    def _order(self, epoch: int) -> list[int]:
        """The shards that this process reads in an epoch; all of them where there are fewer than processes."""
        order = np.random.default_rng(derive_seed(self.seed, SHARD, epoch)).permutation(self.shards.number).tolist()
        return order if self._shared() else order[self.rank :: self.ranks]

    def _shared(self) -> bool:
        return self.shards.number < self.ranks

    def _is_own(self, number: int) -> bool:
        """Whether this process uses an image of a shard, by its number in it."""
        return not self._shared() or number % self.ranks == self.rank


def stream_images(
    settings: DataSettings, class_conditional: bool, buffer: int, seed: int, rank: int, ranks: int
) -> StreamedImages:
    """The images that the settings name, streamed; for the other arguments see `StreamedImages`.

    Raises:
        UserError: settings that a stream cannot follow, and whatever opening the data or reading its beginning raises.
    """
    if settings.train_data_dir is not None or settings.dataset_name is None:
        raise UserError(
            "`streaming` reads a Hub data set, or a folder of .parquet or .npz files, which `dataset_name` names; a "
            "folder of images is read without it."
        )
    if settings.image_cache_dir is not None:
        raise UserError("`streaming` keeps no images, and `image_cache_dir` keeps all of them: leave one of them out.")
    shards = open_shards(settings, class_conditional)
    return StreamedImages(shards, settings.form, buffer, seed, rank, ranks)


def _allocate(expected: tuple[int, int, int] | None, shape: tuple[int, ...]) -> np.ndarray:
    if expected is not None and shape[1:] != expected:
        raise UserError(
            f"all images of the stream must be alike: the first were {list(expected)} and these are {list(shape[1:])} "
            "[C, H, W]; give `resolution` and `image_mode`."
        )
    return in_memory(shape)
