"""The page of a model, a folder of static files for the server of this machine, and its Space on the Hub."""

import shutil
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import SpaceCard, SpaceCardData

from ..errors import UserError
from ..files import public_name, read_json, read_text, staged_folder, write_json, write_text
from ..hub.card import TEMPLATES, merge, read_card, sealed
from ..hub.fetch import fetch_file
from ..hub.metadata import RunMetadata
from ..hub.provenance import code_address
from ..hub.run_files import read_recipe
from ..loading import load_consistency
from ..names import LONGEST, markdown, visible
from ..objectives import objective_class
from ..pipeline_consistency import ConsistencyPipeline
from .onnx import check_pixels, make_onnx
from .runtime import runtime_archive, unpack_runtime
from .server import files_of

PAGE = resources.files(__package__) / "page"
CHECK = "check.bin"
MOST_STEPS = 10  # that the page offers
# With these the page is isolated, so that WebAssembly may use threads.
HEADERS = {
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "cross-origin",
}


@dataclass(frozen=True)
class Page:
    """A page that was written.

    Attributes:
        files: their names within its folder.
        difference: the largest one of the ONNX file from the pipeline that was seen, for images in [-1, 1].
    """

    files: frozenset[str]
    difference: float


def build_page(
    model: str,
    folder: Path,
    *,
    dtype: str = "fp32",
    title: str | None = None,
    hub_model_id: str | None = None,
    license: str | None = None,
    webgpu: bool = False,
) -> Page:
    """Write the page of a model: the files of `page/`, model.onnx, model.json, check.bin and onnxruntime-web.

    Args:
        model: folder or Hub id of a consistency pipeline.
        folder: may exist; files of the same names are replaced. Nothing is written unless all can be.
        dtype: how the ONNX file stores weights, "fp32" or "fp16".
        title: what the page is called, by default the name of the model.
        hub_model_id: the repository that the page links to, by default the model where it is one of the Hub.
        license: of the weights, by default that of the model's card.
        webgpu: also the files that let visitors choose WebGPU.

    Returns:
        the names of the files, and how well the ONNX file agrees with the pipeline.

    Raises:
        UserError: there is no such model, a link leads out of the folder, the page cannot show the model's images or
            draw as its scheduler does, onnxruntime-web cannot be had, or the ONNX file disagrees with the pipeline.
    """
    if not (folder / "runtime").resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{folder / 'runtime'} must not be a link that leads out of the page's folder: remove it.")
    pipeline = load_consistency(model)
    check_pixels(pipeline, "a page")
    label = None if pipeline.num_classes is None else 0  # of the stored output
    name, on_hub = public_name(model)
    title = visible(title or name.split("/")[-1], LONGEST)
    description = {
        "title": title,
        "repository": hub_model_id or (model if on_hub else None),
        **_images(pipeline),
        **_levels(pipeline),
        "license": license or _license_of(model),
        "method": _method_of(model),
        "weights": dtype,
        "webgpu": webgpu,
        "check": {"file": CHECK, "sigma": pipeline.scheduler.config.sigma_max, "class_label": label},
    }
    archive = runtime_archive()
    exported = make_onnx(pipeline, dtype, title)
    with staged_folder(folder, last="index.html") as staged:
        with resources.as_file(PAGE) as page:
            shutil.copytree(page, staged, dirs_exist_ok=True)
        (staged / "runtime").mkdir(exist_ok=True)
        unpack_runtime(archive, staged / "runtime", webgpu)
        (staged / "model.onnx").write_bytes(exported.content)
        (staged / CHECK).write_bytes(_check(pipeline, label, description["resolution"]))
        write_json(staged / "model.json", description)
        files = files_of(staged)
    return Page(files, exported.difference)


def make_space(model: Path, folder: Path, license: str | None, *, repo_id: str) -> None:
    """Write the page of a model and its README.md into an empty folder, as `publish` wants it.

    Args:
        license: of the weights; repo_id: where the model is published.

    Raises:
        UserError: as `build_page`.
    """
    title = repo_id.split("/")[-1]
    build_page(str(model), folder, title=title, hub_model_id=repo_id, license=license)
    data = SpaceCardData(
        title=title,
        emoji="🎲",
        colorFrom="indigo",
        colorTo="pink",
        sdk="static",
        license=license,
        models=[repo_id],
        tags=["consistency-models", "diffusers-ict", "image-generation", "onnx"],
        custom_headers=HEADERS,
    )
    template = (TEMPLATES / "space.md").read_text("utf-8")
    names = {"title": title, "repo_id": repo_id, "markdown": markdown, "code_address": code_address()}
    card = sealed(SpaceCard.from_template(data, template_str=template, **names).content)
    write_text(folder / "README.md", merge(card, card))  # in the form that the next push gives it


def _images(pipeline: ConsistencyPipeline) -> dict[str, Any]:
    """What the images of a model are: grey, or of three colours, with alpha or without, and square; or UserError."""
    config, names = pipeline.unet.config, pipeline.id2label
    if pipeline.normalization is not None:
        raise UserError("the page shows pictures, and the model draws arrays of numbers; sample it from Python.")
    sides = {config.sample_size} if isinstance(config.sample_size, int) else set(config.sample_size or ())
    if pipeline.condition_channels:
        raise UserError("the page draws from noise alone, and this model is given images: use another model.")
    if len(sides) != 1 or config.in_channels not in (1, 3, 4):
        raise UserError(
            f"the page shows square images of 1, 3 or 4 channels, and the model has {config.in_channels} channels and "
            f"the sample_size {config.sample_size}; use another model."
        )
    classes = pipeline.num_classes
    return {
        "resolution": sides.pop(),
        "channels": config.in_channels,
        "num_classes": classes,
        "class_names": [visible(names.get(i, str(i)), LONGEST) for i in range(classes)] if names and classes else None,
    }


def _levels(pipeline: ConsistencyPipeline) -> dict[str, Any]:
    """The range of noise levels, and the pipeline's levels for each number of steps, from one on.

    UserError where the scheduler does not clip or add noise as the page does.
    """
    scheduler, config = pipeline.scheduler, pipeline.scheduler.config
    if not config.clip_denoised or config.s_noise != 1:
        raise UserError(
            "the page draws with clip_denoised true and s_noise 1, and the model's scheduler has clip_denoised "
            f"{str(config.clip_denoised).lower()} and s_noise {config.s_noise:g}; change its config."
        )
    known = {name: config[name] for name in ("sigma_min", "sigma_max", "rho")}
    steps = range(1, min(MOST_STEPS, config.num_train_timesteps) + 1)
    return {**known, "sampling_sigmas": [scheduler.sampling_sigmas(count).tolist() for count in steps]}


def _license_of(model: str) -> str | None:
    """The licence of a model's card, or None where nothing tells it."""
    try:
        card = fetch_file(model, "README.md")
        return None if card is None else read_card(read_text(card)).data.license
    except UserError:  # the Hub does not answer, or people broke the card
        return None


def _method_of(model: str) -> dict[str, str | None]:
    """The name and the paper of the method of a model's run, or those of consistency models where nothing tells."""
    try:
        recipe, run = (fetch_file(model, name) for name in ("recipe.yaml", RunMetadata.file_name))
        if recipe is not None and run is not None and read_json(run).get("objective") is None:
            method = objective_class(read_recipe(recipe.parent)["loss"])
            return {"name": method.method, "paper": method.paper}
    except (KeyError, TypeError, UserError):  # as in `_license_of`; a recipe of a later version
        pass
    return {"name": "Consistency Models", "paper": objective_class("ct").paper}


def _check(pipeline: ConsistencyPipeline, label: int | None, side: int) -> bytes:
    """An input x at sigma_max and the pipeline's image of it, in [-1, 1]: float32, little-endian, each [C, H, W]."""
    shape = (1, pipeline.unet.config.in_channels, side, side)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    image = pipeline(1, label, latents=noise, output_type="latent", return_dict=False)[0].clamp(-1, 1)
    x = noise * pipeline.scheduler.init_noise_sigma
    return b"".join(part.numpy().astype("<f4").tobytes() for part in (x, image))
