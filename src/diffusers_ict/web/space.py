"""The files of a static Space: the page of a model, and the README.md that tells the Hub what it is."""

from pathlib import Path

from huggingface_hub import SpaceCard, SpaceCardData

from ..files import write_text
from ..hub.card import TEMPLATES, merge, sealed
from .build import build_page

# With these the page is isolated, so that WebAssembly may use threads.
HEADERS = {
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "cross-origin",
}


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
    card = sealed(SpaceCard.from_template(data, template_str=template, title=title, repo_id=repo_id).content)
    write_text(folder / "README.md", merge(card, card))  # in the form that the next push gives it
