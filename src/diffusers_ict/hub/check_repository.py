"""A check of a consistency repository: everything a sampler relies on, and the model card."""

import importlib.util
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from diffusers import ConsistencyModelPipeline, LDMPipeline

from ..class_names import load_class_names
from ..errors import UserError, first_line
from ..files import read_text
from ..formulas.preconditioning import DIFFUSION_SIGMA_DATA
from ..formulas.time_embedding import fast_columns
from ..loading import load_stock, variants_of
from ..names import operand, shell
from ..pipeline_consistency import ConsistencyPipeline
from ..stock_key import STOCK_KEY
from .card import PIPELINE, read_card
from .fetch import fetch_file
from .metadata import ConversionMetadata, RunMetadata

Stock: TypeAlias = ConsistencyModelPipeline | LDMPipeline
CARD_KEYS = ("license", "library_name", "pipeline_tag", "tags")
CONSTANTS = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}  # as in every published model


class Severity(Enum):
    """Nothing to mend; works, but is unusual or missing; breaks sampling. The values are what programs print."""

    OK = "ok"
    ADVICE = "advice"
    ERROR = "WRONG"


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
        topic: in a word or two; text: the result, in one sentence.
        remedy: the command that mends it, or None, with settings in backticks; words in capitals are to be filled in.
    """

    topic: str
    severity: Severity
    text: str
    remedy: str | None = None


def check_repository(repository: str) -> list[Finding]:
    """Load a repository, by path or Hub id, as stock diffusers and as this package does, and check it.

    Raises:
        UserError: there is no consistency pipeline to be loaded.
    """
    stock = load_stock(repository)
    stock.set_progress_bar_config(disable=True)
    _, unlabelled = load_class_names(repository, {})
    network = [_weights(stock), _time(stock), _channels(stock, unlabelled), _constants(stock)]
    return [*network, *_variants(repository), _levels(stock, repository), _equality(stock), _card(repository)]


def is_publishable(repository: str) -> bool:
    """Whether a folder or a Hub repository holds what the model card of a run or of a conversion is made from."""
    return any(fetch_file(repository, kind.file_name) is not None for kind in (RunMetadata, ConversionMetadata))


def _ok_unless(wrong: object, topic: str, text: str) -> Finding:
    return Finding(topic, Severity.ERROR if wrong else Severity.OK, text)


def _weights(stock: Stock) -> Finding:
    networks = (stock.unet, stock.vqvae) if isinstance(stock, LDMPipeline) else (stock.unet,)
    bad = [name for network in networks for name, p in network.named_parameters() if not p.isfinite().all()]
    good = f"{stock.unet.num_parameters() / 1e6:.2f} M parameters, all of them finite."
    text = f"{len(bad)} of its tensors hold values that are not numbers, {bad[0]} first." if bad else good
    return _ok_unless(bad, "weights", text)


def _time(stock: Stock) -> Finding:
    try:
        fast = fast_columns(stock.unet)
    except ValueError as error:
        return Finding("time embedding", Severity.ERROR, str(error))
    uses = (stock.unet.time_embedding.linear_1.weight[:, fast] != 0).any()
    sort = "sensitive, as in models trained without iCT's remedy" if uses else "insensitive, as iCT recommends"
    return Finding("time embedding", Severity.OK, f"positional, {sort}.")


def _channels(stock: Stock, unlabelled: bool) -> Finding:
    config = stock.unet.config
    classes = f"{config.num_class_embeds} classes" if config.num_class_embeds else "no classes"
    classes += ", the last of which stands for none" * unlabelled
    fault, given = "", config.in_channels - config.out_channels
    of_image = f" ({given} of a given image, which pipeline.py takes)" if given > 0 else ""
    channels = f"{config.in_channels} channel{'s' * (config.in_channels > 1)} in{of_image}, {config.out_channels} out"
    text = f"{channels}, size {config.sample_size}, {classes}"
    if given < 0:
        fault = ": there must not be more output channels than input channels"
    elif config.sample_size is None:
        fault = ": without sample_size in its config stock diffusers cannot sample"
    elif isinstance(stock, LDMPipeline):
        text, fault = f"{text}, of latents", _fault_of_latents(stock)
    elif (stock.scheduler.config.get(STOCK_KEY) or {}).get("residual_scale") is not None:
        text, fault = f"{text}, of residuals", _fault_of_residuals(stock)
    return _ok_unless(fault, "images", f"{text}{fault}.")


def _fault_of_latents(stock: LDMPipeline) -> str:
    """What keeps latents from being decoded as they were learned, or nothing."""
    channels = stock.vqvae.config.get("latent_channels")
    if channels != stock.unet.config.out_channels:
        return f": its autoencoder decodes {channels} channels"
    return ": clip_denoised would cut them at 1" if stock.scheduler.config.clip_denoised else ""


def _fault_of_residuals(stock: Stock) -> str:
    """What keeps residuals from becoming images as they were learned, or nothing."""
    if stock.unet.config.in_channels == stock.unet.config.out_channels:
        return ": there is no given image that they belong to"
    return ": clip_denoised would cut them at 1" if stock.scheduler.config.clip_denoised else ""


def _constants(stock: Stock) -> Finding:
    """The constants of the preconditioning."""
    odd = {name: stock.scheduler.config[name] for name in CONSTANTS if stock.scheduler.config[name] != CONSTANTS[name]}
    severity, text = Severity.OK, "sigma_min 0.002, sigma_max 80 and sigma_data 0.5, as usual."
    if odd == {"sigma_data": DIFFUSION_SIGMA_DATA}:
        text = "sigma_min 0.002 and sigma_max 80, as usual, and sigma_data 1, as of a model that began as a DDPM."
    elif odd:
        severity, text = Severity.ADVICE, f"unusual constants, right only if the model was trained with them: {odd}."
    return Finding("constants", severity, text)


def _variants(repository: str) -> list[Finding]:
    """Advice where there are no weights but variants, which stock diffusers has to be asked for."""
    with suppress(Exception):  # the Hub's classes: then nobody can tell
        if (first := next(iter(variants_of(repository)), None)) is not None:
            text = f"its weights are of the variant {first} only, which stock diffusers loads with variant={first!r}."
            return [Finding("variant", Severity.ADVICE, text, _command("convert", repository, "NEW_FOLDER"))]
    return []


def _levels(stock: Stock, repository: str) -> Finding:
    """The noise level that two steps of stock diffusers go through."""
    stock.scheduler.set_timesteps(2)
    second = stock.scheduler.sigmas[1].item()
    wanted = (stock.scheduler.config.get(STOCK_KEY) or {}).get("intermediate_sigmas")
    if wanted and abs(second - wanted[0]) > 1e-4:
        text = f"two steps go through {second:.4g} in stock, and {wanted[0]} was meant."
        return Finding("second sigma", Severity.ERROR, text, _command("convert", repository, "NEW_FOLDER"))
    if not wanted and second > 2:
        text = f"two steps go through {second:.4g}, the default of stock; iCT uses 0.821, or 1.526 at 64x64."
        remedy = _command("evaluate", repository, "`tune_sigmas` 2 `train_data_dir` IMAGES")
        return Finding("second sigma", Severity.ADVICE, text, remedy)
    return Finding("second sigma", Severity.OK, f"two steps go through {second:.4g}.")


def _equality(stock: Stock) -> Finding:
    ours = ConsistencyPipeline(stock.unet, stock.scheduler, getattr(stock, "vqvae", None))
    ours.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {"output_type": "np", "return_dict": False}
    if given := ours.condition_channels:  # by the code that is published beside them, not by that of the repository
        stock = _published_pipeline()(stock.unet, stock.scheduler)
        stock.set_progress_bar_config(disable=True)
        options["image"] = torch.rand(1, given, *ours._image_size(), generator=torch.Generator().manual_seed(0))
    if stock.unet.config.num_class_embeds:
        if isinstance(stock, LDMPipeline):
            text = "stock LDMPipeline takes no classes; pipeline.py of the repository draws them with diffusers alone."
            return Finding("sampling", Severity.OK, text)
        options["class_labels"] = 0
    worst = 0.0
    if not isinstance(stock.unet.config.sample_size, int):
        text = "stock diffusers draws square images only: others come from diffusers-ict, or from the file pipeline.py."
        return Finding("sampling", Severity.ADVICE, text)
    for steps in (1, 2):
        images = []  # [1, H, W, C] in [0, 1]
        for pipeline in (stock, ours):
            try:
                with torch.random.fork_rng([]):
                    torch.manual_seed(0)  # LDMPipeline draws the noise of its second step from nowhere else
                    images.append(pipeline(1, num_inference_steps=steps, **options)[0])
            except Exception as error:  # a broken model may raise anything
                return Finding("sampling", Severity.ERROR, f"{steps}-step sampling fails: {first_line(error)}")
        if not np.isfinite(images).all():
            return Finding("sampling", Severity.ERROR, f"{steps}-step images are not numbers.")
        worst = max(worst, float(np.abs(images[0] - images[1]).max()))
    what = f"images that differ by up to {worst:.3g}, where 1 is white," if worst else "the same images"
    text = f"stock diffusers and diffusers-ict draw {what} with one and two steps."
    return _ok_unless(worst, "sampling", text)


def _published_pipeline() -> type[ConsistencyModelPipeline]:
    """The class of the file pipeline.py that is written into repositories."""
    spec = importlib.util.spec_from_file_location("diffusers_ict_published_pipeline", str(PIPELINE))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ConsistencySigmasPipeline


def _card(repository: str) -> Finding:
    path = fetch_file(repository, "README.md")
    try:
        card = None if path is None else read_card(read_text(path, "README.md"))
    except UserError as error:
        return Finding("card", Severity.ADVICE, f"its model card cannot be read: {error}")
    known = {} if card is None else card.data.to_dict()
    missing = [key for key in CARD_KEYS if not known.get(key)]
    license = " `license` LICENCE" if "license" in missing else ""
    if card is not None and "from_pretrained" not in card.text:
        missing.append("a usage example")
    if not missing:
        return Finding("card", Severity.OK, "its model card has licence, library, task, tags and a usage example.")
    text = "there is no README.md." if card is None else f"its model card lacks {', '.join(missing)}."
    name = "USER/NAME" if Path(repository).is_dir() else repository
    publish = ("publish", repository, f"`hub_model_id` {name}{license}")
    convert = ("convert", repository, f"NEW_FOLDER{license}")
    return Finding("card", Severity.ADVICE, text, _command(*(publish if is_publishable(repository) else convert)))


def _command(program: str, repository: str, words: str) -> str:
    """A command line of this package about a repository, of which all programs but `convert` need a copy on disk."""
    if program == "convert" or Path(repository).is_dir():
        return f"diffusers-ict {program} {shell([operand(repository)])} {words}"
    model = repository.split("/")[-1]
    return f"hf download {shell([repository])} --local-dir {model} && diffusers-ict {program} {model} {words}"
