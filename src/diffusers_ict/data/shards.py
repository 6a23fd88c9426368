"""Data sets that are read part by part: streams of the Hub, folders of parquet files, folders of .npz parts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..errors import UserError, first_line
from . import hub_data
from .labels import checked_labels
from .npz import read_npz
from .settings import DataSettings

Item = tuple[bytes | Path | np.ndarray, int | None]


@dataclass(frozen=True)
class Shards:
    """Parts of a data set, each of which can be read from any of its images on.

    Attributes:
        number: of shards.
        read: (shard, images to skip) -> (picture, label or None) one after another.
        num_classes, class_names: or None.
        count: images of all shards together, or None where nobody knows before they are read.
        identity: what the images are, as JSON types.
    """

    number: int
    read: Callable[[int, int], Iterator[Item]]
    num_classes: int | None
    class_names: tuple[str, ...] | None
    count: int | None
    identity: Any


def open_shards(settings: DataSettings, with_labels: bool) -> Shards:
    """The shards of what `dataset_name` names: a Hub data set, a folder of .parquet files, or one of .npz files.

    Raises:
        UserError: the data cannot be opened or streamed, or a column is missing, ambiguous or of the wrong kind.
    """
    folder = Path(cast(str, settings.dataset_name))
    parts = sorted(folder.glob("*.npz")) if folder.is_dir() else []
    return _npz_shards(parts, settings, with_labels) if parts else _dataset_shards(settings, with_labels)


def _npz_shards(parts: list[Path], settings: DataSettings, with_labels: bool) -> Shards:
    """Each file is a shard; arrays that are not compressed are mapped into memory."""
    columns = settings.image_column, settings.label_column
    sources = [read_npz(path, *columns, with_labels, mapped=True) for path in parts]
    classes = None
    if with_labels:
        classes = 0
        for path, source in zip(parts, sources):
            if source.labels is None:
                raise UserError(f"`class_conditional` needs labels, and {path} holds none: name `label_column`.")
            classes = max(classes, checked_labels(source.labels, source.count, None)[1])

    def read(shard: int, skipped: int) -> Iterator[Item]:
        source = sources[shard]
        pictures = cast(np.ndarray, source.pictures)
        for index in range(skipped, source.count):
            yield pictures[index], None if source.labels is None else int(source.labels[index])

    identity = ["npz parts", _names_and_sizes(parts), *columns]
    return Shards(len(parts), read, classes, None, sum(source.count for source in sources), identity)


def _names_and_sizes(files: list[Path]) -> list[list[Any]]:
    """What tells files from others wherever they lie: a run may go on with a copy of its data on another machine."""
    return [[path.name, path.stat().st_size] for path in files]


def _dataset_shards(settings: DataSettings, with_labels: bool) -> Shards:
    import datasets

    name, split = cast(str, settings.dataset_name), settings.dataset_split
    data = hub_data.open_stream(name, settings.dataset_config_name, split)
    column = hub_data.image_column_of(datasets, data.features, settings.image_column)
    data = data.cast_column(column, datasets.Image(decode=False))
    label, names = None, None
    if with_labels:
        label, names = _class_column(data.features, settings.label_column)
    kept = [column] if label is None else [column, label]
    data = data.select_columns(kept)

    def read(shard: int, skipped: int) -> Iterator[Item]:
        try:
            for row in data.shard(data.num_shards, shard).skip(skipped):
                stored = row[column] or {}
                content = stored.get("bytes")
                picture = content or (Path(stored["path"]) if stored.get("path") else b"")
                yield picture, None if label is None else row[label]
        except UserError:
            raise
        except Exception as error:  # the library's, the Hub's and the transport's kinds
            raise UserError(
                f"the stream of {name} cannot be read ({first_line(error)}): go on later with `resume_from_checkpoint` "
                "latest."
            ) from error

    known = (data.info.splits or {}).get(split)
    count = getattr(known, "num_examples", None) or None
    own = sorted(path for path in Path(name).rglob("*") if path.is_file()) if Path(name).is_dir() else [Path(name)]
    which = _names_and_sizes(own) if Path(name).exists() else [name, settings.dataset_config_name]
    identity = ["stream", which, split, column, label, data.num_shards, count]
    classes = None if names is None else len(names)
    return Shards(data.num_shards, read, classes, names, count, identity)


def _class_column(features: Any, wanted: str | None) -> tuple[str, tuple[str, ...]]:
    """(the column of the classes, their names): only a `ClassLabel` says how many there are before all is read."""
    import datasets

    found = [n for n, feature in features.items() if isinstance(feature, datasets.ClassLabel) and wanted in (None, n)]
    if len(found) != 1:
        raise UserError(
            f"a stream must have one column of class labels (`ClassLabel`), and {len(found)} of its columns "
            f"({', '.join(features)}) suit `label_column`: name one, or leave `streaming` out."
        )
    return found[0], tuple(features[found[0]].names)
