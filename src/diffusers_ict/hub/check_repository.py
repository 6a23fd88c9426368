"""A check of a consistency repository: everything a sampler relies on, and the model card."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import numpy as np
import torch
from diffusers import ConsistencyModelPipeline
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from ..errors import UserError, first_line
from ..files import read_text
from ..formulas.preconditioning import DIFFUSION_SIGMA_DATA
from ..formulas.time_embedding import fast_columns
from ..pipeline_consistency import ConsistencyPipeline, load_stock
from ..stock_key import STOCK_KEY
from .card import read_card
from .metadata import ConversionMetadata, RunMetadata

CARD_KEYS = ("license", "library_name", "pipeline_tag", "tags")
CONSTANTS = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}  # as in every published model


class Severity(Enum):
    """How much a finding matters: nothing to mend, works but is unusual, or breaks sampling."""

    OK = "ok"
    ADVICE = "advice"
    ERROR = "error"


class Remedy(Enum):
    """The remedy of a finding."""

    LEVELS = "search or set the noise levels between steps"
    SCHEDULER = "save the scheduler again, with the settings of the finding"
    LICENSE = "state a licence and renew the card"
    CARD = "renew the card"


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
        topic: in a word or two; text: what was found, in one sentence.
        remedy: what mends it, or None; settings: of the scheduler, for `Remedy.SCHEDULER`.
    """

    topic: str
    severity: Severity
    text: str
    remedy: Remedy | None = None
    settings: dict[str, float] = field(default_factory=dict)


def check_repository(repository: str) -> list[Finding]:
    """Load a repository, by path or Hub id, as stock diffusers and as this package does, and check it.

    Raises:
        UserError: there is no consistency pipeline to be loaded.
    """
    stock = load_stock(repository)
    stock.set_progress_bar_config(disable=True)
    checks: list[Callable[..., Finding]] = [_weights, _time, _channels, _constants, _levels, _equality]
    return [*(check(stock) for check in checks), _card(repository)]


def is_publishable(repository: str) -> bool:
    """Whether a folder or a Hub repository holds what the model card of a run or of a conversion is made from."""
    return any(file_of(repository, kind.file_name) is not None for kind in (RunMetadata, ConversionMetadata))


def file_of(repository: str, name: str) -> Path | None:
    """A file of a folder or of a Hub repository, or None where it has none of that name."""
    path = Path(repository) / name
    if Path(repository).is_dir():
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(repository, name))
    except LocalEntryNotFoundError as error:  # the Hub did not answer: there may be one
        raise UserError(f"{name} of {repository} cannot be read from the Hub: {first_line(error)}") from error
    except EntryNotFoundError:
        return None


def _weights(stock: ConsistencyModelPipeline) -> Finding:
    bad = [name for name, p in stock.unet.named_parameters() if not p.isfinite().all()]
    count = sum(p.numel() for p in stock.unet.parameters())
    if bad:
        return Finding(
            "weights", Severity.ERROR, f"{len(bad)} of its tensors hold values that are not numbers, {bad[0]} first."
        )
    return Finding("weights", Severity.OK, f"{count / 1e6:.2f} M parameters, all of them finite.")


def _time(stock: ConsistencyModelPipeline) -> Finding:
    try:
        fast = fast_columns(stock.unet)
    except ValueError as error:
        return Finding("time embedding", Severity.ERROR, str(error))
    uses = (stock.unet.time_embedding.linear_1.weight[:, fast] != 0).any()
    kind = "sensitive, as in models trained without iCT's remedy" if uses else "insensitive, as iCT recommends"
    return Finding("time embedding", Severity.OK, f"positional, {kind}.")


def _channels(stock: ConsistencyModelPipeline) -> Finding:
    config = stock.unet.config
    classes = f"{config.num_class_embeds} classes" if config.num_class_embeds else "no classes"
    found = f"{config.in_channels} channels in, {config.out_channels} out, size {config.sample_size}, {classes}"
    if config.in_channels != config.out_channels:
        return Finding("images", Severity.ERROR, f"{found}: the numbers of input and output channels must be equal.")
    if config.sample_size is None:
        return Finding(
            "images", Severity.ERROR, f"{found}: without sample_size in its config stock diffusers cannot sample."
        )
    return Finding("images", Severity.OK, f"{found}.")


def _constants(stock: ConsistencyModelPipeline) -> Finding:
    """The constants of the preconditioning are the usual ones."""
    config = stock.scheduler.config
    odd = {name: config[name] for name, value in CONSTANTS.items() if config[name] != value}
    if odd == {"sigma_data": DIFFUSION_SIGMA_DATA}:
        text = "sigma_min 0.002 and sigma_max 80, as usual, and sigma_data 1, as of a model that began as a DDPM."
        return Finding("constants", Severity.OK, text)
    if odd:
        text = f"unusual constants, right only if the model was trained with them: {odd}."
        usual = {name: CONSTANTS[name] for name in odd}
        return Finding("constants", Severity.ADVICE, text, Remedy.SCHEDULER, usual)
    return Finding("constants", Severity.OK, "sigma_min 0.002, sigma_max 80 and sigma_data 0.5, as usual.")


def _levels(stock: ConsistencyModelPipeline) -> Finding:
    stock.scheduler.set_timesteps(2)
    second = stock.scheduler.sigmas[1].item()
    wanted = (stock.scheduler.config.get(STOCK_KEY) or {}).get("intermediate_sigmas")
    if wanted and abs(second - wanted[0]) > 1e-4:
        text = f"two steps go through {second:.4g} in stock, and {wanted[0]} was meant."
        return Finding("second sigma", Severity.ERROR, text, Remedy.SCHEDULER)
    if not wanted and second > 2:
        text = f"two steps go through {second:.4g}, the default of stock; iCT uses 0.821, or 1.526 at 64x64."
        return Finding("second sigma", Severity.ADVICE, text, Remedy.LEVELS)
    return Finding("second sigma", Severity.OK, f"two steps go through {second:.4g}.")


def _equality(stock: ConsistencyModelPipeline) -> Finding:
    ours = ConsistencyPipeline(stock.unet, stock.scheduler)
    ours.set_progress_bar_config(disable=True)
    labels = 0 if stock.unet.config.num_class_embeds else None
    worst = 0.0
    for steps in (1, 2):
        try:
            pair = [_draw(pipeline, labels, steps) for pipeline in (stock, ours)]
        except Exception as error:  # a broken model may raise anything
            return Finding("sampling", Severity.ERROR, f"{steps}-step sampling fails: {first_line(error)}")
        if not all(np.isfinite(images).all() for images in pair):
            return Finding("sampling", Severity.ERROR, f"{steps}-step images are not numbers.")
        worst = max(worst, float(np.abs(pair[0] - pair[1]).max()))
    text = f"stock diffusers and diffusers-ict differ by at most {worst:.3g} with one and two steps"
    return Finding("sampling", Severity.OK if worst == 0.0 else Severity.ERROR, f"{text}.")


def _draw(pipeline: ConsistencyModelPipeline, labels: int | None, steps: int) -> np.ndarray:
    """One image, [1, H, W, C] in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    return pipeline(1, labels, steps, generator=generator, output_type="np", return_dict=False)[0]


def _card(repository: str) -> Finding:
    path = file_of(repository, "README.md")
    if path is None:
        return Finding("card", Severity.ADVICE, "there is no README.md.", Remedy.LICENSE)
    try:
        card = read_card(read_text(path, "README.md"))
    except UserError as error:
        return Finding("card", Severity.ADVICE, f"its model card cannot be read: {error}")
    known = card.data.to_dict()
    missing = [key for key in CARD_KEYS if not known.get(key)]
    if "from_pretrained" not in card.text:
        missing.append("a usage example")
    if missing:
        remedy = Remedy.LICENSE if "license" in missing else Remedy.CARD
        return Finding("card", Severity.ADVICE, f"its model card lacks {', '.join(missing)}.", remedy)
    return Finding("card", Severity.OK, "its model card has licence, library, task, tags and a usage example.")
