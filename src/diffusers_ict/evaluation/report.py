"""The report of an evaluation, from which a model card and a plot are made."""

import math
from pathlib import Path
from typing import Any

from ..files import write_json


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write evaluation.json atomically, and evaluation.png beside it."""
    write_json(folder / "evaluation.json", report)
    if any(row["num_inference_steps"] for row in report["rows"]):
        plot_quality(report, folder / "evaluation.png")


def plot_quality(report: dict[str, Any], target: Path) -> None:
    """Each metric against the number of steps, one line for each average of the weights, as PNG."""
    from matplotlib.figure import Figure  # no global state and no display

    rows = report["rows"]
    names = [name for name in rows[0]["metrics"] if not name.endswith("_std")]
    columns = min(3, len(names))
    lines = math.ceil(len(names) / columns)
    figure = Figure(figsize=(4 * columns, 3 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for panel, name in zip(panels, names):
        for variant in dict.fromkeys(row["variant"] for row in rows):
            mine = [row for row in rows if row["variant"] == variant]
            steps = [row["num_inference_steps"] for row in mine]
            deviations = [row["metrics"].get(f"{name}_std", 0.0) for row in mine]
            values = [row["metrics"][name] for row in mine]
            panel.errorbar(steps, values, deviations, marker="o", capsize=3, label=variant or "published")
        better = "higher" if name in report["higher_is_better"] else "lower"
        panel.set(
            xlabel="steps",
            title=f"{name} ({better} is better)",
            xticks=sorted({r["num_inference_steps"] for r in rows}),
        )
        panel.set_ylim(*(f(0, edge) for f, edge in zip((min, max), panel.get_ylim())))  # differences in proportion
    for panel in list(panels)[len(names) :]:
        panel.remove()
    if len({row["variant"] for row in rows}) > 1:
        figure.axes[0].legend()
    figure.suptitle(f"{report['samples']:,} samples, {report['extractor']}", fontsize=9)
    figure.savefig(target, dpi=120)
