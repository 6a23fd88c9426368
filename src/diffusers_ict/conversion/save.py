"""Saving a converted model with its metadata and its model card."""

import dataclasses
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..errors import UserError, first_line
from ..files import public_name
from ..hub.card import write_card
from ..hub.metadata import ConversionMetadata
from ..hub.provenance import weights_hash
from ..version import __version__
from .pipelines import Converted
from .tensors import shown


def save_converted(converted: Converted, folder: Path, source: str, license: str | None = None) -> None:
    """Save the pipeline, conversion.json and README.md. The folder is written atomically.

    Args:
        folder: one that does not exist yet.
        source: file or repository that was converted; only its name is recorded.
        license: of the weights, an identifier of the Hub.

    Raises:
        UserError: the folder exists, or cannot be written.
    """
    with _new_folder(folder) as temporary:
        converted.pipeline.save_pretrained(temporary)
        _metadata(converted, source, license).write(temporary)
        write_card(temporary, repo_id=folder.resolve().name)


def check_new(folder: Path) -> None:
    """Check that a folder can be made under this name.

    Raises:
        UserError: there is something of this name, or there cannot be.
    """
    try:
        folder.lstat()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it has a character of value 0"
        raise UserError(f"{shown(str(folder))} cannot be the name of a folder: {reason}.") from error
    raise UserError(f"{folder} exists; name a folder that does not.")


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, which gets its name when the block ends without an error."""
    check_new(folder)
    missing = [parent for parent in folder.parents if not parent.exists()]  # deepest first
    temporary = folder.with_name(f".{folder.name[:40]}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        check_new(folder)
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{shown(str(folder))} cannot be written: {reason}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in missing:  # those that were made for nothing
            if parent.exists() and not any(parent.iterdir()):
                parent.rmdir()


def _metadata(converted: Converted, source: str, license: str | None) -> ConversionMetadata:
    unet, scheduler = converted.pipeline.unet, converted.pipeline.scheduler
    size = unet.config.sample_size
    name, on_hub = public_name(source)
    return ConversionMetadata(
        origin=converted.origin,
        source=name,
        source_on_hub=on_hub,
        license=license,
        shape=[unet.config.in_channels, *(size if isinstance(size, (list, tuple)) else (size, size))],
        classes=unet.config.num_class_embeds,
        weights=weights_hash(unet),
        parameters=sum(p.numel() for p in unet.parameters()),
        second_sigma=float(f"{scheduler.sampling_sigmas(2)[1]:.5g}"),
        notes=list(converted.notes),
        version=__version__,
        refit=dataclasses.asdict(converted.refit) if converted.refit else None,
        prediction=converted.prediction,
    )
