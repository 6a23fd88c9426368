"""How close the samples of a model of pairs are to the images of the data: figures, evaluations, and refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_unet, pictures, write_npz
from evaluated import refused
from PIL import Image
from torch import nn

from diffusers_ict import ConsistencyPipeline, ICTScheduler
from diffusers_ict.commands import evaluate, inspect_model, sample
from diffusers_ict.conversion import convert, save_converted
from diffusers_ict.data.load import load_images
from diffusers_ict.errors import UserError
from diffusers_ict.evaluation.paired import paired_metrics, psnr, ssim
from diffusers_ict.evaluation.samples import row_of
from diffusers_ict.objectives.lpips import LPIPS
from diffusers_ict.web.build import build_page
from diffusers_ict.web.onnx import make_onnx


@pytest.fixture
def model(tmp_path: Path) -> Path:
    made = ConsistencyPipeline(make_unet(in_channels=4, out_channels=3, sample_size=16).eval(), ICTScheduler())
    made.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def given(tmp_path: Path, model: Path) -> list[str]:
    """Words of an evaluation of the model on data of its kind."""
    images, grey = pictures(40, side=16)
    np.savez(tmp_path / "pairs.npz", image=images, grey=grey)
    return [
        *(str(model), "--dataset_name", str(tmp_path / "pairs.npz"), "--image_column", "image", "--num_samples", "30"),
        *("--extractor", "pixels", "--batch_size", "7", "--cache_dir", str(tmp_path / "cache"), "--steps", "1"),
        *("--output_dir", str(tmp_path / "out")),
    ]


COLUMN = ["--conditioning_image_column", "grey"]


def some_images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, 256, (4, 3, 17, 20), generator=generator, dtype=torch.uint8)
    noise = torch.randint(-20, 21, targets.shape, generator=generator)
    return (targets + noise).clamp(0, 255).to(torch.uint8), targets


def test_psnr_and_ssim_equal_torchmetrics(fidelity):
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    images, targets = some_images()
    x, y = images.double(), targets.double()
    options = {"data_range": 255.0, "reduction": "none"}
    assert torch.allclose(psnr(images, targets), peak_signal_noise_ratio(x, y, **options, dim=(1, 2, 3)), rtol=1e-6)
    expected = structural_similarity_index_measure(x, y, **options)
    assert torch.allclose(ssim(images, targets), expected, rtol=1e-6)
    assert torch.allclose(ssim(targets, targets), torch.ones(4, dtype=torch.float64))


def test_psnr_of_equal_images_is_that_of_rounding():
    _, targets = some_images()
    assert psnr(targets, targets).tolist() == pytest.approx([20 * np.log10(255 * 12**0.5)] * 4)
    assert psnr(targets, (targets.int() ^ 1).to(torch.uint8)).tolist() == pytest.approx([20 * np.log10(255)] * 4)


def test_an_evaluation_compares_each_sample_with_the_image_of_its_condition(tmp_path, model, given):
    assert evaluate.main([*given, *COLUMN, "--metrics", "psnr", "ssim", "kid"]) == 0
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    figures = report["rows"][0]["metrics"]
    data = load_images(dataset_name=given[2], image_column="image", conditioning_image_column="grey")
    rows = row_of(data, 0)(torch.arange(30))
    assert sorted(rows.tolist()) != rows.tolist()
    assert len(set(rows.tolist())) == 30
    from diffusers_ict.evaluation.samples import conditions_of, drawer

    pipeline = ConsistencyPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    conditions = conditions_of(pipeline, data, 0)
    assert torch.equal(conditions(torch.arange(30)), data.condition.pixels[rows])
    drawn = drawer(pipeline, None, 0, [80.0], conditions)(torch.arange(30))
    assert figures["psnr"] == pytest.approx(psnr(drawn, data.pixels[rows]).mean().item(), rel=1e-5)
    assert figures["ssim"] == pytest.approx(ssim(drawn, data.pixels[rows]).mean().item(), rel=1e-5)
    assert figures.keys() == {"psnr", "ssim", "kid", "kid_std"}
    assert report["higher_is_better"] == ["psnr", "ssim"]
    assert evaluate.main([*given, *COLUMN, "--metrics", "psnr", "--extractor", "inception"]) == 0  # which is not needed
    alone = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert alone["rows"][0]["metrics"] == {"psnr": figures["psnr"]}
    assert alone["extractor"] == "nothing"


def test_lpips_is_that_of_the_given_weights_on_images_as_they_are(tmp_path, monkeypatch):
    class Halves(nn.Module):
        def forward(self, x):
            return [x, x[..., ::2]]

    net = LPIPS(Halves(), [torch.ones(3), torch.rand(3)], smallest=0)
    monkeypatch.setattr(LPIPS, "from_safetensors", classmethod(lambda cls, path, smallest: net))
    (metric,) = paired_metrics(["lpips"], (3, 17, 20), "weights", torch.device("cpu"))
    images, targets = some_images()
    expected = net(images.float() / 127.5 - 1, targets.float() / 127.5 - 1)
    assert torch.equal(metric.compute(images, targets), expected)
    assert not metric.higher_is_better
    monkeypatch.undo()
    for shape, weights, message in (
        ((3, 8, 16), None, "at least 16 pixels a side, got 16x8"),
        ((4, 16, 16), None, "1 or 3 channels, got 4"),
        ((3, 16, 16), str(tmp_path / "none"), "`lpips_weights` cannot be used"),
    ):
        with pytest.raises(UserError, match=message):
            paired_metrics(["lpips"], shape, weights, torch.device("cpu"))
    with pytest.raises(UserError, match="ssim needs images of at least 11 pixels"):
        paired_metrics(["psnr", "ssim"], (3, 16, 10), None, torch.device("cpu"))


def test_what_does_not_fit_a_model_of_pairs_is_refused(tmp_path, capsys, model, given):
    ConsistencyPipeline(make_unet(in_channels=3, out_channels=3, sample_size=16), ICTScheduler()).save_pretrained(
        tmp_path / "plain"
    )
    plain = [str(tmp_path / "plain"), *given[1:]]
    refused(capsys, "given images of 1 channels, and the conditions of the data have none", *given, "--metrics", "psnr")
    refused(capsys, "have 3: set", *given, "--metrics", "psnr", "--conditioning_image_column", "image")
    refused(capsys, "the metric psnr compares images with", *plain, "--metrics", "psnr")
    refused(capsys, "means nothing for a model that is given no images", *plain, *COLUMN, "--metrics", "kid")
    uniform = [*COLUMN, "--labels", "uniform", "--metrics", "kid"]
    refused(capsys, "--labels uniform means nothing for a model of pairs", *given, *uniform)
    assert not (tmp_path / "out").exists()
    pipeline = ConsistencyPipeline.from_pretrained(model)
    with pytest.raises(UserError, match="this model is given images"):
        make_onnx(pipeline)
    with pytest.raises(UserError, match="a model of pairs needs no conversion"):
        save_converted(convert(str(model)), tmp_path / "converted", str(model))
    with pytest.raises(UserError, match="this model is given images"):
        build_page(str(model), tmp_path / "page")


def test_samples_are_drawn_for_files_and_the_model_is_inspected_with_its_conditions(tmp_path, capsys, model, given):
    _, grey = pictures(2, side=16)
    files = [str(tmp_path / f"{number}.png") for number in range(2)]
    for file, one in zip(files, grey):
        Image.fromarray(one).save(file)
    output = ["--output", str(tmp_path / "samples.png")]
    assert sample.main([str(model), *output, "--image", *files, "--num_samples", "4"]) == 0
    with Image.open(tmp_path / "samples.png") as sheet:
        assert sheet.height > sheet.width  # one given and two drawn in a column
    assert sample.main([str(model), *output]) == 2
    assert "must be files of pictures of 1 channels" in capsys.readouterr().err
    words = [*given[:5], *COLUMN, "--num_samples", "12", "--output_dir", str(tmp_path / "inspected")]
    assert inspect_model.main(words) == 0
    assert (tmp_path / "inspected" / "along_sigma.png").is_file()


def test_a_plain_model_is_given_no_files(tmp_path, capsys):
    ConsistencyPipeline(make_unet(), ICTScheduler()).save_pretrained(tmp_path / "plain")
    write_npz(tmp_path / "data.npz")
    assert sample.main([str(tmp_path / "plain"), "--image", str(tmp_path / "data.npz")]) == 2
    assert "left out, because not this model" in capsys.readouterr().err
