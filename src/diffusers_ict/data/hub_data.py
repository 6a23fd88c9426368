"""Data sets read through the `datasets` library: Hub names, folders of `save_to_disk`, parquet and arrow files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load

from ..errors import UserError, first_line
from .cache import state_of_files
from .folder import holds_images
from .source import Source

ROWS = 64  # read at once, because files may be large
SHARDS = 64  # of a stream of what was saved on disk
FILES = {".parquet": "parquet", ".arrow": "arrow"}


def check_hub_settings(
    name: str | None,
    folder: str | None,
    config_name: str | None,
    split: str,
    image_column: str | None,
    label_column: str | None,
) -> None:
    """Refuse settings that choose among parts which the data has not.

    A local copy of a Hub data set has configurations and splits, and what was saved by `save_to_disk` may have splits.
    Folders of images have no columns.

    Raises:
        UserError: naming the setting.
    """
    path = Path(folder or name or "")
    if folder is not None:
        what = "a folder of images"
    elif path.suffix in (*FILES, ".npz"):
        what = f"a {path.suffix} file"
    elif _is_saved(path):
        what = "a data set saved on disk"
    else:
        return
    if config_name is not None:
        raise UserError(
            f"`dataset_config_name` chooses a configuration of a Hub data set, and {what} has none, got {config_name}: "
            "leave it out."
        )
    if split != "train" and (folder is not None or not _is_saved(path)):
        raise UserError(
            f"`dataset_split` chooses a split of a Hub data set, and {what} has none, got {split}: name the folder or "
            "file of that split itself."
        )
    for setting, column in (("image_column", image_column), ("label_column", label_column)):
        if folder is not None and column is not None:
            raise UserError(f"`{setting}` names a column or an array, and {what} has none, got {column}: leave it out.")


def _is_saved(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return (path / "state.json").exists() or (path / "dataset_dict.json").exists()


def read_dataset(
    name: str,
    config_name: str | None,
    split: str,
    image_column: str | None,
    label_column: str | None,
    with_labels: bool,
) -> Source:
    """The images of a Hub data set or a file, and their labels where they are wanted.

    Args:
        name: data set on the Hub, folder of `save_to_disk`, or file.

    Raises:
        UserError: the data set cannot be opened, or a column is missing, ambiguous or of the wrong kind.
    """
    import datasets

    data = _open(datasets, name, config_name, split, streaming=False)
    original = data._fingerprint
    column = image_column_of(datasets, data.features, image_column)
    # Undecoded, so that a broken file can be named when its turn comes.
    data = data.cast_column(column, datasets.Image(decode=False))
    labels, names = _labels(datasets, data, label_column) if with_labels else (None, None)

    def where(index: int) -> str:
        return (data[index][column] or {}).get("path") or f"number {index}"

    def identity() -> list[Any]:
        path = Path(name)
        known = [str(path.resolve()), _state(data, column, path)] if path.exists() else [name, original]
        return ["datasets", *known, config_name, split, column]

    return Source(_pictures(data, column), len(data), labels, names, where, identity)


def _pictures(data: Any, column: str) -> Iterator[bytes | Path]:
    """The stored files: their content, or where there is none, their paths; neither is there for an empty row."""
    for table in data.select_columns([column]).with_format("arrow").iter(ROWS):
        for part in table.column(column).chunks:
            stored = _fields(part)
            for content, path in zip(stored["bytes"], stored["path"]):
                held, name = content.as_py(), path.as_py()
                yield Path(name) if name and not held else held or b""


def _fields(stored: Any) -> dict[str, Any]:
    """The columns "bytes" and "path" of an image column of Arrow."""
    return {field.name: values for field, values in zip(stored.type, stored.flatten())}


def _state(data: Any, column: str, path: Path) -> str:
    """What changes when local files of the data change: the files of `path`, and those that the rows name."""
    fields = _fields(data.data.column(column))
    absent = fields["bytes"].is_null().to_pylist() if fields["bytes"].null_count else []
    named = [Path(name) for name, missing in zip(fields["path"].to_pylist(), absent) if missing and name]
    own: list[Path] = []
    if len(named) < len(data):
        own = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return state_of_files(file.absolute() for file in [*own, *named])


def open_stream(name: str, config_name: str | None, split: str) -> Any:
    """A data set of the Hub, a folder or a file as an `IterableDataset` that knows its columns.

    Raises:
        UserError: it cannot be opened.
    """
    import datasets

    data = _open(datasets, name, config_name, split, streaming=True)
    return data if data.features is not None else data._resolve_features()


def _open(datasets: Any, name: str, config_name: str | None, split: str, streaming: bool) -> Any:
    path = Path(name)
    try:
        if path.suffix in FILES:
            if not path.is_file():
                raise UserError(f"there is no file {name}.")
            return datasets.load_dataset(FILES[path.suffix], data_files=str(path), split="train", streaming=streaming)
        if _is_saved(path):
            saved = _split_of(datasets, datasets.load_from_disk(name), name, split)
            return saved.to_iterable_dataset(num_shards=min(len(saved), SHARDS)) if streaming else saved
        if path.is_dir() and not _is_described(path) and holds_images(path):
            # The library would guess splits from names of folders and files, and leave out the other images.
            raise UserError(f"a folder of images is given as `train_data_dir`, got `dataset_name` {name}.")
        return datasets.load_dataset(name, config_name, split=split, streaming=streaming)
    except UserError:
        raise
    except Exception as error:  # the library raises its own kinds, and OSError, ValueError, KeyError
        raise UserError(f"the data set {name} cannot be opened: {first_line(error)}") from error


def _is_described(folder: Path) -> bool:
    """Whether a folder is a data set of the Hub: its README.md names the files of its splits."""
    try:
        metadata = metadata_load(folder / "README.md") or {}
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return not metadata.keys().isdisjoint(("configs", "dataset_info"))


def _split_of(datasets: Any, saved: Any, name: str, split: str) -> Any:
    """The wanted split of what was saved, which may be one split alone."""
    if not isinstance(saved, datasets.DatasetDict):
        if split not in ("train", str(saved.split)):
            raise UserError(f"`dataset_split` must be left out, because {name} has no splits, got {split}.")
        return saved
    if split not in saved:
        raise UserError(f"`dataset_split` must be one of {', '.join(saved)} for {name}, got {split}.")
    return saved[split]


def image_column_of(datasets: Any, features: Any, wanted: str | None) -> str:
    """The wanted column, or the only one that holds images.

    Raises:
        UserError: it is missing, ambiguous or of the wrong kind.
    """
    if wanted is not None:
        if wanted not in features:
            raise UserError(f"the data has no column {wanted!r} for `image_column`; it has {', '.join(features)}.")
        feature = features[wanted]
        if not (isinstance(feature, datasets.Image) or _holds_bytes(feature) or _holds_paths(feature)):
            raise UserError(
                f"`image_column` must name a column of images, encoded files as bytes, or paths of files, and {wanted} "
                f"holds {getattr(feature, 'dtype', None) or type(feature).__name__}."
            )
        return wanted
    found = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    # Parquet files written by other programs hold images as plain bytes, or as {"bytes", "path"}.
    found = found or [name for name, feature in features.items() if _holds_bytes(feature)]
    if len(found) != 1:
        raise UserError(
            f"the data must have one column of images, and has {len(found)} ({', '.join(features)}); name it with "
            "`image_column`."
        )
    return found[0]


def _holds_bytes(feature: Any) -> bool:
    if isinstance(feature, dict):
        return _holds_bytes(feature.get("bytes"))
    return getattr(feature, "dtype", None) in ("binary", "large_binary")


def _holds_paths(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _labels(datasets: Any, data: Any, wanted: str | None) -> tuple[list | None, tuple[str, ...] | None]:
    """(labels, class names): the wanted column, the only ClassLabel, or a column of integers called label(s)."""
    features = data.features
    if wanted is not None and wanted not in features:
        raise UserError(f"the data has no column {wanted!r} for `label_column`; it has {', '.join(features)}.")
    found = [wanted] if wanted else [n for n, f in features.items() if isinstance(f, datasets.ClassLabel)]
    found = found or [n for n in ("label", "labels", "class") if n in features]
    if not found:
        return None, None
    if len(found) > 1:
        raise UserError(f"several columns could be labels ({', '.join(found)}); name one with `label_column`.")
    feature = features[found[0]]
    names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    return list(data[found[0]]), names
