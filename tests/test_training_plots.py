"""The plot of a run: no panel is empty, nothing is hidden without a word, and old logs are read."""

import math
import re

import numpy as np
import pytest
from PIL import Image
from short_run import ICT, run

from diffusers_ict.training import plots
from diffusers_ict.training.log import JSONLines, read_log
from diffusers_ict.training.plots import plot_losses_by_sigma, plot_training, training_figure

LEVELS, STAGE = ("num_levels", "N"), ("stage", "stage")
RANGES = ("0.002-0.05", "0.5-1", "20-80")


def log_of(count, stage=LEVELS, stages=4, loss=None, first=1, **more):
    """Entries in which each stage halves the loss, which then falls by a tenth; `more` are figures of each."""
    entries = []
    for number in range(count):
        at = number * stages // count
        within = (number - at * count / stages) / (count / stages)
        value = 0.5**at * (1 - 0.1 * within) if loss is None else loss(number)
        by_range = {name: value * 10**-place for place, name in enumerate(RANGES) if place < 2 or number % 3 == 0}
        entry = {"step": first + 10 * number, "loss": value, "loss_unweighted": value, "loss_by_sigma": by_range}
        entries.append({**entry, **({stage[0]: at - 1} if stage else {}), "learning_rate": 1e-3, **more})
    return entries


def without(entries, *names):
    return [{name: value for name, value in entry.items() if name not in names} for entry in entries]


ADVERSARY = {"discriminator_loss": 1.4, "discriminator_accuracy": 0.5}
AUGMENTED = {**ADVERSARY, "augment_p": 0.0, "augment_r": -0.2, "augment_tau": 0.05}
LOGS = {
    "stages": log_of(200),
    "one line": log_of(1),
    "two lines": log_of(2, stages=1),
    "N at each of two lines": log_of(2, stages=2),
    "N at each line": log_of(6, stages=6, **ADVERSARY),
    "N at many lines": log_of(300, stages=150),
    "stages of ECT": log_of(72, stage=STAGE, stages=7),
    "no stages": log_of(40, stage=None, stages=1),
    "augmented once": [*log_of(50, **ADVERSARY), *log_of(1, stages=1, first=600, **AUGMENTED)],
    "old": without(log_of(60), "learning_rate", "loss_by_sigma"),
    "old, then resumed": [*without(log_of(60), "learning_rate"), *log_of(1, first=900)],
    "no warm rate yet": log_of(1, learning_rate=0.0),
    "spikes and a wild start": log_of(2000, loss=lambda at: 1e4 if at < 3 else 1e-5 if at == 777 else 1 + at % 7 / 20),
    "loss of 0": log_of(60, loss=lambda at: 0.0),
    "negative": log_of(60, loss=lambda at: math.sin(at)),
}


@pytest.mark.parametrize("name", LOGS)
def test_every_panel_shows_something_and_what_is_outside_is_counted(name):
    entries = LOGS[name]
    figure = training_figure(entries, STAGE if "ECT" in name else None if name == "no stages" else LEVELS)
    figure.canvas.draw()
    assert figure.get_figwidth() == 8
    for axes in figure.axes:
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        shown, outside = 0, set()
        lines = [line for line in axes.lines if line.get_transform() == axes.transData]
        for line in lines:
            x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
            finite = np.isfinite(y)
            assert ((left <= x[finite]) & (x[finite] <= right)).all()
            inside = finite & (bottom <= y) & (y <= top)
            outside |= set(x[finite & ~inside])
            # A line without a neighbour is seen only by its marker.
            alone = inside & ~np.roll(finite, 1) & ~np.roll(finite, -1)
            assert set(np.flatnonzero(alone)) <= set(line.get_markevery() if line.get_marker() == "o" else [])
            shown += inside.sum()
        assert shown, f"{axes.get_ylabel()} is empty"
        told = sum(map(int, re.findall(r"(\d+) of \d+ entries", axes.get_xlabel())))
        assert told == len(outside)
    drawn = [axes.get_ylabel() for axes in figure.axes]
    has = {key for entry in entries for key in entry}
    assert ("learning\nrate" in drawn) == ("learning_rate" in has)
    assert ("weighted loss\nby sigma" in drawn) == ("loss_by_sigma" in has)
    assert ("N" in drawn) == name.startswith("N at")


def test_no_legend_lies_over_curves_or_names(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "_save", lambda figure, target: drawn.append(figure))
    plot_losses_by_sigma(LOGS["stages"], tmp_path / "losses.png")
    for figure in (*drawn, training_figure(LOGS["stages"], LEVELS), training_figure(LOGS["augmented once"], LEVELS)):
        figure.canvas.draw()
        legends = [axes.get_legend().get_window_extent() for axes in figure.axes if axes.get_legend()]
        others = [axes.get_window_extent() for axes in figure.axes]
        others += [text.get_window_extent() for axes in figure.axes for text in (*axes.texts, axes.xaxis.label)]
        assert legends
        assert not any(legend.overlaps(other) for legend in legends for other in others if other.width)


def test_a_wild_start_and_spikes_do_not_squeeze_the_rest_and_are_named():
    panel = training_figure(LOGS["spikes and a wild start"], LEVELS).axes[0]
    bottom, top = panel.get_ylim()
    assert bottom > 0.7
    assert top < 2
    assert panel.get_xlabel() == "1 of 2000 entries below, down to 1e-05; 3 of 2000 entries above, up to 1e+04"
    arrows = {line.get_marker(): list(line.get_xdata()) for line in panel.lines if line.get_marker() in "v^"}
    assert {"v": [7771], "^": [1, 11, 21]}.items() <= arrows.items()


def test_stages_are_named_with_the_change_of_the_loss_in_each():
    panel = training_figure(LOGS["stages"], LEVELS).axes[0]
    texts = [text.get_text() for text in panel.texts]
    # The medians of the quarters are those at 12 % and 88 % of a stage in which the loss falls by 10 %.
    change = f"\N{MINUS SIGN}{100 * (1 - (1 - 0.088) / (1 - 0.012)):.0f} %"
    assert texts == ["loss", *[change] * 4, "N", "-1", "0", "1", "2"]
    smooth = max(panel.lines, key=lambda line: line.get_linewidth())
    assert np.isnan(smooth.get_ydata()).sum() == 4, "a gap after each stage: no median is over two"


def test_a_smoothed_curve_is_the_median_around_each_place():
    points = [(step, float(value)) for step, value in enumerate(np.random.default_rng(0).permutation(400))]
    entries = [{"step": step, "loss": value} for step, value in points]
    (curve,) = plots._medians([entries], lambda entry: entry["loss"])
    assert curve[100] == (100, np.median([value for _, value in points[95:106]]))
    assert curve[0] == (0, np.median([value for _, value in points[:6]]))


def test_pictures_are_written_and_none_of_an_empty_log(tmp_path):
    (tmp_path / "log.jsonl").touch()
    plot_training(tmp_path / "log.jsonl", tmp_path / "training.png")
    plot_losses_by_sigma([], tmp_path / "losses.png")
    plot_losses_by_sigma(LOGS["old"], tmp_path / "losses.png")
    assert not list(tmp_path.glob("*.png"))
    log = JSONLines(tmp_path / "log.jsonl", 0)
    for entry in LOGS["one line"]:
        log.write(entry)
    plot_training(tmp_path / "log.jsonl", tmp_path / "training.png", LEVELS)
    plot_losses_by_sigma(LOGS["stages of ECT"], tmp_path / "losses.png")
    for name in ("training", "losses"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width == 960


def test_the_log_holds_the_learning_rate_of_each_step_also_when_resumed(flags, tmp_path):
    own = [*ICT, *flags, "--lr_scheduler", "cosine", "--lr_warmup_steps", 2, "--max_train_steps", 6]
    assert run(*own, "--output_dir", tmp_path / "whole") == 0
    resumed = ["--resume_from_checkpoint", tmp_path / "whole" / "checkpoint-5", "--output_dir", tmp_path / "resumed"]
    assert run(*own, *resumed) == 0
    expected = [1e-3 * (k / 2 if k < 2 else (1 + math.cos(math.pi * (k - 2) / 4)) / 2) for k in range(6)]
    for name, first in (("whole", 0), ("resumed", 5)):
        entries = read_log(tmp_path / name / "log.jsonl")
        assert [entry["step"] for entry in entries] == list(range(first + 1, 7))
        assert [entry["learning_rate"] for entry in entries] == pytest.approx(expected[first:], abs=1e-12)
        assert len(training_figure(entries, LEVELS).axes) >= 3
