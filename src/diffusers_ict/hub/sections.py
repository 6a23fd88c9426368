"""What a model card shows, from the files of a model's folder; the templates put it into words."""

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from ..files import read_json
from ..formulas.stock_grid import middle_level
from ..stock_key import STOCK_KEY

SHOWN_CLASSES = 20  # at most, by name


def entries(path: Path) -> dict[str, Any]:
    """The content of a JSON file, or nothing where there is none."""
    return read_json(path) if path.is_file() else {}


def describe_model(folder: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """Classes and noise levels of a model, with the arguments of its pipelines that name a class.

    Args:
        recipe: its settings, empty for a converted model.
    """
    names = entries(folder / "labels.json").get("id2label", {})
    names = dict(sorted((int(number), name) for number, name in names.items()))
    example = json.dumps(next(iter(names.values()), ""), ensure_ascii=False)
    scheduler = entries(folder / "scheduler" / "scheduler_config.json")
    levels = (scheduler.get(STOCK_KEY) or recipe).get("intermediate_sigmas") or []
    return {
        "class_names": _list_classes(names),
        "class_example": example if names else "0",
        "levels": sorted(levels, reverse=True),
        "second_sigma": levels[0] if levels else _middle(scheduler),
    }


def _list_classes(names: dict[int, str]) -> str:
    """As in "0 `cat`, 1 `dog` and 3 more"; the number is what stock diffusers takes."""
    shown = [f"{number} `{_plain(name)}`" for number, name in list(names.items())[:SHOWN_CLASSES]]
    more = f" and {len(names) - SHOWN_CLASSES} more" if len(names) > SHOWN_CLASSES else ""
    return ", ".join(shown) + more


def _plain(name: str) -> str:
    """A name as it may stand within backticks, on one line."""
    return " ".join(name.replace("`", "'").replace("<!--", "<! --").split())


def _middle(scheduler: dict[str, Any]) -> float:
    """The middle of the scheduler's grid, which two steps of stock diffusers go through."""
    names = ("num_train_timesteps", "sigma_min", "sigma_max", "rho")
    return float(f"{middle_level(**{name: scheduler[name] for name in names if name in scheduler}):.4g}")


def duration(seconds: float) -> str:
    """As in "1 h 5 min" or "1 min 29 s"."""
    hours, minutes = int(seconds // 3600), int(seconds % 3600 // 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60:.0f} s"


def results(report: dict[str, Any]) -> list[EvalResult]:
    """One result for each metric of each row of evaluation.json; deviations go with their metric."""
    shared: dict[str, Any] = {
        key: report[key] for key in ("samples", "extractor", "extractor_weights", "reference") if key in report
    }
    return [
        _result(report["dataset"], row, metric, shared)
        for row in report.get("rows", [])
        for metric in row["metrics"]
        if not metric.endswith("_std")
    ]


def _result(dataset: str, row: dict[str, Any], metric: str, shared: dict[str, Any]) -> EvalResult:
    steps, variant = row["num_inference_steps"], row.get("variant")
    settings = {"variant": variant, "standard_deviation": row["metrics"].get(f"{metric}_std"), **shared}
    return EvalResult(
        task_type="unconditional-image-generation",
        dataset_type=re.sub(r"[^\w.-]+", "-", dataset),  # an identifier
        dataset_name=dataset,
        metric_type=metric,
        metric_name=f"{metric}, {steps} step{'s' * (steps > 1)}" + (f", {variant}" if variant else ""),
        metric_value=row["metrics"][metric],
        metric_args={"num_inference_steps": steps, **{k: v for k, v in settings.items() if v is not None}},
    )
