"""Plots of a training run, made from its log."""

from collections.abc import Callable
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from ..files import atomic_file
from .log import read_log

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STAGES = {"num_levels": "N", "stage": "stage"}  # what logs count stages by, where no objective says it; and its symbol
MOST_STAGES = 14  # of more, and of stages that few entries are of, a curve is drawn: CT's grid changes at many steps
SMOOTH_POINTS = 400  # of a smoothed curve, at most
FEW = 30  # so many points are marked, and not smoothed
BLUE, ORANGE = "#0072B2", "#D55E00"  # told apart by all readers (Okabe and Ito)

Entries = list[dict[str, Any]]
Value = Callable[[dict[str, Any]], float | None]


def plot_training(log: Path, target: Path, stage_name: tuple[str, str] | None = None) -> None:
    """Write `training_figure` of a log as PNG, atomically; nothing for a log without entries."""
    if entries := read_log(log):
        _save(training_figure(entries, stage_name), target)


def plot_losses_by_sigma(entries: Entries, target: Path) -> None:
    """Loss over the steps, one line for each range of noise levels, as PNG; nothing where the log has none."""
    if any(entry.get("loss_by_sigma") for entry in entries):
        stage_name = next((item for item in STAGES.items() if item[0] in entries[0]), None)
        _save(_figure(entries, stage_name, [(5.0, _plot_ranges)]), target)


def training_figure(entries: Entries, stage_name: tuple[str, str] | None = None) -> "Figure":
    """What tells whether a run works, over its steps. A panel is there only where the log has data for it.

    - The unweighted loss: each entry thin, running medians bold. It falls where N grows, because the
      outputs that it compares come closer; within a stage it falls as long as the model learns. Stages are bands, and
      above each stands how its last quarter differs from its first. Entries far away from the others are arrows at
      the edge, and are counted below it.
    - The weighted loss by range of noise levels, as medians.
    - The learning rate, and N where it changes too often for bands.
    - With ACT, the losses of the discriminator; with augmentation, its signal r against tau and its strength p.

    Args:
        entries: of a log, one or more; older ones may lack what newer ones have.
        stage_name: `Objective.stage_name`, by which stages are told apart and named.
    """
    key, symbol = stage_name or ("", "")
    has = {name for entry in entries for name, value in entry.items() if value != {}}
    panels: list[tuple[float, Callable[[Any, list[Entries]], None]]] = [(3.0, _plot_loss)]
    if "loss_by_sigma" in has:
        panels.append((2.4, _plot_ranges))
    if "learning_rate" in has:
        panels.append((1.0, lambda panel, stages: _plot_schedule(panel, stages, "learning_rate", "learning\nrate")))
    if key in has and not _are_bands(_stages(entries, key)):
        panels.append((1.0, lambda panel, stages: _plot_schedule(panel, stages, key, symbol)))
    if "discriminator_loss" in has:
        panels.append((1.8, _plot_discriminator))
    if "augment_p" in has:
        panels.append((1.8, _plot_augmentation))
    return _figure(entries, stage_name, panels)


def _figure(
    entries: Entries,
    stage_name: tuple[str, str] | None,
    plots: list[tuple[float, Callable[[Any, list[Entries]], None]]],
) -> "Figure":
    """Panels of the given heights in inches, one below the other, with the stages as bands."""
    from matplotlib.figure import Figure  # no global state and no display
    from matplotlib.ticker import MaxNLocator

    key, symbol = stage_name or ("", "")
    stages = _stages(entries, key)
    bands = key in entries[0] and _are_bands(stages)
    stages = stages if bands else [entries]
    heights = [height for height, _ in plots]
    figure = Figure(figsize=(8, 0.8 + sum(heights)), layout="constrained")
    panels = figure.subplots(len(plots), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    first, last = entries[0]["step"], entries[-1]["step"]
    margin = 0.02 * (last - first) or 1.0
    panels[0].set_xlim(first - margin, last + margin)
    for panel, (_, plot) in zip(panels, plots):
        plot(panel, stages)
        if bands:
            _shade(panel, stages)
    if bands:
        _name_stages(panels[0], stages, key, symbol)
    panels[-1].set(xlabel="optimizer step")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    figure.align_ylabels(panels)
    return figure


def _save(figure: "Figure", target: Path) -> None:
    with atomic_file(target) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def _stages(entries: Entries, key: str) -> list[Entries]:
    return [list(stage) for _, stage in groupby(entries, key=lambda entry: entry.get(key))]


def _are_bands(stages: list[Entries]) -> bool:
    return len(stages) == 1 or (len(stages) <= MOST_STAGES and median(map(len, stages)) >= 2)


def _bounds(stages: list[Entries], panel: Any) -> list[float]:
    """Where bands begin, and where the last one ends."""
    left, right = panel.get_xlim()
    return [left, *(stage[0]["step"] for stage in stages[1:]), right]


def _shade(panel: Any, stages: list[Entries]) -> None:
    for number, (start, end) in enumerate(pairwise(_bounds(stages, panel))):
        panel.axvspan(start, end, color="black", alpha=0.03 + 0.07 * (number % 2), linewidth=0)


def _name_stages(panel: Any, stages: list[Entries], key: str, symbol: str) -> None:
    """A line of names above the bands, and above the loss one of its change within each that has entries enough."""
    bounds = _bounds(stages, panel)
    changes = [_change([entry["loss_unweighted"] for entry in stage]) for stage in stages]
    rows = [(symbol, [f"{stage[0][key]:g}" for stage in stages])]
    legend = panel.get_legend() is not None  # of another panel than that of the loss; the names stand above it
    if any(changes) and not legend:
        rows.insert(0, ("loss", changes))
    style = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "fontsize": 8}
    for row, (title, names) in enumerate(rows):
        above = 7 + 11 * row + 15 * legend
        panel.annotate(title, (bounds[0], 1), (-6, above), ha="right", fontweight="bold", **style)
        for name, start, end in zip(names, bounds, bounds[1:]):
            if (end - start) / (bounds[-1] - bounds[0]) > 0.011 * len(name):  # else it would run into the next one
                panel.annotate(name, ((start + end) / 2, 1), (0, above), ha="center", **style)


def _change(losses: list[float]) -> str:
    """The last quarter against the first, as in "-12 %"; "" for few entries, and for losses that are not above 0."""
    quarter = len(losses) // 4
    if quarter < 2 or min(losses) <= 0:
        return ""
    change = median(losses[-quarter:]) / median(losses[:quarter]) - 1
    return f"{100 * change:+.0f} %".replace("-", "\N{MINUS SIGN}")


def _are_few(stages: list[Entries]) -> bool:
    return sum(map(len, stages)) <= FEW


def _points(stage: Entries, value: Value) -> list[tuple[float, float]]:
    return [(entry["step"], number) for entry in stage if (number := value(entry)) is not None]


def _medians(stages: list[Entries], value: Value) -> list[list[tuple[float, float]]]:
    """Points of a smoothed curve, by stage: running medians, or the entries themselves where these are few."""
    total = sum(map(len, stages))
    half = 0 if _are_few(stages) else max(2, total // 80)
    curves = []
    for stage in stages:
        points = _points(stage, value)
        values = [number for _, number in points]
        places = sorted({*range(0, len(points), max(1, total // SMOOTH_POINTS)), *range(len(points))[-1:]})
        curves.append([(points[at][0], median(values[max(0, at - half) : at + half + 1])) for at in places])
    return curves


def _draw(panel: Any, curves: list[list[tuple[float, float]]], few: bool, **style: Any) -> None:
    """One line with a gap between stages; points are marked where the log has few, or where they stand alone."""
    points, marked = list[tuple[float, float]](), list[int]()
    for piece in curves:
        if few or len(piece) == 1:
            marked += range(len(points), len(points) + len(piece))
        points += [*piece, (float("nan"), float("nan"))]
    panel.plot(*zip(*points), marker="o" if marked else "", markersize=3, markevery=marked, **style)


def _plot_loss(panel: Any, stages: list[Entries]) -> None:
    """Every entry and the smoothed curve, with what lies far away at the edge."""

    def value(entry: dict[str, Any]) -> float:
        return entry["loss_unweighted"]

    points = [point for stage in stages for point in _points(stage, value)]
    curves = _medians(stages, value)
    scale = "log" if all(loss > 0 for _, loss in points) else "linear"
    panel.set(yscale=scale, ylabel="unweighted loss")
    if not _are_few(stages):
        panel.plot(*zip(*points), linewidth=0.7, color=BLUE, alpha=0.45)
    _draw(panel, curves, _are_few(stages), color=BLUE, linewidth=1.8)
    _limit(panel, points)


def _limit(panel: Any, points: list[tuple[float, float]]) -> None:
    """Limits that a few far entries do not decide; these are arrows at the edge, and are counted below."""
    losses = sorted(loss for _, loss in points)
    spare = len(losses) // 50
    low, high = losses[spare], losses[-1 - spare]
    transform = panel.yaxis.get_transform()
    back = transform.inverted()
    bottom, top = transform.transform([low, high])
    margin = 0.35 * (top - bottom) or 0.1 * abs(top) or 0.1
    bottom, top = back.transform([bottom - margin, top + margin])
    bottom = bottom if losses[0] < bottom else None
    top = top if losses[-1] > top else None
    panel.set_ylim(bottom, top)
    told = []
    for edge, beyond, marker, words in ((0, bottom, "v", "below, down to"), (1, top, "^", "above, up to")):
        outside = [] if beyond is None else [(s, v) for s, v in points if (v > beyond if edge else v < beyond)]
        if outside:
            steps, values = zip(*outside)
            place = {"transform": panel.get_xaxis_transform(), "clip_on": False}
            panel.plot(steps, [edge] * len(steps), marker, markersize=4, color=ORANGE, **place)
            extreme = max(values) if edge else min(values)
            told.append(f"{len(outside)} of {len(points)} entries {words} {extreme:.2g}")
    if told:
        panel.set_xlabel("; ".join(told), fontsize=8, color=ORANGE, loc="right")


def _plot_ranges(panel: Any, stages: list[Entries]) -> None:
    from matplotlib import colormaps

    names = {name for stage in stages for entry in stage for name in entry.get("loss_by_sigma", {})}
    ordered = sorted(names, key=lambda name: float(name.split("-")[0]))
    for number, name in enumerate(ordered):
        curves = _medians(stages, partial(_of_range, name))
        color = colormaps["viridis"](0.92 * number / max(1, len(ordered) - 1))
        _draw(panel, curves, _are_few(stages), color=color, linewidth=1.4, label=name.replace("-", "\N{EN DASH}"))
    values = [v for line in panel.lines for v in line.get_ydata() if v == v]
    panel.set(yscale="log" if min(values) > 0 else "linear", ylabel="weighted loss\nby sigma")
    _legend(panel, len(ordered))


def _of_range(name: str, entry: dict[str, Any]) -> float | None:
    return entry.get("loss_by_sigma", {}).get(name)


def _plot_schedule(panel: Any, stages: list[Entries], key: str, label: str) -> None:
    _curve(panel, stages, key, color="black")
    panel.set(ylabel=label)
    panel.margins(y=0.15)
    if panel.get_ylim()[1] > 0:
        panel.set_ylim(bottom=min(0, panel.dataLim.y0))
    if key == "learning_rate":
        panel.ticklabel_format(axis="y", scilimits=(-2, 4))


def _plot_discriminator(panel: Any, stages: list[Entries]) -> None:
    for name, color in (("discriminator_loss", BLUE), ("discriminator_accuracy", ORANGE)):
        _curve(panel, stages, name, color=color)
    panel.set(ylabel="discriminator", ylim=(0, None))
    _legend(panel)


def _plot_augmentation(panel: Any, stages: list[Entries]) -> None:
    for name, style, color in (("augment_r", "-", BLUE), ("augment_tau", "--", ORANGE)):
        _curve(panel, stages, name, linestyle=style, color=color)
    panel.set(ylabel="r and tau")
    _legend(panel)
    strength = panel.twinx()
    _curve(strength, stages, "augment_p", color="black", linestyle=":")
    strength.set(ylim=(-0.02, 1.02), ylabel="p (dotted)")


def _curve(panel: Any, stages: list[Entries], name: str, **style: Any) -> None:
    points = _points([entry for stage in stages for entry in stage], lambda entry: entry.get(name))
    _draw(panel, [points], _are_few(stages), linewidth=1.1, label=name, **style)


def _legend(panel: Any, columns: int = 3) -> None:
    """Above the curves."""
    above = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
    panel.legend(**above, ncols=columns, frameon=False, fontsize=8, handlelength=1, columnspacing=1)
