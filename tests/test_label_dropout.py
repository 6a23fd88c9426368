"""Images learned without their labels: what the network is told, what is saved, and guidance by it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, write_npz
from diffusers import ConsistencyModelPipeline
from evaluated import arguments, refused
from huggingface_hub import ModelCard
from short_run import ACT, ICT, assert_bitwise_equal, assert_refused, run

from diffusers_ict import ConsistencyPipeline
from diffusers_ict.commands import evaluate, sample
from diffusers_ict.data.batches import Batches
from diffusers_ict.data.draw import Draw
from diffusers_ict.data.references import References
from diffusers_ict.evaluation.samples import as_arrays, draw_in_turn
from diffusers_ict.formulas.posterior_mean import posterior_mean
from diffusers_ict.hub.check_repository import check_repository
from diffusers_ict.web.build import _images


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory) -> Path:
    """A run of a moment that drops labels, and its data beside it."""
    base = tmp_path_factory.mktemp("unlabelled")
    write_npz(base / "data.npz", count=100)
    own = ["--dataset_name", base / "data.npz", "--class_conditional", "--label_dropout", 0.3, "--train_batch_size", 4]
    own += ["--max_train_steps", 8, "--ema_decays", 0.9, 0.1, "--num_validation_images", 4]
    assert run(*own, "--output_dir", base / "run") == 0
    return base / "run"


def endless(labels: torch.Tensor):
    """Micro batches of 5 whose images are their labels."""
    while True:
        for part in labels.split(5):
            yield {"x": part[:, None, None, None].expand(-1, 1, 2, 2).to(torch.uint8), "label": part}


def test_labels_are_dropped_with_their_probability_and_the_rest_stay():
    truth, told = torch.arange(40) % 4, []
    batches = Batches(endless(truth), 40, 5, label_dropout=0.25, unlabelled=4)
    for step in range(50):
        sigma = torch.ones(40, dtype=torch.float64)
        told.append(torch.cat([b.labels for b in batches.step(Draw(0, step, 40, "cpu"), sigma, 2 * sigma)]))
    told = torch.stack(told)
    dropped = told == 4
    assert abs(dropped.double().mean() - 0.25) < 4 * (0.25 * 0.75 / 2000) ** 0.5
    assert dropped.any(0).all()
    assert torch.equal(told[~dropped], truth.expand(50, -1)[~dropped])


def test_the_mean_of_an_image_without_label_is_over_references_of_all_classes():
    generator = torch.Generator().manual_seed(0)
    x, noise, others = (torch.randn(n, 1, 4, 4, generator=generator) for n in (6, 6, 20))
    sigma, labels, theirs = torch.full((6,), 2.0), torch.tensor([0, 1, 4, 2, 4, 3]), torch.arange(20) % 4
    mean = posterior_mean(x, noise, sigma, others, labels, theirs, unlabelled=4)
    expected = posterior_mean(x, noise, sigma, others, labels, theirs)
    expected[labels == 4] = posterior_mean(x, noise, sigma, others)[labels == 4]
    assert torch.equal(mean, expected)
    references = References(iter([{"x": others, "label": theirs}]), 20, transform=lambda x, *_: x)
    batches = Batches(
        iter([{"x": x, "label": labels}]), 6, 6, references=references, transform=lambda x, *_: x, unlabelled=4
    )
    (batch,) = batches.step(Draw(0, 0, 6, "cpu"), sigma, sigma)
    assert torch.equal(batch.mean, posterior_mean(x, batch.noise, sigma, others, labels, theirs, unlabelled=4))


@pytest.mark.parametrize("loss", [ICT, pytest.param(ACT, marks=pytest.mark.slow)])
def test_a_resumed_run_drops_the_same_labels(loss, flags, tmp_path):
    config = tmp_path / "classes.json"  # without num_class_embeds, which follows from the data
    own = json.loads(Path(flags[3]).read_text())
    config.write_text(json.dumps({name: value for name, value in own.items() if name != "num_class_embeds"}))
    shared = [*loss, *flags, "--model_config_name_or_path", config, "--class_conditional", "--label_dropout", 0.5]
    assert run(*shared, "--output_dir", tmp_path / "whole") == 0
    parts = [*shared, "--output_dir", tmp_path / "parts"]
    assert run(*parts, "--max_train_minutes", 1e-9) == 3
    assert run(*parts, "--resume_from_checkpoint", "latest") == 0
    assert_bitwise_equal(tmp_path / "whole", tmp_path / "parts")


def test_the_last_class_is_none_and_is_never_drawn_by_itself(unlabelled):
    pipeline = ConsistencyPipeline.from_pretrained(unlabelled)
    assert (pipeline.num_classes, pipeline.unlabelled, pipeline.unet.config.num_class_embeds) == (4, True, 5)
    assert json.loads((unlabelled / "labels.json").read_text()) == {"id2label": {}, "unlabelled": True}
    assert pipeline._labels(200, None, torch.Generator().manual_seed(0)).unique().tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="class_labels must lie within 0 and 3"):
        pipeline(class_labels=4)
    assert _images(pipeline)["num_classes"] == 4
    assert json.loads((unlabelled / "run.json").read_text())["classes"] == 4
    assert ConsistencyPipeline.from_pipe(pipeline).unlabelled
    other = ConsistencyPipeline.from_pretrained(unlabelled, variant="ema1")
    assert (pipeline.unet.class_embedding.weight != other.unet.class_embedding.weight).any(1).all(), "all were trained"


def test_it_is_saved_again_and_stock_draws_it(unlabelled, tmp_path):
    pipeline = ConsistencyPipeline.from_pretrained(unlabelled)
    pipeline.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "labels.json").read_bytes() == (unlabelled / "labels.json").read_bytes()
    stock = ConsistencyModelPipeline.from_pretrained(unlabelled)
    drawn = [
        each(2, class_labels=[1, 1], num_inference_steps=2, generator=torch.manual_seed(0), output_type="np").images
        for each in (pipeline, stock)
    ]
    assert np.array_equal(*drawn)


def test_guidance_leads_away_from_the_output_without_labels(unlabelled):
    pipeline = ConsistencyPipeline.from_pretrained(unlabelled)
    pipeline.scheduler.register_to_config(clip_denoised=False)
    z, labels = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 3, 0, 1])
    asked = {"latents": z, "output_type": "latent", "class_labels": labels}
    plain = pipeline(6, **asked).images
    assert torch.equal(pipeline(6, **asked, guidance_scale=1).images, plain)
    guided = pipeline(6, **asked, guidance_scale=1.5).images
    pipeline.unlabelled = False  # so that class 4 can be asked for
    without = pipeline(6, **{**asked, "class_labels": 4}).images
    assert not torch.allclose(without, plain)
    torch.testing.assert_close(guided, without + 1.5 * (plain - without), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"needs a guide.*label_dropout"):
        pipeline(6, **asked, guidance_scale=1.5)


def test_the_program_draws_what_the_pipeline_draws_with_guidance(unlabelled, tmp_path, capsys):
    pipeline = ConsistencyPipeline.from_pretrained(unlabelled)
    guide = ConsistencyPipeline.from_pretrained(unlabelled, variant="ema1").unet
    for name, words, guidance in (
        ("plain", [], {}),
        ("led", ["--guidance_scale", "1.5"], {"guidance_scale": 1.5}),
        ("guided", ["--guidance_scale", "1.5", "--guide", "ema1"], {"guidance_scale": 1.5, "guide": guide}),
    ):
        asked = [str(unlabelled), "--num_samples", "8", *words, "--output", str(tmp_path / f"{name}.npy")]
        assert sample.main(asked) == 0
        expected = as_arrays(pipeline, draw_in_turn(pipeline, 8, 2, 0, None, guidance))
        assert np.array_equal(np.load(tmp_path / f"{name}.npy"), expected)
    drawn = [np.load(tmp_path / f"{name}.npy") for name in ("plain", "led", "guided")]
    assert not np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[1], drawn[2])
    for words, told in (
        (["--guidance_scale", "0"], "--guidance_scale must be a positive number, got 0"),
        (["--guidance_scale", "nan"], "--guidance_scale must be a positive number, got nan"),
        (["--guide", "ema1"], "--guide does nothing at a scale of 1"),
        (["--guidance_scale", "2", "--guide", "ema7"], "ema7"),
    ):
        refused_by_sample(capsys, told, unlabelled, *words)
    model = shutil.copytree(unlabelled, tmp_path / "run")
    (model / "labels.json").unlink()
    refused_by_sample(capsys, "was not trained with label_dropout", model, "--guidance_scale", "2")


def refused_by_sample(capsys, told: str, model: Path, *words: str) -> None:
    """Nothing is drawn, and one sentence says why."""
    output = model.parent / "refused.npy"
    assert sample.main([str(model), *words, "--output", str(output)]) == 2
    assert told in capsys.readouterr().err
    assert not output.exists()


def test_the_card_says_how_to_guide(unlabelled):
    told = (unlabelled / "README.md").read_text()
    assert "`guidance_scale=1.5`" in told
    assert "The last class of the network stands for no class." in told


def test_the_report_the_plot_and_the_card_show_the_curve(unlabelled, tmp_path, capsys):
    model = shutil.copytree(unlabelled, tmp_path / "run")
    shutil.copy(unlabelled.parent / "data.npz", tmp_path / "data.npz")
    scales = ["--guidance_scales", 1, 1.5, "--variants", "published"]
    assert evaluate.main(arguments(model, tmp_path, "--steps", 1, 2, *scales)) == 0
    rows = json.loads((model / "evaluation.json").read_text())["rows"]
    assert [(row["num_inference_steps"], row["guidance_scale"]) for row in rows] == [(1, 1), (1, 1.5), (2, 1), (2, 1.5)]
    assert [line.split()[:3] for line in capsys.readouterr().out.splitlines() if line.startswith("published")] == [
        ["published", "1", "1"], ["published", "1", "1.5"], ["published", "2", "1"], ["published", "2", "1.5"]
    ]  # fmt: skip
    text = (model / "README.md").read_text()
    assert f"| 2 | published | 1.5 | {rows[3]['metrics']['frechet']:.4g} |" in text
    assert "![Quality against the scale of guidance](evaluation.png)" in text
    values = {result.metric_name: result.metric_value for result in ModelCard(text).data.eval_results}
    assert values["frechet, 2 steps"] == float(f"{rows[2]['metrics']['frechet']:.4g}"), "that without guidance"
    plain = tmp_path / "plain"
    assert evaluate.main(arguments(model, tmp_path, "--steps", 1, 2, *scales[3:], "--output_dir", plain)) == 0
    same = json.loads((plain / "evaluation.json").read_text())["rows"]
    assert [row["metrics"] for row in same] == [row["metrics"] for row in rows[::2]]
    assert "guidance_scale" not in same[0]
    led = ["--guidance_scales", 1.5, "--guide", "ema1", *scales[3:], "--output_dir", tmp_path / "led"]
    assert evaluate.main(arguments(model, tmp_path, "--steps", 1, *led)) == 0
    report = json.loads((tmp_path / "led" / "evaluation.json").read_text())
    assert report["guide"] == "ema1"
    assert report["rows"][0]["metrics"] != rows[1]["metrics"]


def test_what_cannot_be_measured_or_learned_is_one_sentence(unlabelled, flags, tmp_path, capsys):
    own = ["--output_dir", tmp_path / "out"]
    assert_refused(tmp_path, capsys, "set --class_conditional", *ICT, *flags, "--label_dropout", 0.1, *own)
    config = tmp_path / "four.json"
    config.write_text(json.dumps({**TINY, "num_class_embeds": 4}))
    classes = ["--class_conditional", "--label_dropout", 0.1, "--model_config_name_or_path", config]
    message = "made for 4 classes and the run has 5; set --class_conditional and --label_dropout, which adds one"
    assert_refused(tmp_path, capsys, message, *ICT, *flags, *classes, *own)
    shutil.copy(unlabelled.parent / "data.npz", tmp_path / "data.npz")
    for words, told in (
        (["--guidance_scales", 0], "--guidance_scales must be positive"),
        (["--guidance_scales", 2, 2], "none twice"),
        (["--guide", "ema1"], "--guide does nothing at a scale of 1"),
        (["--guidance_scales", 2, "--guide", "ema7"], "--guide may be published, ema1"),
    ):
        refused(capsys, told, *arguments(unlabelled, tmp_path, *words, "--output_dir", tmp_path / "report"))
    model = shutil.copytree(unlabelled, tmp_path / "run")
    (model / "labels.json").unlink()
    refused(capsys, "was not trained with label_dropout", *arguments(model, tmp_path, "--guidance_scales", 2))


def test_the_check_of_a_repository_says_what_its_last_class_is(unlabelled):
    (told,) = (finding.text for finding in check_repository(str(unlabelled)) if finding.topic == "images")
    assert told.endswith("5 classes, the last of which stands for none.")
