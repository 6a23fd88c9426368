"""Model cards: generated from the files of a run, and merged into a card that people have edited.

Generated text stands between `<!-- diffusers-ict:NAME HASH -->` and `<!-- /diffusers-ict -->`. The hash is that of the
text as it was generated: a section whose text still has it is renewed at the next push, any other was edited and is
left alone, like everything outside.
"""

import dataclasses
import hashlib
import re
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from ..errors import UserError, first_line
from ..files import read_text, write_text
from ..objectives import objective_class
from ..stock_key import STOCK_KEY
from . import sections
from .metadata import ConversionMetadata, RunMetadata

TEMPLATES = resources.files(__package__) / "templates"
SPACE = "space"  # the section with the link to a Space, which other cards do not have
SECTION = re.compile(r"<!-- diffusers-ict:(\w+)(?: ([0-9a-f]{12}))? -->\n(.*?)<!-- /diffusers-ict -->\n?", re.S)


def make_card(folder: Path, repo_id: str, license: str | None = None, space_id: str | None = None) -> ModelCard:
    """The card of a trained or converted model, from what lies in its folder.

    Args:
        folder: output folder of a run (run.json, recipe.yaml, samples, evaluation.json) or of a conversion.
        repo_id: where it is to be published; a path works for local use.
        license: of the weights, an identifier of the Hub; by default that of the recipe or the conversion.
        space_id: its Space, to which the card then links.

    Raises:
        UserError: one of these files is damaged.
    """
    trained = (folder / RunMetadata.file_name).is_file()
    name = repo_id.rstrip("/").split("/")[-1]
    try:
        data, text = _trained(folder, name, license) if trained else _converted(folder, license)
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # entries of other kinds than we write
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"no model card can be made of the files in {folder}, one of which has other entries than it should "
            f"({type(error).__name__}: {first_line(error)}); restore them."
        ) from error
    template = (TEMPLATES / ("trained.md" if trained else "converted.md")).read_text("utf-8")
    names = {"model_name": name, "repo_id": repo_id, "space_id": space_id}
    card = ModelCard.from_template(data, template_str=template, **names, **text)
    return ModelCard(sealed(card.content))


def _trained(folder: Path, name: str, license: str | None) -> tuple[ModelCardData, dict[str, Any]]:
    """(card metadata, values of the template trained.md) of a run."""
    run = RunMetadata.read(folder)
    recipe = _read_recipe(folder)
    report = sections.entries(folder / "evaluation.json")
    levels = sections.read_levels(folder, STOCK_KEY, recipe)
    used = [objective_class(loss) for loss in _losses(run, recipe)]
    method = f"an objective of its own, `{run.objective}`" if run.objective else f"[{used[0].method}]({used[0].paper})"
    grids = sorted((folder / "samples").glob("*.png")) if (folder / "samples").is_dir() else []
    data = ModelCardData(
        license=license or recipe.get("license"),
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        tags=["diffusers", "consistency-models", "diffusers-ict", recipe["loss"], "image-generation"],
        datasets=[run.dataset] if run.dataset_on_hub else None,
        base_model=run.base_model if run.base_model_on_hub else None,
        model_name=name,
        eval_results=sections.results(report) or None,
    )
    return data, {
        **sections.describe_network(run.shape, run.classes, run.parameters, sections.class_names(folder)),
        "resolution": run.shape[2],
        "method": method,
        "sample_grid": f"samples/{grids[-1].name}" if grids else None,
        "second_sigma": sections.second_level(folder, levels),
        "levels_note": sections.levels_note(levels),
        "variants": sorted(p.name.split(".")[1] for p in (folder / "unet").glob("*.*.safetensors")),
        **_training(run),
        "results": sections.table(report),
        "quality_plot": "evaluation.png" if (folder / "evaluation.png").is_file() else None,
        "inspection": sections.inspection(folder),
        "citation": "\n".join(f"- {method.citation}" for method in used),
    }


def _losses(run: RunMetadata, recipe: dict[str, Any]) -> list[str]:
    """The losses whose papers a card cites, its own first."""
    if run.objective:
        return ["ct"]
    consistency = recipe.get("objective", recipe).get("consistency", "ct")  # older recipes have it beside the loss
    own = [recipe["loss"], consistency] if recipe["loss"] == "act" else [recipe["loss"]]
    return list(dict.fromkeys([*own, "ct"]))


def _training(run: RunMetadata) -> dict[str, Any]:
    """The values of the section on training."""
    return {
        "dataset": run.dataset,
        "image_count": f"{run.images:,} images" if run.images else "a stream of images",
        "classes": f"{run.classes} classes" if run.classes else "classes not used",
        "base_model": run.base_model,
        "steps": f"{run.steps:,}",
        "batch_size": run.batch_size,
        "images_seen": f"{run.images_seen:,}",
        "hardware": run.hardware,
        "train_time": sections.duration(run.train_seconds),
        "version": run.version,
        "commit": f", commit {run.commit[:10]}" if run.commit else "",
        "command": run.command,
        "changes": [f"after step {c['step']}, `{c['setting']}` from {c['from']} to {c['to']}" for c in run.changes],
    }


def _converted(folder: Path, license: str | None) -> tuple[ModelCardData, dict[str, Any]]:
    """(card metadata, values of the template converted.md) of a conversion."""
    conversion = ConversionMetadata.read(folder)
    data = ModelCardData(
        license=license or conversion.license,
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        tags=["diffusers", "consistency-models", "diffusers-ict", "image-generation"],
        base_model=conversion.source if conversion.source_on_hub else None,
    )
    text = dataclasses.asdict(conversion)
    if note := sections.levels_note(sections.read_levels(folder, STOCK_KEY, {})):
        text["notes"] = [*conversion.notes, note]
    names = sections.class_names(folder)
    return data, {
        **text,
        **sections.describe_network(conversion.shape, conversion.classes, conversion.parameters, names),
    }


def read_card(text: str) -> ModelCard:
    """A card from its text.

    Raises:
        UserError: its metadata is not a YAML mapping.
    """
    try:
        return ModelCard(text, ignore_metadata_errors=True)
    except (yaml.YAMLError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"the metadata between the --- lines of README.md must be a YAML mapping ({first_line(error)}); mend it."
        ) from error


def merge(edited: str, fresh: str, license: str | None = None) -> str:
    """The card `edited` with its untouched generated sections renewed from `fresh`; all else stays as it is.

    Metadata that is there stays, what is missing is added, and `model-index` is renewed. A link to a Space that
    `fresh` has and `edited` lacks comes before its first generated section.

    Args:
        license: replaces the licence of the metadata, and its name and link with it.

    Raises:
        UserError: the metadata of `edited` cannot be read.
    """
    new = {match[1]: match for match in SECTION.finditer(fresh)}
    old = {match[1] for match in SECTION.finditer(edited)}

    def renewed(match: re.Match) -> str:
        untouched = match[2] == _hash(match[3])
        return new[match[1]][0] if untouched and match[1] in new else match[0]

    ours, theirs = read_card(fresh), read_card(edited)
    body = SECTION.sub(renewed, theirs.text)
    if not old:  # written by hand or by another program: what we have to say comes after it
        body = body.rstrip() + "\n\n" + "\n".join(match[0] for match in new.values())
    elif SPACE in new.keys() - old:
        start = next(SECTION.finditer(body)).start()
        body = f"{body[:start]}{new[SPACE][0]}\n{body[start:]}"
    known, made = theirs.data.to_dict(), ours.data.to_dict()
    if license is not None and license != known.get("license"):
        known = {key: value for key, value in known.items() if key not in ("license_name", "license_link")}
        known["license"] = license
    if "model-index" in made:  # which holds the name, and is read back as such
        known = {key: value for key, value in known.items() if key != "model_name"}
        known["model-index"] = made["model-index"]
    metadata = {**made, **known}
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---\n{body}"


def write_card(
    folder: Path, repo_id: str | None = None, license: str | None = None, space_id: str | None = None
) -> None:
    """Write the README.md of a trained or converted model, or renew it, and the pipeline.py that it speaks of.

    Without `repo_id` it is the recipe's, or the folder's name. `license` replaces the one that the card has. A link to
    a Space stays where no `space_id` is given.

    Raises:
        UserError: a file that the card is made from, or the card itself, is damaged; nothing is written.
    """
    repo_id = repo_id or _read_recipe(folder).get("hub_model_id") or folder.resolve().name
    card = folder / "README.md"
    content = make_card(folder, repo_id, license, space_id).content
    if card.exists():
        try:
            content = merge(read_text(card), content, license)
        except UserError as error:
            raise UserError(f"the model card {card} cannot be renewed: {error}") from error
    # Sampling at any noise levels for those who have diffusers only.
    write_text(folder / "pipeline.py", (TEMPLATES / "pipeline.py").read_text("utf-8"))
    write_text(card, content)


def _read_recipe(folder: Path) -> dict[str, Any]:
    """The recipe of a run, or nothing where there is none."""
    path = folder / "recipe.yaml"
    if not path.is_file():
        return {}
    try:
        recipe = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path} cannot be read as YAML: {first_line(error)}.") from error
    if not isinstance(recipe, dict):
        raise UserError(f"{path} must hold a YAML mapping, and holds a {type(recipe).__name__}.")
    return recipe


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def sealed(card: str) -> str:
    """A generated card with the hash of each section in its first line."""
    return SECTION.sub(lambda m: f"<!-- diffusers-ict:{m[1]} {_hash(m[3])} -->\n{m[3]}<!-- /diffusers-ict -->\n", card)
