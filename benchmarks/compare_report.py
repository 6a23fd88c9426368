"""The part of compare.py that shows its figures."""

from pathlib import Path

import numpy as np
from provenance import table


def grouped(report: dict) -> dict[str, list[dict]]:
    out: dict[str, list[dict]] = {}
    for row in report["rows"]:
        out.setdefault(row["method"], []).append(row)
    return out


def lines_of(report: dict) -> list[str]:
    """Markdown: mean over the seeds, and each seed's Frechet distance."""
    columns = ["method", "steps", "Frechet 1 step", "2 steps", "precision 1 / 2", "recall 1 / 2", "each seed, 1 step"]
    columns += ["2 steps", "seconds"]
    compared = any("nearer" in row["results"]["1"] for row in report["rows"])
    columns += ["nearer 1 / 2"] * compared
    started = any("start_seconds" in row for row in report["rows"])  # then what the start took is to be counted
    if started:
        columns += ["minutes", "with the start's"]
    cells = []
    for method, rows in grouped(report).items():

        def mean(metric: str, form: str, rows=rows) -> list[str]:
            return [format(np.mean([row["results"][step][metric] for row in rows]), form) for step in ("1", "2")]

        each = [", ".join(f"{row['results'][s]['frechet']:.3g}" for row in rows) for s in ("1", "2")]
        pairs = [" / ".join(mean(metric, ".2f")) for metric in ("precision", "recall")]
        cells.append([method, str(rows[0]["steps"]), *mean("frechet", ".3g"), *pairs, *each])
        cells[-1].append(
            ", ".join(f"{row['worked_seconds']:.0f}" for row in rows) if "worked_seconds" in rows[0] else ""
        )
        cells[-1] += [" / ".join(mean("nearer", ".2f"))] * compared
        if started:
            minutes = np.mean([row["train_seconds"] for row in rows]) / 60
            cells[-1] += [f"{minutes:.3g}", f"{minutes + rows[0].get('start_seconds', 0.0) / 60:.3g}"]
    flags = [f"- {name}: `{' '.join(flags)}`" for name, flags in report["methods"].items() if flags]
    return [*table(columns, cells), "", *flags]


def plot(report: dict, target: Path) -> None:
    """Frechet distance of every run, one and two steps."""
    from matplotlib.figure import Figure

    methods = grouped(report)
    figure = Figure(figsize=(9, 0.6 * len(methods) + 1.5), layout="constrained")
    axes = figure.subplots()
    for steps, marker in (("1", "o"), ("2", "x")):
        points = [(row["results"][steps]["frechet"], i) for i, rows in enumerate(methods.values()) for row in rows]
        axes.scatter(*zip(*points), marker=marker, label=f"{steps} step{'s' if steps == '2' else ''}")
    axes.set(xscale="log", xlabel=f"Frechet distance ({report['features']})", yticks=range(len(methods)))
    axes.set_yticklabels(list(methods))
    axes.invert_yaxis()
    axes.grid(axis="x", which="both", alpha=0.3)
    axes.legend()
    figure.savefig(target, dpi=120)
