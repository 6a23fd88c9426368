"""conversion.json: the facts of a converted model, for its model card."""

import json
from pathlib import Path

from ..evaluation.extractors import hash_of
from ..version import __version__
from .pipelines import Converted


def write_receipt(folder: Path, converted: Converted, source: str, license: str | None = None) -> None:
    """Write `folder/conversion.json`.

    Args:
        source: file or repository; of a path the last part is told.
        license: of the weights, an identifier of the Hub.
    """
    unet, scheduler = converted.pipeline.unet, converted.pipeline.scheduler
    local, size = Path(source).exists(), unet.config.sample_size
    facts = {
        "origin": converted.origin,
        "source": Path(source).name if local else source,
        "source_on_hub": not local,
        "license": license,
        "shape": [unet.config.in_channels, *(size if isinstance(size, (list, tuple)) else (size, size))],
        "classes": unet.config.num_class_embeds,
        "weights": hash_of(unet),
        "parameters": sum(p.numel() for p in unet.parameters()),
        "second_sigma": float(f"{scheduler.sampling_sigmas(2)[1]:.5g}"),
        "notes": list(converted.notes),
        "version": __version__,
    }
    (folder / "conversion.json").write_text(json.dumps(facts, indent=1) + "\n")
