"""Images that are read while a run needs them: shards in random order, and their images shuffled in blocks.

The order follows from the seed and the place in the stream, as every draw of a run does, so that a run that is resumed
at the same place sees the same images; the shuffle buffer of `datasets` would be lost. Each process reads shards of its
own, so the images of a run depend on the number of its processes.
"""

import itertools
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import datasets
import numpy as np
import torch
from torch import Tensor

from ..errors import UserError, first_line
from .dataset import Images, Originals, fingerprint_of
from .draw import BLOCK_ORDER, SHARD, derive_seed
from .load import check_shape, checked_labels, name_of
from .npz import read_npz
from .settings import DataSettings
from .sources import image_column_of, open_dataset
from .transform import Converted, PictureFormat


@dataclass(frozen=True)
class Shards:
    """Stored pictures in parts, each of which can be read from any of its images on."""

    data: datasets.IterableDataset  # its rows hold a picture that `PictureFormat.convert` takes, and perhaps a label
    image: str = "image"  # names of columns
    label: str | None = None  # None: no labels are wanted
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    count: int | None = None  # images of all shards; None: nobody knows before they are read
    identity: Any = None  # what the images are, as JSON types
    name: str = ""  # of the data set, for messages

    def read(self, shard: int, skipped: int) -> Iterator[tuple[Any, int]]:
        """(picture, label or -1) of the images of a shard, from number `skipped` on.

        Raises:
            UserError: the stream breaks.
        """
        try:
            for row in self.data.shard(self.data.num_shards, shard).skip(skipped):
                yield row[self.image], -1 if self.label is None else row[self.label]
        except UserError:
            raise
        except Exception as error:  # the library's, the Hub's and the transport's types
            raise UserError(
                f"the stream of {self.name} cannot be read ({first_line(error)}): go on later with "
                "`resume_from_checkpoint` latest."
            ) from error


def open_shards(settings: DataSettings, with_labels: bool) -> Shards:
    """The shards of what `dataset_name` names: a Hub data set, a folder of .parquet files, or one of .npz files.

    Raises:
        UserError: the data cannot be opened or streamed, or a column is missing, ambiguous or of the wrong type.
    """
    name, split = cast(str, settings.dataset_name), settings.dataset_split
    path = Path(name)
    if path.is_dir() and (parts := sorted(path.glob("*.npz"))):
        return _npz_shards(parts, settings, with_labels)
    data = open_dataset(name, settings.dataset_config_name, split, streaming=True)
    data = data if data.features is not None else data._resolve_features()
    image = image_column_of(data.features, settings.image_column)
    data = data.cast_column(image, datasets.Image(decode=False))
    label = _class_column(data.features, settings.label_column) if with_labels else None
    names = None if label is None else tuple(data.features[label].names)
    data = data.select_columns([image] if label is None else [image, label])
    count = getattr((data.info.splits or {}).get(split), "num_examples", None) or None
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    which = _names_and_sizes(files) if path.exists() else [name, settings.dataset_config_name]
    identity = ["stream", which, split, image, label, data.num_shards, count]
    return Shards(data, image, label, None if names is None else len(names), names, count, identity, name)


def _npz_shards(parts: list[Path], settings: DataSettings, with_labels: bool) -> Shards:
    """Each file is a shard; arrays that are not compressed are mapped into memory."""
    columns = settings.image_column, settings.label_column
    count, classes = 0, 0
    for path in parts:
        pictures = read_npz(path, *columns, with_labels, mapped=True)
        count += len(pictures.stored)
        if with_labels:
            if pictures.labels is None:
                raise UserError(f"`class_conditional` needs labels, and {path} holds none: name `label_column`.")
            classes = max(classes, checked_labels(pictures.labels, len(pictures.stored), None)[1])
    arguments = {"parts": parts, "columns": columns, "with_labels": with_labels}
    data = datasets.IterableDataset.from_generator(_rows_of_npz, gen_kwargs=arguments)
    identity = ["npz parts", _names_and_sizes(parts), *columns]
    return Shards(data, "image", "label" if with_labels else None, classes or None, None, count, identity)


def _rows_of_npz(parts: list[Path], columns: tuple[Any, Any], with_labels: bool) -> Iterator[dict[str, Any]]:
    for path in parts:
        pictures = read_npz(path, *columns, with_labels, mapped=True)
        labels = itertools.repeat(-1) if pictures.labels is None else pictures.labels
        for picture, label in zip(cast(np.ndarray, pictures.stored), labels):
            yield {"image": picture, "label": int(label)}


def _names_and_sizes(files: list[Path]) -> list[list[Any]]:
    """What tells files from others wherever they lie: a run may go on with a copy of its data on another machine."""
    return [[path.name, path.stat().st_size] for path in files]


def _class_column(features: Any, wanted: str | None) -> str:
    """The column of the classes: only a `ClassLabel` says how many there are before all is read."""
    names = [n for n, feature in features.items() if isinstance(feature, datasets.ClassLabel) and wanted in (None, n)]
    if len(names) != 1:
        raise UserError(
            f"a stream must have one column of class labels (`ClassLabel`), and {len(names)} of its columns "
            f"({', '.join(features)}) suit `label_column`: name one, or leave `streaming` out."
        )
    return names[0]


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
        shards: what is read; they say `num_classes`, `class_names` and `count`.
        form: what the pictures are converted to.
        buffer: images of a block.
        seed: of the run; rank, ranks: which of how many processes reads.

    Attributes:
        examples: images of the first block, to show beside samples.
        shape: (C, H, W).

    Raises:
        UserError: the first block cannot be read.
    """

    shape: tuple[int, int, int] = (0, 0, 0)  # until the first block is read

    def __init__(
        self, shards: Shards, form: PictureFormat, buffer: int, seed: int, rank: int = 0, ranks: int = 1
    ) -> None:
        self.shards, self.form, self.buffer, self.seed = shards, form, buffer, seed
        self.num_classes, self.class_names, self.count = shards.num_classes, shards.class_names, shards.count
        self.rank, self.ranks = rank, ranks
        self._next: Future[Block] | None = None
        self._closed = False
        self._reader = ThreadPoolExecutor(1)
        self._block, self._used = self._read(Place()), 0
        self.examples = self._block.images
        self.shape = self.examples.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the images that are in memory: two blocks."""
        return 2 * self._block.images.nbytes

    def fingerprint(self) -> str:
        """What the images are and in which order they come, in 32 hexadecimal digits."""
        return fingerprint_of([self.shards.identity, asdict(self.form), self.buffer, self.ranks])

    def overview(self) -> dict[str, str]:
        """Texts by title: number, shape and classes of the images, how they are read, and what the first ones were."""
        count, shape = "unknown number" if self.count is None else self.count, "x".join(map(str, self.shape))
        shards = f"{self.shards.data.num_shards} shards, shuffled in blocks of {self.buffer} images"
        told = {"images": f"{count} of {shape}, {self.num_classes or 'no'} classes", "streamed": shards}
        return {**told, "originals": str(self.examples.originals)}

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
        stored, labels, places = zip(*itertools.islice(self._from(place), self.buffer))
        threads = max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        with ThreadPoolExecutor(threads) as pool:
            pictures = list(pool.map(self._convert, itertools.count(), stored))
        shape = self.shape if any(self.shape) else pictures[0].pixels.shape
        for number, picture in enumerate(pictures):
            check_shape(picture, shape, name_of(number, stored[number]))
        generator = np.random.default_rng(derive_seed(self.seed, BLOCK_ORDER, self.rank, place.block))
        shuffled = generator.permutation(self.buffer)
        known = None
        if self.num_classes is not None:
            names = self.class_names or tuple(map(str, range(self.num_classes)))
            known = checked_labels(labels, self.buffer, names)[0][shuffled]
        pixels = torch.from_numpy(np.stack([pictures[number].pixels for number in shuffled]))
        originals = Originals.of(Counter((picture.size, picture.mode) for picture in pictures), shape[1])
        images = Images(pixels, known, self.num_classes, self.class_names, originals)
        return Block(images, place, places[-1]._replace(block=place.block + 1))

    def _convert(self, number: int, stored: Any) -> Converted:
        return self.form.convert(stored, partial(name_of, number, stored))

    def _from(self, place: Place) -> Iterator[tuple[Any, int, Place]]:
        """The images of this process from a place on, without end: picture, label, and the place behind it.

        Where there are fewer shards than processes, each process reads all of them and uses every `ranks`-th image.
        """
        block, epoch, shard, offset = place
        number_of_shards = self.shards.data.num_shards
        shared = number_of_shards < self.ranks
        while True:
            seen = (shard, offset) != (0, 0)  # else every image of an epoch is ahead
            order = np.random.default_rng(derive_seed(self.seed, SHARD, epoch)).permutation(number_of_shards).tolist()
            order = order if shared else order[self.rank :: self.ranks]
            for at in range(shard, len(order)):
                for number, (stored, label) in enumerate(self.shards.read(order[at], offset), offset):
                    if self._closed:
                        raise CancelledError
                    seen = True
                    if not shared or number % self.ranks == self.rank:
                        yield stored, label, Place(block, epoch, at, number + 1)
                offset = 0
            if not seen:
                raise UserError("the stream holds no images; check its name and `dataset_split`.")
            epoch, shard = epoch + 1, 0


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
    return StreamedImages(open_shards(settings, class_conditional), settings.form, buffer, seed, rank, ranks)
