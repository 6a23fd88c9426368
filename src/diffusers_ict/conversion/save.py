"""Saving a converted model with its metadata and its model card."""

from pathlib import Path

from ..errors import UserError
from ..files import public_name
from ..hub.card import write_card
from ..hub.metadata import ConversionMetadata
from ..hub.provenance import weights_hash
from ..version import __version__
from .pipelines import Converted


def save_converted(converted: Converted, folder: Path, source: str, license: str | None = None) -> None:
    """Save the pipeline, conversion.json and README.md.

    Args:
        folder: one that does not exist yet.
        source: file or repository that was converted; only its name is recorded.
        license: of the weights, an identifier of the Hub.

    Raises:
        UserError: the folder exists.
    """
    if folder.exists():
        raise UserError(f"{folder} exists; name a folder that does not.")
    unet, scheduler = converted.pipeline.unet, converted.pipeline.scheduler
    size = unet.config.sample_size
    name, on_hub = public_name(source)
    converted.pipeline.save_pretrained(folder)
    ConversionMetadata(
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
    ).write(folder)
    write_card(folder)
