"""The plot of an evaluation's report."""

import math
from pathlib import Path
from typing import Any

from ..files import atomic_file

PUBLISHED = "published"  # the name of the weights that are no variant
TITLES = {"fid": "FID", "frechet": "Frechet distance", "fd_dinov2": "FD-DINOv2", "kid": "KID"}


def table_lines(rows: list[dict[str, Any]], weights: list[str]) -> list[str]:
    """The last row of a report as a line of a table, after the first one with the names of its columns above it.

    Args:
        weights: the names of all averages, whose length makes the first column.
    """
    row, deviations = rows[-1], [name for name in rows[-1]["metrics"] if name.endswith("_std")]
    steps = row["num_inference_steps"]  # None for images that no model drew
    cells = {"weights": row["variant"] or (PUBLISHED if steps else "images"), "steps": str(steps or "-")}
    for name, value in row["metrics"].items():
        if name not in deviations:
            deviation = row["metrics"].get(f"{name}_std")
            cells[name] = f"{value:.5g}" + ("" if deviation is None else f" ± {deviation:.2g}")
    width = {name: max(len(name), 20 if f"{name}_std" in deviations else 9) for name in list(cells)[2:]}
    widths = [max(map(len, ("weights", *weights))), 5, *width.values()]
    lines = [*([list(cells)] if len(rows) == 1 else []), list(cells.values())]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths)) for line in lines]


def plot_quality(report: dict[str, Any], target: Path) -> None:
    """Each metric against the number of steps, one line for each average of the weights, as PNG, atomically."""
    from matplotlib.figure import Figure  # no global state and no display

    rows = report["rows"]
    names = [name for name in rows[0]["metrics"] if not name.endswith("_std")]
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    counts = sorted({row["num_inference_steps"] for row in rows})
    columns = min(3, len(names))
    figure = Figure(figsize=(4 * columns, 3 * math.ceil(len(names) / columns)), layout="constrained")
    for place, name in enumerate(names, 1):
        panel: Any = figure.add_subplot(math.ceil(len(names) / columns), columns, place)
        for variant in variants:
            points = [
                (row["num_inference_steps"], row["metrics"][name], row["metrics"].get(f"{name}_std", 0.0))
                for row in rows
                if row["variant"] == variant
            ]
            panel.errorbar(*zip(*points), marker="o", capsize=3, label=variant or "published")
        better = "higher" if name in report["higher_is_better"] else "lower"
        panel.axhline(0, color="none")  # so that differences are seen in proportion
        panel.set(xlabel="sampling steps", xticks=counts, xlim=(counts[0] - 0.4, counts[-1] + 0.4))
        title = TITLES.get(name, name.replace("_", " ").capitalize())
        panel.set_title(f"{title}\n({better} is better)", fontsize=10)
    if len(variants) > 1:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(variants), 4), fontsize=8)
    against = f"against {report['reference_images']:,} images of {report['dataset']}"
    figure.suptitle(f"{report['samples']:,} samples {against}, features: {report['extractor']}", fontsize=9)
    with atomic_file(target) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
