"""Text of the sections of a model card, from the files of a model's folder."""

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from ..files import read_json
from ..formulas.stock_grid import middle_level

SHOWN_CLASSES = 20  # at most, by name


def entries(path: Path) -> dict[str, Any]:
    """The content of a JSON file, or nothing where there is none."""
    return read_json(path) if path.is_file() else {}


def class_names(folder: Path) -> dict[int, str]:
    """Names of classes by number, from labels.json; empty where there is none."""
    names = entries(folder / "labels.json").get("id2label", {})
    return dict(sorted((int(number), name) for number, name in names.items()))


def describe_network(shape: list[int], classes: int | None, parameters: int, names: dict[int, str]) -> dict[str, str]:
    """Facts about a network that both kinds of card state.

    Args:
        names: of its classes, by number; may be empty.
    """
    named = f", class_labels={json.dumps(next(iter(names.values())), ensure_ascii=False)}" if names else ""
    numbered = ", class_labels=0" if classes else ""
    return {
        "sort": "A class-conditional" if classes else "An unconditional",
        "shape": _shape(*shape),
        "parameters": f"{parameters / 1e6:.2f} M",
        "label_argument": numbered,
        "own_label_argument": (named or numbered) if classes else "",
        "class_names": _listed(names) if classes else "",
    }


def _shape(channels: int, height: int, width: int) -> str:
    """As in "8x8 grey"."""
    kinds = {1: "grey", 3: "colour"}
    return f"{width}x{height} {kinds.get(channels, f'{channels}-channel')}"


def _listed(names: dict[int, str]) -> str:
    """As in "0 `cat`, 1 `dog` and 3 more"; the number is what stock diffusers takes."""
    shown = [f"{number} `{_plain(name)}`" for number, name in list(names.items())[:SHOWN_CLASSES]]
    more = f" and {len(names) - SHOWN_CLASSES} more" if len(names) > SHOWN_CLASSES else ""
    return ", ".join(shown) + more


def _plain(name: str) -> str:
    """A name as it may stand within backticks, on one line."""
    return " ".join(name.replace("`", "'").replace("<!--", "<! --").split())


def read_levels(folder: Path, key: str, recipe: dict[str, Any]) -> list[float]:
    """The noise levels between steps: those of the scheduler under `key`, otherwise those of the recipe."""
    scheduler = entries(folder / "scheduler" / "scheduler_config.json")
    return (scheduler.get(key) or recipe).get("intermediate_sigmas") or []


def second_level(folder: Path, levels: list[float]) -> float:
    """The level that two steps go through: the first of `levels`, otherwise the middle of the scheduler's grid."""
    if levels:
        return levels[0]
    config = entries(folder / "scheduler" / "scheduler_config.json")
    names = ("num_train_timesteps", "sigma_min", "sigma_max", "rho")
    return float(f"{middle_level(**{name: config[name] for name in names if name in config}):.4g}")


def levels_note(levels: list[float]) -> str:
    """What stock diffusers does with several noise levels between steps; empty for one level, where it agrees."""
    if len(levels) < 2:
        return ""
    chosen = ", ".join(f"{level:g}" for level in sorted(levels, reverse=True))
    return (
        f"With three or more steps stock diffusers uses other noise levels than the ones chosen for this model "
        f"({chosen}), because its scheduler holds a grid and no list. diffusers-ict uses the chosen ones with up to "
        f"{len(levels) + 1} steps, and `pipeline.py` takes them as `sigmas=[80.0, {chosen}]`."
    )


def inspection(folder: Path) -> str:
    """Whether the model repeats training images, by what examples/inspect_model.py found."""
    found = entries(folder / "inspection.json")
    if not found:
        return "Whether it repeats training images was not examined."
    return (
        f"Of {found['samples']:,} samples drawn with two steps, {found['copies']:.1%} count as copies of a training "
        f"image: they are nearer to it than half of its distance to any other training image. Distances are those of "
        f"features of {found['extractor']}."
    )


def duration(seconds: float) -> str:
    """As in "1 h 5 min" or "1 min 29 s"."""
    hours, minutes = int(seconds // 3600), int(seconds % 3600 // 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60:.0f} s"


def results(report: dict[str, Any]) -> list[EvalResult]:
    """One result for each metric of each row of evaluation.json; deviations go with their metric."""
    shared: dict[str, Any] = {
        key: report[key] for key in ("samples", "extractor", "extractor_weights", "reference") if key in report
    }
    found = []
    for row in report.get("rows", []):
        steps, variant = row["num_inference_steps"], row.get("variant")
        for metric, value in row["metrics"].items():
            if metric.endswith("_std"):
                continue
            deviation = row["metrics"].get(f"{metric}_std")
            settings = {"variant": variant, "standard_deviation": deviation, **shared}
            found.append(
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
    return found


def _steps(count: int) -> str:
    return f"{count} step{'s' if count > 1 else ''}"


def table(report: dict[str, Any]) -> str:
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
