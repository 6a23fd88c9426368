"""Model cards: generated from the files of a run, and merged into a card that people have edited.

Generated text stands between `<!-- diffusers-ict:NAME HASH -->` and `<!-- /diffusers-ict -->`. The hash is that of the
text as it was generated: a section whose text still has it is renewed at the next push, any other was edited and is
left alone, like everything outside.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import TemplateError

from ..errors import UserError, first_line
from ..files import read_json, read_text, write_text
from ..formulas.stock_grid import middle_level
from ..names import LONGEST, block, code, literal, markdown, operand, shell, visible
from ..normalization import NORMALIZATION_NAME
from ..objectives import objective_class
from ..stock_key import STOCK_KEY
from .metadata import ConversionMetadata, RunMetadata
from .modular import MODULAR_CONFIG
from .provenance import code_address
from .run_files import read_recipe

TEMPLATES = resources.files(__package__) / "templates"
PIPELINE = TEMPLATES / "pipeline.py"  # sampling at any noise levels for those who have diffusers only
COMMON = {"library_name": "diffusers", "pipeline_tag": "unconditional-image-generation"}
TAGS = ["diffusers", "consistency-models", "diffusers-ict", "image-generation"]
SHOWN_CLASSES = 20  # at most, by name
SHOWN_STEPS = (1, 2)  # whose figures stand in the metadata; the card has a table of all, and evaluation.json the rest
GRIDS = "samples/step-"  # how the paths of a run's own samples begin
SPACE = "space"  # the section with the link to a Space, which other cards do not have
MARK = re.compile(r"<!-- (?:diffusers-ict:(\w+)(?: ([0-9a-f]{12}))? -->\n|/diffusers-ict -->\n?)")


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
    template = (TEMPLATES / ("trained.md" if trained else "converted.md")).read_text("utf-8")
    try:
        data, facts = _trained(folder, name, license) if trained else _converted(folder, license)
        facts |= {"model_name": name, "repo_id": repo_id, "space_id": space_id}
        facts |= {"markdown": markdown, "code": code, "block": block, "literal": literal}
        facts |= {"operand": operand, "shell": shell, "code_address": code_address()}
        return ModelCard(sealed(ModelCard.from_template(data, template_str=template, **facts).content))
    except UserError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError, TemplateError) as error:  # entries of other types
        raise UserError(
            f"no model card can be made of the files in {folder}, one of which has other entries than it should "
            f"({type(error).__name__}: {first_line(error)}); restore them."
        ) from error


def _trained(folder: Path, name: str, license: str | None) -> tuple[ModelCardData, dict[str, Any]]:
    """(card metadata, values of the template trained.md) of a run."""
    run, recipe, report = RunMetadata.read(folder), read_recipe(folder), _entries(folder / "evaluation.json")
    settings = {**recipe, **(recipe.get("objective") or {})}
    methods = [settings["loss"], *[settings.get("consistency", "ct")] * (settings["loss"] == "act")]
    methods = [*([] if run.objective else methods), "ct"]  # the run's first
    grids = sorted((folder / "samples").glob("*.png"))
    data = ModelCardData(
        license=license or recipe.get("license"),
        **(COMMON | ({"pipeline_tag": "image-to-image"} if run.condition else {})),
        tags=[*TAGS[:3], recipe["loss"], *TAGS[3:]],
        datasets=[run.dataset] if run.dataset_on_hub else None,
        base_model=run.base_model if run.base_model_on_hub else run.base_model_origin,
        widget=_gallery(grids[-1], bool(run.condition)) if grids else None,
        model_name=visible(name, LONGEST),
        eval_results=_results(report) or None,
    )
    return data, {
        **dataclasses.asdict(run),
        **_describe(folder, settings),
        "papers": [objective_class(method) for method in dict.fromkeys(methods)],
        "method_settings": recipe.get("objective") or {},
        "sample_grid": grids[-1].name if grids else None,
        "variants": sorted(p.name.split(".")[1] for p in (folder / "unet").glob("*.*.safetensors")),
        "train_time": _duration(run.train_seconds),
        "report": report,
        "metrics": [name for row in report.get("rows", [])[:1] for name in row["metrics"] if not name.endswith("_std")],
        "quality_plot": (folder / "evaluation.png").is_file(),
        "inspection": _entries(folder / "inspection.json"),
        "normalization": _entries(folder / NORMALIZATION_NAME),
    }


def _converted(folder: Path, license: str | None) -> tuple[ModelCardData, dict[str, Any]]:
    """(card metadata, values of the template converted.md) of a conversion."""
    conversion = ConversionMetadata.read(folder)
    base_model = conversion.source if conversion.source_on_hub else None
    data = ModelCardData(license=license or conversion.license, **COMMON, tags=TAGS, base_model=base_model)
    return data, {**_describe(folder, {}), **dataclasses.asdict(conversion)}


def _entries(path: Path) -> dict[str, Any]:
    """The content of a JSON file, or nothing where there is none."""
    return read_json(path) if path.is_file() else {}


def _describe(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Classes, noise levels and blocks of a model, with the arguments of its pipelines that name a class.

    The number before a name, as in "0 `cat`, 1 `dog` and 3 more", is what stock diffusers takes.
    """
    labels = _entries(folder / "labels.json")
    names = labels.get("id2label", {})
    names = dict(sorted((int(number), name) for number, name in names.items()))
    shown = ", ".join(f"{number} {code(name)}" for number, name in list(names.items())[:SHOWN_CLASSES])
    number, name = next(iter(names.items()), (0, None))
    scheduler = _entries(folder / "scheduler" / "scheduler_config.json")
    levels = (scheduler.get(STOCK_KEY) or settings).get("intermediate_sigmas") or []
    grid = ("num_train_timesteps", "sigma_min", "sigma_max", "rho")
    middle = middle_level(**{name: scheduler[name] for name in grid if name in scheduler})
    return {
        "class_names": shown + (f" and {len(names) - SHOWN_CLASSES} more" if len(names) > SHOWN_CLASSES else ""),
        "unlabelled": labels.get("unlabelled") is True,
        "modular": (folder / MODULAR_CONFIG).is_file(),
        "class_example": number if name is None or len(name) > LONGEST else literal(name),
        "residual_scale": (scheduler.get(STOCK_KEY) or {}).get("residual_scale"),
        "levels": sorted(levels, reverse=True),
        "second_sigma": levels[0] if levels else float(f"{middle:.4g}"),
    }


def _duration(seconds: float) -> str:
    """A time in two units at most, such as "1 h 20 min", "3 min" or "40 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    units = {"h": hours, "min": minutes, "s": 0 if hours else seconds}
    return " ".join(f"{count} {unit}" for unit, count in units.items() if count) or "0 s"


def _gallery(grid: Path, given: bool) -> list[dict[str, Any]]:
    """The picture that the page of the Hub shows for the model, as its `widget` metadata have it.

    Args:
        given: the picture begins with what the model was given.
    """
    told = "samples with one step, then with two from the same noise"
    return [{"text": f"{'given images, ' * given}{told}", "output": {"url": f"samples/{quote(grid.name)}"}}]


def _results(report: dict[str, Any]) -> list[EvalResult]:
    """One result for each metric of the published weights with one and with two steps; evaluation.json has the rest."""
    shared = {key: report[key] for key in ("samples", "extractor", "extractor_weights", "reference") if key in report}
    rows = [row for row in report.get("rows", []) if not row.get("variant") and row.get("guidance_scale", 1) == 1]
    return [
        EvalResult(
            task_type="unconditional-image-generation",
            dataset_type=re.sub(r"[^\w.-]+", "-", report["dataset"]),  # an identifier
            dataset_name=visible(report["dataset"], LONGEST),
            dataset_args=shared,
            metric_type=metric,
            metric_name=f"{metric}, {steps} step{'s' * (steps > 1)}",
            metric_value=float(f"{value:.4g}"),
        )
        for row in rows
        if (steps := row["num_inference_steps"]) in SHOWN_STEPS
        for metric, value in row["metrics"].items()
        if not metric.endswith("_std")
    ]


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

    Metadata that is there stays, what is missing is added, and `model-index` is renewed, as is a `widget` that shows
    samples of the run only. A link to a Space that `fresh` has and `edited` lacks comes before its first generated
    section.

    Args:
        license: replaces the licence of the metadata, and its name and link with it.

    Raises:
        UserError: the metadata of `edited` cannot be read.
    """
    new = {section.name: section.whole for section in _sections(fresh)}
    old = {section.name for section in _sections(edited)}

    def renewed(section: Section) -> str:
        untouched = section.hash == _hash(section.text)
        return new.get(section.name, section.whole) if untouched else section.whole

    made, card = read_card(fresh).data.to_dict(), read_card(edited)
    body, known = _replaced(card.text, renewed), card.data.to_dict()
    if not old:  # written by hand or by another program: what we have to say comes after it
        body = body.rstrip() + "\n\n" + "\n".join(new.values())
    elif SPACE in new.keys() - old:
        start = next(_sections(body)).start
        body = f"{body[:start]}{new[SPACE]}\n{body[start:]}"
    replaced = {"license", "license_name", "license_link"} if license not in (None, known.get("license")) else set()
    if "model-index" in made:  # which holds the name, and is read back as such
        replaced |= {"model_name", "model-index"}
    if _is_ours(known.get("widget")):
        replaced.add("widget")
    kept = {key: value for key, value in known.items() if key not in replaced}
    metadata = {**made, **({"license": license} if "license" in replaced else {}), **kept}
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---\n{body}"


def _is_ours(widget: Any) -> bool:
    """Whether a gallery shows samples that a run wrote, and nothing else."""
    try:
        return all(entry["output"]["url"].startswith(GRIDS) for entry in widget)
    except (AttributeError, LookupError, TypeError):  # another form, or none
        return False


def renewed_card(
    folder: Path, repo_id: str | None = None, license: str | None = None, space_id: str | None = None
) -> str:
    """The card of a trained or converted model, merged with the README.md of its folder, if there is one.

    Without `repo_id` it is the recipe's, or the folder's name. `license` replaces the one that the card has. A link to
    a Space stays where no `space_id` is given.

    Raises:
        UserError: a file that the card is made from, or the card itself, is damaged.
    """
    repo_id = repo_id or read_recipe(folder).get("hub_model_id") or folder.resolve().name
    card = folder / "README.md"
    content = make_card(folder, repo_id, license, space_id).content
    if not card.exists():
        return content
    try:
        return merge(read_text(card), content, license)
    except UserError as error:
        raise UserError(f"the model card {card} cannot be renewed: {error}") from error


def write_card(folder: Path, repo_id: str | None = None) -> None:
    """Write the README.md of a model's folder, or renew it as `renewed_card` does, and the pipeline.py it speaks of.

    Raises:
        UserError: as `renewed_card`; nothing is written.
    """
    content = renewed_card(folder, repo_id)
    write_text(folder / "pipeline.py", PIPELINE.read_text("utf-8"))
    write_text(folder / "README.md", content)


class Section(NamedTuple):
    """A generated section of a card: its name, hash and text, and where it stands with its marks."""

    name: str
    hash: str | None
    text: str
    whole: str
    start: int
    end: int


def _sections(card: str) -> Iterator[Section]:
    """The sections of a card: from an opening mark to the next closing one."""
    opening = None
    for mark in MARK.finditer(card):
        if mark[1] and opening is None:
            opening = mark
        elif not mark[1] and opening is not None:
            text, whole = card[opening.end() : mark.start()], card[opening.start() : mark.end()]
            yield Section(opening[1], opening[2], text, whole, opening.start(), mark.end())
            opening = None


def _replaced(card: str, replacement: Callable[[Section], str]) -> str:
    """A card with other sections in the places of its own."""
    parts, end = [], 0
    for section in _sections(card):
        parts += [card[end : section.start], replacement(section)]
        end = section.end
    return "".join([*parts, card[end:]])


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def sealed(card: str) -> str:
    """A generated card with the hash of each section in its first line."""

    def with_hash(section: Section) -> str:
        return f"<!-- diffusers-ict:{section.name} {_hash(section.text)} -->\n{section.text}<!-- /diffusers-ict -->\n"

    return _replaced(card, with_hash)
