"""The plot of an evaluation's report."""

import math
from pathlib import Path
from typing import Any

from ..files import atomic_file

PUBLISHED = "published"  # the name of the weights that are no variant
NO_FEATURES = "nothing"  # the name of the extractor where no metric reads features
TITLES = {
    "psnr": "PSNR in dB",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "fid": "FID",
    "frechet": "Frechet distance",
    "fd_dinov2": "FD-DINOv2",
    "kid": "KID",
}
MARKERS = "os^Dv*"
COLUMNS = 4  # of panels, at most


def table_lines(rows: list[dict[str, Any]], weights: list[str]) -> list[str]:
    """The last row of a report as a line of a table, after the first one with the names of its columns above it.

    Args:
        weights: the names of all averages, whose length makes the first column.
    """
    row, deviations = rows[-1], [name for name in rows[-1]["metrics"] if name.endswith("_std")]
    steps = row["num_inference_steps"]  # None for images that no model drew
    cells = {"weights": row["variant"] or (PUBLISHED if steps else "images"), "steps": str(steps or "-")}
    if "guidance_scale" in row:
        cells["guidance"] = f"{row['guidance_scale']:g}"
    for name, value in row["metrics"].items():
        if name not in deviations:
            deviation = row["metrics"].get(f"{name}_std")
            cells[name] = f"{value:.5g}" + ("" if deviation is None else f" ± {deviation:.2g}")
    width = {name: max(len(name), 20 if f"{name}_std" in deviations else 9) for name in list(cells)[2:]}
    widths = [max(map(len, ("weights", *weights))), 5, *width.values()]
    lines = [*([list(cells)] if len(rows) == 1 else []), list(cells.values())]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths)) for line in lines]


def plot_quality(report: dict[str, Any], target: Path) -> None:
    """Each metric against the number of steps, one line for each average of the weights, as PNG, atomically.

    Where scales of guidance were measured: against these, one line for each average and number of steps.
    """
    from matplotlib.figure import Figure  # no global state and no display

    rows = report["rows"]
    names = [name for name in rows[0]["metrics"] if not name.endswith("_std")]
    lines = curves(rows)
    lengths = row_lengths(len(names))
    figure = Figure(figsize=(4 * max(lengths), 3 * len(lengths)), layout="constrained")
    grid = figure.add_gridspec(len(lengths), math.lcm(*lengths))
    places = [(row, column, length) for row, length in enumerate(lengths) for column in range(length)]
    for name, (row, column, length) in zip(names, places):
        share = math.lcm(*lengths) // length
        panel: Any = figure.add_subplot(grid[row, column * share : (column + 1) * share])
        _plot_metric(panel, lines, name)
        better = "higher" if name in report["higher_is_better"] else "lower"
        title = TITLES.get(name, name.replace("_", " ").capitalize())
        panel.set_title(f"{title}\n({better} is better)", fontsize=10)
    if len(lines) > 1:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(lines), 4), fontsize=8)
    against = f"against {report['reference_images']:,} images of {report['dataset']}"
    features = "" if report["extractor"] == NO_FEATURES else f", features: {report['extractor']}"
    figure.suptitle(f"{report['samples']:,} samples {against}{features}", fontsize=9)
    with atomic_file(target) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def row_lengths(count: int) -> list[int]:
    """How many panels each row has: as equal as they can be, so that no place is empty."""
    rows = math.ceil(count / COLUMNS)
    return [count * (row + 1) // rows - count * row // rows for row in range(rows)]


def curves(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each line of the plot, by its name; along a line, only the number of steps or the guidance varies."""
    guided, lines = "guidance_scale" in rows[0], dict[str, list[dict[str, Any]]]()
    several = len({row["variant"] for row in rows}) > 1
    for row in rows:
        name = row["variant"] or PUBLISHED
        if guided:
            steps = f"{row['num_inference_steps']} step{'s' * (row['num_inference_steps'] > 1)}"
            name = f"{name}, {steps}" if several else steps
        lines.setdefault(name, []).append(row)
    return lines


def _plot_metric(panel: Any, lines: dict[str, list[dict[str, Any]]], name: str) -> None:
    """A metric along the lines, which stand beside each other, so that equal ones are seen, too."""
    guided = "guidance_scale" in next(iter(lines.values()))[0]
    key, label = ("guidance_scale", "scale of guidance") if guided else ("num_inference_steps", "sampling steps")
    counts = sorted({row[key] for rows in lines.values() for row in rows})
    ends = [0.0]
    for number, (line, own) in enumerate(lines.items()):
        own = sorted(own, key=lambda row: row[key])
        aside = 0.12 * (number - (len(lines) - 1) / 2)
        values = [row["metrics"][name] for row in own]
        errors = [row["metrics"][f"{name}_std"] for row in own if f"{name}_std" in row["metrics"]]
        places = [counts.index(row[key]) + aside for row in own]
        style = {
            "marker": MARKERS[number % len(MARKERS)],
            "capsize": 3,
            "linewidth": 1,
            "markersize": 5,
            "clip_on": False,
        }
        panel.errorbar(places, values, errors or None, label=line, **style)
        bars = zip(values, errors or [0.0] * len(values))
        ends += [value + sign * error for value, error in bars for sign in (-1, 1)]
    names = [f"{count:g}" for count in counts]
    panel.set(xlabel=label, xticks=range(len(counts)), xticklabels=names, xlim=(-0.5, len(counts) - 0.5))
    # From 0, so that differences are seen in proportion; a KID may be below it.
    low, high = min(ends), max(ends)
    margin = 0.1 * (high - low) or 1.0
    panel.set_ylim(low - margin if low < 0 else 0, high + margin)
