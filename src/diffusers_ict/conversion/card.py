"""The model card of a converted model: where it comes from, and how it is used."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ..evaluation.extractors import hash_of
from ..training.card import shape_in_words
from ..version import __version__
from .pipelines import Converted


def write_card(folder: Path, template: Path, converted: Converted, source: str, license: str | None = None) -> None:
    """Write `folder/README.md`.

    Args:
        template: model_cards/converted.md or one with the same names.
        source: file or repository; of a path the last part is told.
        license: of the weights, an identifier of the Hub.
    """
    unet, scheduler = converted.pipeline.unet, converted.pipeline.scheduler
    local = Path(source).exists()
    size, classes = unet.config.sample_size, unet.config.num_class_embeds
    data = ModelCardData(
        license=license,
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        tags=["diffusers", "consistency-models", "diffusers-ict", "image-generation"],
        base_model=None if local else source,
    )
    name = folder.resolve().name
    card = ModelCard.from_template(
        data,
        template_path=str(template),
        model_name=name,
        repo_id=name,
        sort="A class-conditional" if classes else "An unconditional",
        shape=shape_in_words(unet.config.in_channels, size, size),
        origin=converted.origin,
        version=__version__,
        source=Path(source).name if local else source,
        weights=hash_of(unet),
        parameters=f"{sum(p.numel() for p in unet.parameters()) / 1e6:.2f} M",
        second_sigma=float(f"{scheduler.sampling_sigmas(2)[1]:.5g}"),
        notes=converted.notes,
        label_argument=", class_labels=0" if classes else "",
    )
    (folder / "README.md").write_text(card.content)
