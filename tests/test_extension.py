"""A new objective, a new metric and a new data source touch nothing else: each is one object, defined here."""

import dataclasses
import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import write_npz
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image, ImageDraw
from short_run import assert_bitwise_equal, final_tensors, words

from diffusers_ict import ACT, ICTScheduler, Objective, squared_l2
from diffusers_ict.data.load import load_images
from diffusers_ict.errors import UserError
from diffusers_ict.evaluation import FID, Metric
from diffusers_ict.evaluation.evaluate import evaluate
from diffusers_ict.evaluation.settings import EvaluationSettings
from diffusers_ict.training.log import read_log
from diffusers_ict.training.recipe import Recipe, parse
from diffusers_ict.training.train import train


@dataclass(frozen=True)
class Continuous(Objective):
    """No grid: ln(sigma_next) uniform, and sigma a fraction of it that approaches 1 as training goes on."""

    low: float = 0.01
    high: float = 80.0

    def fraction(self, step, total_steps):
        return 1 - 0.5 ** (1 + 4 * step // total_steps)

    def sample_pair(self, uniform, step, total_steps):
        sigma_next = self.low * (self.high / self.low) ** uniform
        return sigma_next * self.fraction(step, total_steps), sigma_next

    def distance(self, pair):
        return squared_l2(pair.student, pair.target)

    def weighting(self, sigma, sigma_next):
        return 1 / (sigma_next - sigma)

    def teacher_decay(self, step, total_steps):
        return 0.5

    def schedule(self, step, total_steps):
        return {"fraction": self.fraction(step, total_steps)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective", [Continuous(), ACT(Continuous(), r1_interval=2, augment=True)], ids=["ict", "act"]
)
def test_an_objective_without_a_grid_trains_resumes_and_is_logged(objective, flags, tmp_path, capsys):
    def recipe(name, **more):
        own = words(*flags, "--max_train_steps", 8, "--checkpointing_steps", 4, "--output_dir", tmp_path / name)
        return dataclasses.replace(parse(own, "test", ""), objective={}, **more)

    train(recipe("whole"), objective=objective)
    assert "fraction    4 stages: 0.5 from step 0, 0.75 from step 2" in capsys.readouterr().out
    entries = read_log(tmp_path / "whole" / "log.jsonl")
    assert [entry["fraction"] for entry in entries] == [0.5, 0.5, 0.75, 0.75, 0.875, 0.875, 0.9375, 0.9375]
    weight = Continuous().mean_weight(0, 8)
    assert entries[0]["loss_unweighted"] == pytest.approx(entries[0]["loss"] / weight)

    start = str(tmp_path / "whole" / "checkpoint-4")
    train(recipe("resumed", resume_from_checkpoint=start), objective=objective)
    assert_bitwise_equal(tmp_path / "whole", tmp_path / "resumed")
    assert any(name.startswith("teacher/") for name in final_tensors(tmp_path / "whole"))
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "with an objective of its own, `" in card
    assert "Continuous(low=0.01, high=80.0)" in card
    with pytest.raises(UserError, match=r"the checkpoint was made with objective .*Continuous|made with the options"):
        train(recipe("other", resume_from_checkpoint=start))


def test_the_mean_weight_and_the_levels_of_an_objective_without_a_grid(generator):
    objective = Continuous()
    # The mean over u of 2 / (low (high / low)^u), in closed form.
    exact = 2 * (1 / objective.low - 1 / objective.high) / np.log(objective.high / objective.low)
    assert objective.mean_weight(0, 8) == pytest.approx(exact, rel=1e-5)
    sigma, sigma_next = ICTScheduler().training_sigmas(objective, 6, 8, 512, generator)
    torch.testing.assert_close(sigma, sigma_next * 0.9375)
    assert sigma_next.min() > 0.01
    assert sigma_next.max() < 80


def brightness(samples, reference, extractor, settings):
    difference = samples.features.mean() - reference.features.mean()
    return {"brightness": settings["scale"] * difference.abs().item()}


def test_a_metric_is_one_object(tmp_path):
    metric = Metric("brightness", brightness, lambda dim: 2, lambda samples, reference: {"scale": 255}, False)
    data = write_npz(tmp_path / "data.npz")
    images = np.load(data)["images"]
    np.savez(tmp_path / "dark.npz", images=images // 2)
    settings = {"dataset_name": str(data), "extractor": "pixels", "cache_dir": str(tmp_path / "cache")}
    dark, out = str(tmp_path / "dark.npz"), str(tmp_path / "out")
    report = evaluate(dark, EvaluationSettings(**settings, output_dir=out), metrics=[metric])
    expected = images.mean() - (images // 2).mean()
    assert report["rows"][0]["metrics"] == {"brightness": pytest.approx(expected, rel=1e-5)}
    assert report["settings"] == {"brightness": {"scale": 255}}
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == report
    fid = dataclasses.replace(FID, minimum=lambda dim: 2)
    both = evaluate(dark, EvaluationSettings(**settings, output_dir=out, num_samples=64), metrics=[metric, fid])
    assert list(both["rows"][0]["metrics"]) == ["brightness", "frechet"]


def drawn_squares(count: int):
    """Squares that are drawn on the spot, by size: a data set without any file."""
    for number in range(count):
        picture = Image.new("L", (16, 16))
        ImageDraw.Draw(picture).rectangle((0, 0, 4 + 8 * (number % 2), 4 + 8 * (number % 2)), fill=255)
        yield {"image": picture, "label": number % 2}


def test_a_data_source_is_one_generator(tmp_path):
    names = ClassLabel(names=["small", "large"])
    features = Features({"image": ImageFeature(), "label": names})
    squares = Dataset.from_generator(drawn_squares, features, gen_kwargs={"count": 6})
    images = load_images(dataset=squares, class_conditional=True, resolution=8)
    assert images.pixels.shape == (6, 1, 8, 8)
    assert images.class_names == ("small", "large")
    large = images.pixels[images.labels == 1].float().mean()
    assert large > 2 * images.pixels[images.labels == 0].float().mean()

    recipe = Recipe(max_train_steps=8, train_batch_size=4, num_validation_images=2, class_conditional=True,
                    output_dir=str(tmp_path / "out"))  # fmt: skip
    train(recipe, dataset=images)
    assert json.loads((tmp_path / "out" / "labels.json").read_text())["id2label"] == {"0": "small", "1": "large"}
