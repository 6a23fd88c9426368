"""The part of compare.py that shows its figures."""

from pathlib import Path

import numpy as np
from provenance import heading


def grouped(report: dict) -> dict[str, list[dict]]:
    out: dict[str, list[dict]] = {}
    for row in report["rows"]:
        out.setdefault(row["method"], []).append(row)
    return out


def table(report: dict) -> str:
    """Markdown: mean over the seeds, and each seed's Frechet distance."""
    head = (
        "| method | steps | Frechet 1 step | 2 steps | precision 1 / 2 | recall 1 / 2 | each seed, 1 step | 2 steps |"
    )
    origin = f"{heading(report)}, {report['samples']} samples, {report['features']}."
    started = any("start_seconds" in row for row in report["rows"])  # then what the start took is to be counted
    if started:
        head += " minutes | with the start's |"
    lines = [origin, "", head, "|" + "---|" * head.count(" |")]
    for method, rows in grouped(report).items():

        def mean(step: str, metric: str, rows=rows) -> float:
            return float(np.mean([row["results"][step][metric] for row in rows]))

        each = [", ".join(f"{row['results'][s]['frechet']:.3g}" for row in rows) for s in ("1", "2")]
        lines.append(
            f"| {method} | {rows[0]['steps']} | {mean('1', 'frechet'):.3g} | {mean('2', 'frechet'):.3g} | "
            f"{mean('1', 'precision'):.2f} / {mean('2', 'precision'):.2f} | "
            f"{mean('1', 'recall'):.2f} / {mean('2', 'recall'):.2f} | {each[0]} | {each[1]} |"
            + (minutes(rows) if started else "")
        )
    flags = [f"- {name}: `{' '.join(flags)}`" for name, flags in report["methods"].items() if flags]
    return "\n".join([*lines, "", *flags]) + "\n"


def minutes(rows: list[dict]) -> str:
    """Two cells: the mean time of the runs, and the same with the time that their start took."""
    own = float(np.mean([row["train_seconds"] for row in rows])) / 60
    return f" {own:.3g} | {own + rows[0].get('start_seconds', 0.0) / 60:.3g} |"


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
