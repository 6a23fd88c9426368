"""Saving a converted model with its metadata and its model card."""

from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import SafetensorError

from ..errors import UserError, first_line
from ..files import public_name
from ..hashes import weights_hash
from ..hub.card import write_card
from ..hub.metadata import ConversionMetadata
from ..version import __version__
from .checkpoint import shown
from .pipelines import ConvertedModel


def save_converted(converted: ConvertedModel, folder: Path, source: str, license: str | None = None) -> None:
    """Save the pipeline, conversion.json and README.md. The folder gets its name when it is complete.

    Args:
        folder: one that does not exist yet.
        source: file or repository that was converted; only its name is recorded.
        license: of the weights, an identifier of the Hub.

    Raises:
        UserError: the folder exists, or cannot be written, or the model is one of pairs.
    """
    check_new(folder)
    if converted.pipeline.condition_channels:
        raise UserError(
            "a model of pairs needs no conversion, which would lose its card: publish the folder of its run."
        )
    target = folder.resolve()
    existing = next(parent for parent in target.parents if parent.exists())
    try:
        with TemporaryDirectory(prefix=".", suffix=".tmp", dir=existing) as temporary:
            complete = Path(temporary, target.name)
            converted.pipeline.save_pretrained(complete)
            _metadata(converted, source, license).write(complete)
            write_card(complete)
            target.parent.mkdir(parents=True, exist_ok=True)
            check_new(folder)
            complete.rename(target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{shown(str(folder))} cannot be written: {reason}.") from error


def check_new(folder: Path) -> None:
    """Check that there is nothing of this name, and that a folder can have it, or raise a UserError."""
    try:
        folder.lstat()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it has a character of value 0"
        raise UserError(f"{shown(str(folder))} cannot be the name of a folder: {reason}.") from error
    raise UserError(f"{folder} exists; name a folder that does not.")


def _metadata(converted: ConvertedModel, source: str, license: str | None) -> ConversionMetadata:
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
        notes=[*converted.notes, *converted.advice],
        version=__version__,
        refit=converted.refit,
        prediction=converted.prediction,
    )
