"""Metadata of a model beyond its recipe, kept as JSON beside its weights for the model card."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..errors import UserError
from ..files import read_json, write_json


def check_license(license: str | None) -> None:
    """Refuse what cannot be the identifier of a licence; whether the Hub knows it, the Hub says.

    Raises:
        UserError: other characters than those of identifiers.
    """
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license):
        near = re.sub(r"[^a-z0-9.]+", "-", license.lower()).strip("-.")
        hint = f"; try {near}" if near else ""
        raise UserError(f"`license` must be an identifier of the Hub such as cc0-1.0 or mit, got {license!r}{hint}.")


class Metadata:
    """A dataclass that is a JSON file of a fixed name in a model's folder."""

    file_name: ClassVar[str]

    def write(self, folder: Path) -> None:
        """Write the file atomically."""
        write_json(folder / self.file_name, dataclasses.asdict(self))  # type: ignore[call-overload]

    @classmethod
    def read(cls, folder: Path):
        """The metadata of a folder; entries of other versions are ignored.

        Raises:
            UserError: its file is no JSON object, or lacks an entry.
        """
        names = {item.name for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
        entries = read_json(folder / cls.file_name)
        try:
            return cls(**{name: entries[name] for name in names & entries.keys()})
        except TypeError as error:
            lacking = str(error).partition("argument")[2].lstrip("s: ")
            raise UserError(f"{folder / cls.file_name} lacks {lacking}.") from error


@dataclass(frozen=True)
class RunMetadata(Metadata):
    """A training run after `steps` optimizer steps.

    Attributes:
        dataset, base_model: names, and whether they are on the Hub; base_model is None for a run from scratch.
        base_model_origin: the model of the Hub from which a base_model of this machine came, or None.
        images: of the data set, or None where nobody knows.
        shape: (C, H, W) of the images; classes, class_names: or None.
        batch_size: images of one optimizer step on all processes together.
        command: repeats the run; commit: of the code, where it is a checkout.
        objective: description of the user's own objective, or None for one of the recipe.
        autoencoder, latent_shape: whose latents were learned, and their (C, H, W); None for a model of pixels.
        condition: channels of the images that a model of pairs is given, or 0.
        changes: of settings, by resumes: {"step", "setting", "from", "to"} each, `step` steps having been done.
    """

    file_name: ClassVar[str] = "run.json"

    dataset: str
    dataset_on_hub: bool
    base_model: str | None
    base_model_on_hub: bool
    images: int | None
    shape: list[int]
    classes: int | None
    class_names: list[str] | None
    parameters: int
    steps: int
    batch_size: int
    images_seen: int
    train_seconds: float
    hardware: str
    version: str
    commit: str | None
    command: str
    objective: str | None = None
    autoencoder: str | None = None
    autoencoder_on_hub: bool = False
    latent_shape: list[int] | None = None
    condition: int = 0
    base_model_origin: str | None = None
    changes: list[dict[str, Any]] = dataclasses.field(default_factory=list)


@dataclass(frozen=True)
class ConversionMetadata(Metadata):
    """A converted model.

    Attributes:
        origin: what kind of model the source was; source: its name; weights: SHA-256 of the converted weights.
        shape: (C, H, W) of the images; notes: what the model's user should know.
        refit: of a network whose time embedding was refitted, the number of levels that are met and the measured
            errors, as in `conversion.time_refit.refit_from_sigma`; None for any other.
        prediction: of a diffusion model, what it predicted; None for a consistency model.
    """

    file_name: ClassVar[str] = "conversion.json"

    origin: str
    source: str
    source_on_hub: bool
    license: str | None
    shape: list[int]
    classes: int | None
    weights: str
    parameters: int
    second_sigma: float
    notes: list[str]
    version: str
    refit: dict[str, float] | None = None
    prediction: str | None = None


def origin_on_hub(folder: Path) -> str | None:
    """The model of the Hub from which that in a folder was converted or trained, or None where none is known.

    Raises:
        UserError: the metadata of the folder are damaged.
    """
    if (folder / ConversionMetadata.file_name).is_file():
        conversion = ConversionMetadata.read(folder)
        return conversion.source if conversion.source_on_hub else None
    if (folder / RunMetadata.file_name).is_file():
        run = RunMetadata.read(folder)
        return run.base_model if run.base_model_on_hub else run.base_model_origin
    return None
