"""Model cards: generated from the files of a run, and merged into a card that people have edited.

Generated text stands between `<!-- diffusers-ict:NAME HASH -->` and `<!-- /diffusers-ict -->`. The hash is that of the
text as it was generated: a section whose text still has it is renewed at the next push, any other was edited and is
left alone, like everything outside.
"""

import dataclasses
import hashlib
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..files import write_text
from ..stock_key import STOCK_KEY
from .metadata import ConversionMetadata, RunMetadata

TEMPLATES = resources.files(__package__) / "templates"
PAPERS = {
    "ict": ("iCT", "https://arxiv.org/abs/2310.14189"),
    "ct": ("CT", "https://arxiv.org/abs/2303.01469"),
    "act": ("ACT", "https://arxiv.org/abs/2311.14097"),
}
CITATIONS = {
    "ict": "Y. Song, P. Dhariwal. Improved Techniques for Training Consistency Models. ICLR 2024, arXiv:2310.14189.",
    "ct": "Y. Song, P. Dhariwal, M. Chen, I. Sutskever. Consistency Models. ICML 2023, arXiv:2303.01469.",
    "act": "F. Kong et al. ACT-Diffusion: Efficient Adversarial Consistency Training. CVPR 2024, arXiv:2311.14097.",
}
SECTION = re.compile(r"<!-- diffusers-ict:(\w+)(?: ([0-9a-f]{12}))? -->\n(.*?)<!-- /diffusers-ict -->\n?", re.S)


def make_card(folder: Path, repo_id: str, license: str | None = None) -> ModelCard:
    """The card of a trained or converted model, from what lies in its folder.

    Args:
        folder: output folder of a run (run.json, recipe.yaml, samples, evaluation.json) or of a conversion.
        repo_id: where it is to be published; a path works for local use.
        license: of the weights, an identifier of the Hub; by default that of the recipe or the conversion.
    """
    trained = (folder / RunMetadata.file_name).is_file()
    name = repo_id.rstrip("/").split("/")[-1]
    data, text = _trained(folder, name, license) if trained else _converted(folder, license)
    template = (TEMPLATES / ("trained.md" if trained else "converted.md")).read_text()
    card = ModelCard.from_template(data, template_str=template, model_name=name, repo_id=repo_id, **text)
    return ModelCard(SECTION.sub(lambda m: _sealed(m[1], m[3]), card.content))


def _trained(folder: Path, name: str, license: str | None) -> tuple[ModelCardData, dict[str, Any]]:
    """(card metadata, values of the template trained.md) of a run."""
    run = RunMetadata.read(folder)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    report = _read_json(folder / "evaluation.json")
    carried: dict[str, Any] = {
        **recipe,
        **_read_json(folder / "scheduler" / "scheduler_config.json").get(STOCK_KEY, {}),
    }
    method, paper = PAPERS[recipe["loss"]]
    grids = sorted((folder / "samples").glob("*.png")) if (folder / "samples").is_dir() else []
    data = ModelCardData(
        license=license or recipe.get("license"),
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        tags=["diffusers", "consistency-models", "diffusers-ict", recipe["loss"], "image-generation"],
        datasets=[run.dataset] if run.dataset_on_hub else None,
        base_model=run.base_model if run.base_model_on_hub else None,
        model_name=name,
        eval_results=_results(report) or None,
    )
    return data, {
        **_shown(run.shape, run.classes, run.parameters),
        "resolution": run.shape[2],
        "method": method,
        "paper": paper,
        "sample_grid": f"samples/{grids[-1].name}" if grids else None,
        "second_sigma": carried["intermediate_sigmas"][0],
        "variants": sorted(p.name.split(".")[1] for p in (folder / "unet").glob("*.*.safetensors")),
        "dataset": run.dataset,
        "image_count": f"{run.images:,}",
        "classes": f"{run.classes} classes" if run.classes else "classes not used",
        "base_model": run.base_model,
        "steps": f"{run.steps:,}",
        "batch_size": run.batch_size,
        "images_seen": f"{run.images_seen:,}",
        "hardware": run.hardware,
        "train_time": _duration(run.train_seconds),
        "version": run.version,
        "commit": f", commit {run.commit[:10]}" if run.commit else "",
        "command": run.command,
        "results": _table(report),
        "quality_plot": "evaluation.png" if (folder / "evaluation.png").is_file() else None,
        "citation": "\n".join(f"- {CITATIONS[key]}" for key in dict.fromkeys([recipe["loss"], "ct"])),
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
    shown = _shown(conversion.shape, conversion.classes, conversion.parameters)
    return data, {**dataclasses.asdict(conversion), **shown}


def _shown(shape: list[int], classes: int | None, parameters: int) -> dict[str, str]:
    """Facts about a network that both kinds of card state."""
    return {
        "sort": "A class-conditional" if classes else "An unconditional",
        "shape": _shape(*shape),
        "parameters": f"{parameters / 1e6:.2f} M",
        "label_argument": ", class_labels=0" if classes else "",
    }


def _shape(channels: int, height: int, width: int) -> str:
    """As in "8x8 grey"."""
    kinds = {1: "grey", 3: "colour"}
    return f"{width}x{height} {kinds.get(channels, f'{channels}-channel')}"


def merge(edited: str, fresh: str) -> str:
    """The card `edited` with its untouched generated sections renewed from `fresh`; all else stays as it is.

    Metadata that is there stays, what is missing is added, and `model-index` is renewed.
    """
    new = {match[1]: match for match in SECTION.finditer(fresh)}
    old = {match[1] for match in SECTION.finditer(edited)}

    def renewed(match: re.Match) -> str:
        untouched = match[2] == _hash(match[3])
        return new[match[1]][0] if untouched and match[1] in new else match[0]

    ours, theirs = ModelCard(fresh, ignore_metadata_errors=True), ModelCard(edited, ignore_metadata_errors=True)
    body = SECTION.sub(renewed, theirs.text)
    if not old:  # written by hand or by another program: what we have to say comes after it
        body = body.rstrip() + "\n\n" + "\n".join(match[0] for match in new.values())
    known, made = theirs.data.to_dict(), ours.data.to_dict()
    metadata = {**made, **known, **({"model-index": made["model-index"]} if "model-index" in made else {})}
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---\n{body}"


def write_card(folder: Path, repo_id: str | None = None, license: str | None = None) -> None:
    """Write the README.md of a trained or converted model, or renew it, and the pipeline.py that it speaks of.

    Without `repo_id` it is the recipe's, or the folder's name.
    """
    recipe = yaml.safe_load(path.read_text()) if (path := folder / "recipe.yaml").is_file() else {}
    repo_id = repo_id or recipe.get("hub_model_id") or folder.resolve().name
    # Sampling at any noise levels for those who have diffusers only.
    write_text(folder / "pipeline.py", (TEMPLATES / "pipeline.py").read_text())
    card = folder / "README.md"
    fresh = make_card(folder, repo_id, license).content
    write_text(card, merge(card.read_text(), fresh) if card.exists() else fresh)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _sealed(name: str, text: str) -> str:
    return f"<!-- diffusers-ict:{name} {_hash(text)} -->\n{text}<!-- /diffusers-ict -->\n"


def _duration(seconds: float) -> str:
    hours, minutes = int(seconds // 3600), int(seconds % 3600 // 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60:.0f} s"


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _results(report: dict[str, Any]) -> list[EvalResult]:
    """One result for each metric of each row of evaluation.json; deviations go with their metric."""
    shared: dict[str, Any] = {
        key: report[key] for key in ("samples", "extractor", "extractor_weights", "reference") if key in report
    }
    results = []
    for row in report.get("rows", []):
        steps, variant = row["num_inference_steps"], row.get("variant")
        for metric, value in row["metrics"].items():
            if metric.endswith("_std"):
                continue
            deviation = row["metrics"].get(f"{metric}_std")
            settings = {"variant": variant, "standard_deviation": deviation, **shared}
            results.append(
                EvalResult(
                    task_type="unconditional-image-generation",
                    dataset_type=re.sub(r"[^\w.-]+", "-", report["dataset"]),  # an identifier
                    dataset_name=report["dataset"],
                    metric_type=metric,
                    metric_name=f"{metric}, {_steps(steps)}" + (f", {variant}" if variant else ""),
                    metric_value=value,
                    metric_args={"num_inference_steps": steps, **{k: v for k, v in settings.items() if v is not None}},
                )
            )
    return results


def _steps(count: int) -> str:
    return f"{count} step{'s' if count > 1 else ''}"


def _table(report: dict[str, Any]) -> str:
    """The rows of evaluation.json as a table, and below it what was measured."""
    rows = report.get("rows", [])
    if not rows:
        return ""
    names = [name for name in rows[0]["metrics"] if not name.endswith("_std")]

    def cell(metrics: dict[str, float], name: str) -> str:
        deviation = metrics.get(f"{name}_std")
        return f"{metrics[name]:.4g}" + (f" ± {deviation:.2g}" if deviation is not None else "")

    lines = [f"| steps | weights | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|"]
    for row in rows:
        cells = [str(row["num_inference_steps"]), row.get("variant") or "published"]
        lines.append("| " + " | ".join([*cells, *(cell(row["metrics"], name) for name in names)]) + " |")
    mirrored = ", each also mirrored" if report["flipped"] else ""
    return "\n".join(
        [
            *lines,
            "",
            f"{report['samples']:,} samples against {report['reference_images']:,} images of {report['dataset']}, "
            f"{report['split']}{mirrored} (statistics {report['reference']}), by features of {report['extractor']} "
            f"(weights {report['extractor_weights'][:12]}, resize: {report['resize']}). By:",
            "",
            f"```text\n{report['command']}\n```",
        ]
    )
