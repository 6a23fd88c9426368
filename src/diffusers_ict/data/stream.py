"""Images that are read while a run needs them: shards in random order, and their images shuffled in blocks.

The order follows from the seed and the place in the stream, as every draw of a run does, so that a run that is resumed
at the same place sees the same images; the shuffle buffer of `datasets` would be lost. Each process reads shards of its
own, so the images of a run depend on the number of its processes.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from torch import Tensor

from ..errors import UserError, first_line
from .dataset import Images, fingerprint_of
from .draw import BLOCK_ORDER, SHARD, derive_seed
from .load import check_class_names, checked_labels
from .npz import read_npz
from .settings import DataSettings
from .sources import class_names_of, open_dataset, refuse, with_columns
from .transform import Transform, pictures


class Place(NamedTuple):
    """Where a block begins in the stream of one process."""

    block: int = 0  # its number
    epoch: int = 0  # passes through the shards before it
    shard: int = 0  # place of its first shard in the order of that epoch
    offset: int = 0  # images of that shard that belong to earlier blocks


class Block(NamedTuple):
    """Images of a block in their random order, where it begins, and where the next one begins."""

    images: Images
    place: Place
    after: Place


class StreamedImages:
    """The training images of one process, read block by block; the next block is read while this one is in use.

    Args:
        settings: they name a Hub data set, or a folder of .parquet or .npz files.
        class_conditional: read labels too.
        buffer: images of a block.
        seed: of the run; rank, ranks: which of how many processes reads.

    Attributes:
        shape: (C, H, W); num_classes, class_names: of the labels, or None.
        count: images of all shards, or None where nobody knows before they are read.
        examples: images of the first block, to show beside samples.

    Raises:
        UserError: settings that a stream cannot follow, data that cannot be opened, or a first block that cannot be
            read.
    """

    transform: Transform = staticmethod(pictures)
    vae = None  # which would have to encode the same images in each epoch

    def __init__(
        self, settings: DataSettings, class_conditional: bool, buffer: int, seed: int, rank: int = 0, ranks: int = 1
    ) -> None:
        if settings.train_data_dir is not None or settings.dataset_name is None:
            raise UserError(
                "`streaming` reads a Hub data set, or a folder of .parquet or .npz files, which `dataset_name` names; "
                "a folder of images is read without it."
            )
        refuse(settings, "a stream, which keeps no images", "image_cache_dir")
        refuse(settings, "a stream", "conditioning_image_column", "conditioning_image_mode")
        self.form, self.buffer, self.seed, self.rank, self.ranks = settings.form, buffer, seed, rank, ranks
        path = Path(settings.dataset_name)
        parts = sorted(path.glob("*.npz"))
        opened = _open_parts(parts, settings, class_conditional) if parts else _open(settings, class_conditional)
        self.data, self.num_classes, self.class_names, self.count = opened
        check_class_names(self.class_names or ())
        # Names and sizes tell files from others wherever they lie: a run may go on with a copy of its data elsewhere.
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        which = [[file.name, file.stat().st_size] for file in files] if path.exists() else [settings.dataset_name]
        columns = [settings.image_column, settings.label_column, class_conditional]
        self._identity = [which, settings.dataset_config_name, settings.dataset_split, columns, self.count]
        self._shape: tuple[int, ...] | None = None  # until the first block is read
        self._next: Future[Block] | None = None
        self._closed = False
        self._reader = ThreadPoolExecutor(1)
        self._block, self._used = self._read(Place()), 0
        self.examples = self._block.images
        self.normalization = None  # which would need all images before the first step
        self.condition_channels = 0
        self.shape = self._shape = self.examples.shape

    def fingerprint(self) -> str:
        """What the images are and in which order they come, in 32 hexadecimal digits."""
        return fingerprint_of([self._identity, self.data.num_shards, self.form.facts(), self.buffer, self.ranks])

    def overview(self) -> dict[str, str]:
        """Texts by title: number, shape and classes of the images, how they are read, and what the first ones were."""
        count, shape = "unknown number" if self.count is None else self.count, "x".join(map(str, self.shape))
        return {
            "images": f"{count} of {shape}, {self.num_classes or 'no'} classes",
            "streamed": f"{self.data.num_shards} shards, shuffled in blocks of {self.buffer} images",
            "originals": f"{self.examples.overview()['originals']} in the first block",
        }

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
                self._block, self._used, self._next = self._next.result(), 0, None
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
        return {**self._block.place._asdict(), "used": self._used}

    def seek(self, places: list[dict[str, int]]) -> None:
        """Go on from the `place` of each process; other processes begin an epoch that none of these has begun.

        Raises:
            UserError: the images there cannot be read.
        """
        if len(places) == self.ranks:
            *begin, used = (places[self.rank][name] for name in (*Place._fields, "used"))
        else:
            # Two epochs on: a block that begins at the end of an epoch is made of the next one.
            begin, used = [2 + max(place[name] for place in places) for name in ("block", "epoch")], 0
        self._block, self._used, self._next = self._read(Place(*begin)), used, None

    def close(self) -> None:
        """Stop reading ahead, so that nobody waits for it at the end of the program."""
        self._closed = True
        self._reader.shutdown(wait=False, cancel_futures=True)

    def _read(self, place: Place) -> Block:
        """The block that begins at a place: a function of its arguments, the seed and the process."""
        rows, places = zip(*itertools.islice(self._from(place), self.buffer))
        stored = [row["image"] for row in rows]
        shape = self._shape or self.form.convert(stored[0], 0).pixels.shape
        with ThreadPoolExecutor() as pool:
            pictures = list(pool.map(self.form.convert, stored, itertools.count(), itertools.repeat(shape)))
        generator = np.random.default_rng(derive_seed(self.seed, BLOCK_ORDER, self.rank, place.block))
        shuffled = generator.permutation(self.buffer)
        labels = None
        if self.num_classes is not None:
            names = self.class_names or [""] * self.num_classes
            labels = checked_labels([row["label"] for row in rows], self.buffer, names)[0][shuffled]
        pixels = torch.from_numpy(np.stack([pictures[number].pixels for number in shuffled]))
        originals = Counter(picture.original for picture in pictures)
        images = Images(pixels, labels, self.num_classes, self.class_names, originals)
        return Block(images, place, places[-1]._replace(block=place.block + 1))

    def _from(self, place: Place) -> Iterator[tuple[dict[str, Any], Place]]:
        """The rows of this process from a place on, without end, each with the place behind it.

        Where there are fewer shards than processes, each process reads all of them and uses every `ranks`-th image.
        """
        block, epoch, shard, offset = place
        shards = self.data.num_shards
        shared = shards < self.ranks
        while True:
            seen = (shard, offset) != (0, 0)  # else every image of an epoch is ahead
            order = np.random.default_rng(derive_seed(self.seed, SHARD, epoch)).permutation(shards).tolist()
            order = order if shared else order[self.rank :: self.ranks]
            for at in range(shard, len(order)):
                for number, row in enumerate(self._rows(order[at], offset), offset):
                    if self._closed:
                        raise CancelledError
                    seen = True
                    if not shared or number % self.ranks == self.rank:
                        yield row, Place(block, epoch, at, number + 1)
                offset = 0
            if not seen:
                raise UserError("the stream holds no images; check its name and `dataset_split`.")
            epoch, shard = epoch + 1, 0

    def _rows(self, shard: int, skipped: int) -> Iterator[dict[str, Any]]:
        try:
            yield from self.data.shard(self.data.num_shards, shard).skip(skipped)
        except UserError:
            raise
        except Exception as error:  # the library's, the Hub's and the transport's types
            raise UserError(
                f"the stream cannot be read ({first_line(error)}): go on later with `resume_from_checkpoint` latest."
            ) from error


# Rows {"image": what `PictureFormat.convert` takes, "label": int}, number and names of the classes, number of images.
Opened = tuple[datasets.IterableDataset, int | None, tuple[str, ...] | None, int | None]


def _open(settings: DataSettings, with_labels: bool) -> Opened:
    data = open_dataset(settings, streaming=True)
    data = with_columns(data if data.features is not None else data._resolve_features(), settings, with_labels)
    names = class_names_of(data)
    if with_labels and names is None:
        raise UserError(
            "the labels of a stream must be a column of type ClassLabel, which says how many classes there are: name "
            "one by `label_column`, or leave `streaming` out."
        )
    count = getattr((data.info.splits or {}).get(settings.dataset_split), "num_examples", None) or None
    return data, None if names is None else len(names), names, count


def _open_parts(parts: list[Path], settings: DataSettings, with_labels: bool) -> Opened:
    """Each .npz file is a shard, which is loaded when its turn comes; before, only the labels are."""
    count, classes = 0, None
    for path in parts:
        images, _, labels = read_npz(path, settings, with_labels, with_images=False)
        count += images
        if with_labels and images:
            classes = max(classes or 0, checked_labels(labels, images, None)[1])
    arguments = {"parts": parts, "settings": settings, "with_labels": with_labels}
    return datasets.IterableDataset.from_generator(_rows_of_parts, gen_kwargs=arguments), classes, None, count


def _rows_of_parts(parts: list[Path], settings: DataSettings, with_labels: bool) -> Iterator[dict[str, Any]]:
    for path in parts:
        _, images, labels = read_npz(path, settings, with_labels)
        for number, image in enumerate(images):
            yield {"image": image} | ({} if labels is None else {"label": int(labels[number])})
