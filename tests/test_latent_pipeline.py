"""Models of latents: what stock diffusers draws of them, what ours does, and what is refused."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from autoencoders import make_tiny, make_vae
from conftest import ONE_LEVEL, TINY, files_of, make_unet, write_npz
from diffusers import CMStochasticIterativeScheduler, DiffusionPipeline, LDMPipeline
from evaluated import figures
from PIL import Image
from short_run import run

from diffusers_ict import (
    Colorize,
    ConsistencyDenoisePipeline,
    ConsistencyEditPipeline,
    ConsistencyImg2ImgPipeline,
    ConsistencyInpaintPipeline,
    ConsistencyPipeline,
    ConsistencyUpscalePipeline,
    ICTScheduler,
    Inpaint,
)
from diffusers_ict.commands import check_repository as check_program
from diffusers_ict.commands import edit, inspect_model, sample
from diffusers_ict.conversion import convert
from diffusers_ict.data.draw import VALIDATION, derive_seed
from diffusers_ict.data.load import load_images
from diffusers_ict.errors import UserError
from diffusers_ict.hub.card import PIPELINE, make_card
from diffusers_ict.hub.check_repository import Severity, check_repository
from diffusers_ict.hub.run_files import published_files
from diffusers_ict.training.samples import sample_picture
from diffusers_ict.web.build import build_page
from diffusers_ict.web.onnx import make_onnx


def make_pipeline(classes: int | None = None, vae=None) -> ConsistencyPipeline:
    """An untrained model of latents, 4x8x8, of images of 16 pixels."""
    unet = make_unet(in_channels=4, out_channels=4, num_class_embeds=classes).eval()
    scheduler = ICTScheduler(clip_denoised=False, num_train_timesteps=100)
    pipeline = ConsistencyPipeline(unet, scheduler, (vae or make_vae(scaling_factor=0.37, shift_factor=None)).eval())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run on drawn latents, and the data beside it."""
    base = tmp_path_factory.mktemp("latents")
    make_vae().save_pretrained(base / "vae")
    write_npz(base / "data.npz", side=16, count=260)
    unet = {**TINY, **ONE_LEVEL, "in_channels": 4, "out_channels": 4, "_class_name": "UNet2DModel"}
    (base / "unet.json").write_text(json.dumps(unet))
    flags = ["--dataset_name", base / "data.npz", "--pretrained_vae_name_or_path", base / "vae", "--vae_sample"]
    size = ["--model_config_name_or_path", base / "unet.json", "--train_batch_size", 4, "--max_train_steps", 6]
    method = ["--objective", "s0=2", "s1=8", "metric=cauchy", "--ema_decays", "0.9", "0.5", "--license", "mit"]
    assert run(*flags, *size, *method, "--num_validation_images", 4, "--output_dir", base / "model") == 0
    return base / "model"


STOCK = """
import sys, numpy as np, torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1])
pipeline.set_progress_bar_config(disable=True)
def draw(**options):
    return pipeline(3, generator=torch.Generator().manual_seed(7), output_type="np", **options).images
torch.manual_seed(5)
drawn = {"one": draw(num_inference_steps=1), "two": draw(num_inference_steps=2), "default": draw()}
assert not [name for name in sys.modules if "diffusers_ict" in name]
np.savez(sys.argv[2], name=type(pipeline).__name__, **drawn)
"""


@pytest.mark.slow
def test_stock_diffusers_without_this_package_draws_the_same_images(trained, tmp_path):
    command = [sys.executable, "-c", STOCK, str(trained), str(tmp_path / "stock.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    stock = np.load(tmp_path / "stock.npz")
    assert stock["name"] == "LDMPipeline"
    pipeline = ConsistencyPipeline.from_pretrained(trained)
    pipeline.set_progress_bar_config(disable=True)
    ours = pipeline(3, generator=seeded(7), output_type="np").images
    assert ours.shape == (3, 16, 16, 1)
    assert np.abs(ours - stock["one"]).max() == 0.0
    latents = torch.randn(3, 4, 8, 8, generator=seeded(7))
    torch.manual_seed(5)  # from which LDMPipeline draws all noise but the first
    two = pipeline(3, latents=latents, num_inference_steps=2, output_type="np").images
    assert np.abs(two - stock["two"]).max() == 0.0
    assert np.isfinite(stock["default"]).all()


def test_the_export_is_a_stock_pipeline_whose_second_level_is_the_one_that_was_meant(trained):
    stock = DiffusionPipeline.from_pretrained(trained)
    assert type(stock) is LDMPipeline
    assert type(stock.scheduler) is CMStochasticIterativeScheduler
    assert stock.scheduler.config.clip_denoised is False
    assert stock.scheduler.config.num_train_timesteps >= 50
    stock.scheduler.set_timesteps(2)
    assert stock.scheduler.sigmas[1].item() == pytest.approx(0.821, abs=1e-5)
    stock.scheduler.set_timesteps(50)
    assert stock.scheduler.sigmas[-2] > stock.scheduler.config.sigma_min
    index = json.loads((trained / "model_index.json").read_text())
    assert {name: index[name][0] for name in ("vqvae", "unet", "scheduler")} == dict.fromkeys(
        ("vqvae", "unet", "scheduler"), "diffusers"
    )


def test_the_exported_autoencoder_gives_training_latents_the_deviation_of_the_preconditioning(trained):
    pipeline = ConsistencyPipeline.from_pretrained(trained)
    pixels = load_images(dataset_name=str(trained.parent / "data.npz")).pixels.float() / 127.5 - 1
    with torch.no_grad():
        posterior = pipeline.vae.encode(pixels).latent_dist
    variance = posterior.mean.var(correction=0) + posterior.var.mean()
    assert pipeline.vae.config.scaling_factor * variance.sqrt().item() == pytest.approx(0.5, rel=1e-4)
    assert torch.equal(pipeline.vae.quant_conv.weight, make_vae().quant_conv.weight)
    torch.testing.assert_close(
        pipeline.encode_images(pixels), posterior.mean * pipeline.vae.config.scaling_factor, rtol=0, atol=0
    )


@pytest.mark.parametrize("vae", [None, make_tiny()], ids=["AutoencoderKL", "AutoencoderTiny"])
def test_a_saved_pipeline_draws_the_same_again_and_keeps_its_latents(tmp_path, vae):
    pipeline = make_pipeline(vae=vae)
    pipeline.save_pretrained(tmp_path)
    again = ConsistencyPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert type(again.vqvae) is type(pipeline.vqvae)
    options = {"num_inference_steps": 2, "output_type": "np"}
    one, two = (each(2, generator=seeded(), **options).images for each in (pipeline, again))
    assert np.array_equal(one, two)
    latents = again(2, num_inference_steps=2, generator=seeded(), output_type="latent").images
    assert latents.shape == (2, 4, 8, 8)
    decoded = (again.decode_images(latents) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert np.array_equal(decoded.numpy(), two)
    assert again(1, height=32, width=24, output_type="np").images.shape == (1, 32, 24, 1)
    with pytest.raises(ValueError, match="must be multiples of 4 for this model, got 18x16"):
        again(1, width=18)
    shared = ConsistencyImg2ImgPipeline.from_pipe(again)
    assert shared.vqvae is again.vqvae


def test_pixel_models_have_no_autoencoder_and_are_saved_as_before(tmp_path):
    ConsistencyPipeline(make_unet(), ICTScheduler()).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "ConsistencyModelPipeline"
    assert not (tmp_path / "vqvae").exists()
    assert ConsistencyPipeline.from_pretrained(tmp_path).vae is None


def test_half_precision_decodes_finite_images(tmp_path):
    pipeline = make_pipeline().to(dtype=torch.bfloat16)
    assert pipeline.vqvae.dtype == pipeline.unet.dtype == torch.bfloat16
    assert np.isfinite(pipeline(2, num_inference_steps=2, output_type="np").images).all()


def test_classes_of_latents_are_drawn_by_ours_and_by_the_pipeline_in_the_repository(tmp_path):
    ours = make_pipeline(classes=3)
    ours.save_pretrained(tmp_path)
    (tmp_path / "pipeline.py").write_text(PIPELINE.read_text())
    alone = DiffusionPipeline.from_pretrained(tmp_path, custom_pipeline=str(tmp_path), trust_remote_code=True)
    alone.set_progress_bar_config(disable=True)
    for options in ({"num_inference_steps": 1}, {"num_inference_steps": 2}, {"sigmas": [80.0, 2.0, 0.4]}):
        one, two = (each(2, [0, 2], generator=seeded(1), output_type="np", **options).images for each in (ours, alone))
        assert np.array_equal(one, two), options


def test_painting_anew_keeps_known_pixels_and_the_latents_that_show_nothing_else():
    pipeline = ConsistencyInpaintPipeline.from_pipe(make_pipeline())
    image = torch.rand(2, 1, 16, 16, generator=seeded())
    mask = torch.zeros(16, 16)
    mask[5:, :] = 1  # the latents of rows 4 and 5 show pixels that are to be painted
    drawn = pipeline(image, mask, num_inference_steps=3, generator=seeded(), output_type="pt").images
    torch.testing.assert_close(drawn[..., :5, :], image[..., :5, :], rtol=0, atol=1e-6)
    assert (drawn[..., 5:, :] - image[..., 5:, :]).abs().max() > 0.05
    latents = pipeline(image, mask, num_inference_steps=3, generator=seeded(), output_type="latent").images
    encoded = pipeline.encode_images(image * 2 - 1)
    torch.testing.assert_close(latents[..., :2, :], encoded[..., :2, :], rtol=0, atol=1e-5)
    assert (latents[..., 2, :] - encoded[..., 2, :]).abs().max() > 0.05, "a latent of which some pixels are unknown"
    several = torch.stack([mask, mask.T])[:, None]
    both = pipeline(image[:1], several, num_images_per_prompt=2, generator=seeded(), output_type="pt").images
    torch.testing.assert_close(both[2:, ..., :5], image[:1, ..., :5].expand(2, -1, -1, -1), rtol=0, atol=1e-6)
    plain = make_pipeline()(2, generator=seeded(), output_type="pt").images
    anew = pipeline(image, torch.ones(16, 16), num_inference_steps=1, generator=seeded(), output_type="pt").images
    torch.testing.assert_close(anew, plain, rtol=0, atol=1e-5, msg="nothing is known")


def test_drawing_again_begins_at_the_latent_of_the_image():
    pipeline = ConsistencyImg2ImgPipeline.from_pipe(make_pipeline())
    image = torch.rand(1, 1, 16, 16, generator=seeded())
    assert torch.equal(pipeline(image, strength=0.0, output_type="pt").images, image)
    y = pipeline.encode_images(image * 2 - 1)
    assert torch.equal(pipeline(image, strength=0.0, output_type="latent").images, y)
    noise = torch.randn(1, 4, 8, 8, generator=seeded(3))
    drawn = pipeline(image, sigmas=[1.5], latents=noise, output_type="latent").images
    f = pipeline.scheduler.consistency_function(pipeline.unet)
    with torch.no_grad():
        expected = f(y + 1.5 * noise, torch.tensor([1.5]), None)
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-4)


def test_edits_that_mean_nothing_to_latents_are_refused():
    model, image = make_pipeline(), torch.rand(1, 1, 16, 16)
    with pytest.raises(ValueError, match=r"this model draws latents, .* must be an Inpaint, got SuperResolve"):
        ConsistencyUpscalePipeline.from_pipe(model)(image[..., :8, :8])
    colour = make_pipeline(vae=make_vae(in_channels=3, out_channels=3))
    with pytest.raises(ValueError, match="must be an Inpaint, got Colorize"):
        ConsistencyEditPipeline.from_pipe(colour)(image.expand(-1, 3, -1, -1), Colorize())
    with pytest.raises(ValueError, match="noise of pixels is no noise of latents"):
        ConsistencyDenoisePipeline.from_pipe(model)(image, 0.5)
    with pytest.raises(ValueError, match="a mask must hold 0 and 1"):
        ConsistencyEditPipeline.from_pipe(model)(image, Inpaint(torch.full((16, 16), 0.5)))


def test_files_for_browsers_are_refused_in_one_sentence(trained, tmp_path):
    with pytest.raises(
        UserError, match=r"^an ONNX file is made of models that draw pixels, and this one draws latents"
    ):
        make_onnx(ConsistencyPipeline.from_pretrained(trained))
    with pytest.raises(UserError, match=r"^a page is made of models that draw pixels, and this one draws latents"):
        build_page(str(trained), tmp_path / "page")
    assert not (tmp_path / "page").exists()
    with pytest.raises(UserError, match="must draw pixels with a UNet alone, and it also holds vqvae"):
        convert(str(trained))


def test_a_repository_of_latents_is_checked_as_stock_draws_it(trained, tmp_path, capsys):
    findings = check_repository(str(trained))
    assert {finding.severity for finding in findings} == {Severity.OK}
    told = {finding.topic: finding.text for finding in findings}
    assert "4 channels in, 4 out, size 8, no classes, of latents." in told["images"]
    assert told["sampling"] == "stock diffusers and diffusers-ict draw the same images with one and two steps."
    assert check_program.main([str(trained)]) == 0
    make_pipeline(classes=2).save_pretrained(tmp_path / "classes")
    (sampling,) = [one for one in check_repository(str(tmp_path / "classes")) if one.topic == "sampling"]
    assert "stock LDMPipeline takes no classes" in sampling.text
    clipping = make_pipeline()
    clipping.scheduler.register_to_config(clip_denoised=True)
    clipping.save_pretrained(tmp_path / "clipping")
    (images,) = [one for one in check_repository(str(tmp_path / "clipping")) if one.topic == "images"]
    assert images.severity is Severity.ERROR


@pytest.mark.slow
def test_programs_measure_and_show_decoded_images(trained, tmp_path, monkeypatch):
    rows = figures(trained, tmp_path, "--num_samples", 260, "--steps", 1, 2, "--variants", "published", "ema5")
    assert [(row["variant"], row["num_inference_steps"]) for row in rows] == [
        (None, 1), (None, 2), ("ema5", 1), ("ema5", 2)
    ]  # fmt: skip
    assert sample.main([str(trained), "--num_samples", "4", "--output", str(tmp_path / "samples.png")]) == 0
    data = ["--dataset_name", str(trained.parent / "data.npz"), "--extractor", "pixels"]
    assert inspect_model.main([str(trained), *data, "--num_samples", "20", "--output_dir", str(tmp_path / "look")]) == 0
    report = json.loads((tmp_path / "look" / "inspection.json").read_text())
    assert len(report["gap"]) == 40
    picture = make_pipeline()(1).images[0]
    picture.save(tmp_path / "picture.png")
    strip = tmp_path / "strip.png"
    assert edit.main([str(trained), "--images", str(tmp_path / "picture.png"), "--output", str(strip)]) == 0
    assert strip.is_file()


def test_the_card_names_the_autoencoder_and_how_to_draw_and_no_file_names_this_machine(trained):
    card = make_card(trained, "someone/shoes").content
    assert "consistency model of 16x16 grey images, which draws the latents of an autoencoder" in card
    assert (
        "| latents | 8x8 with 4 channels, from the autoencoder vae; its own licence applies to the folder `vqvae` |"
        in card
    )
    assert "pipeline(num_inference_steps=2).images[0]" in card
    published = published_files(trained)
    assert {"vqvae/config.json", "vqvae/diffusion_pytorch_model.safetensors", "model_index.json"} <= published.keys()
    place = str(trained.parent).encode()
    assert not [name for name, content in files_of(trained).items() if place in content]


def test_the_card_of_classes_draws_by_the_pipeline_of_the_repository(trained, tmp_path):
    facts = json.loads((trained / "run.json").read_text())
    for name in ("recipe.yaml", "scheduler/scheduler_config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    (tmp_path / "run.json").write_text(json.dumps({**facts, "classes": 2, "autoencoder_on_hub": True,
                                                   "autoencoder": "someone/vae"}))  # fmt: skip
    card = make_card(tmp_path, "someone/shoes").content
    assert "Stock LDMPipeline takes no classes" in card
    assert card.count("DiffusionPipeline.from_pretrained(") == 1
    assert "[someone/vae](https://huggingface.co/someone/vae)" in card
    assert "base_model" not in card


def test_sample_grids_show_the_images_and_decoded_samples(trained):
    pipeline = ConsistencyPipeline.from_pretrained(trained)
    pipeline.set_progress_bar_config(disable=True)
    images = load_images(dataset_name=str(trained.parent / "data.npz"))
    again = sample_picture(pipeline, images, 4, derive_seed(0, VALIDATION))
    with Image.open(trained / "samples" / "step-0000006.png") as kept:
        assert np.array_equal(np.asarray(again), np.asarray(kept))


FROM_THE_HUB = """
import sys, numpy as np, torch
from diffusers_ict import ConsistencyPipeline
from diffusers_ict.loading import load_vae
pipeline = ConsistencyPipeline.from_pretrained("someone/latents")
images = pipeline(2, generator=torch.Generator().manual_seed(0), output_type="np").images
np.savez(sys.argv[1], images=images, quant=load_vae("someone/latents").quant_conv.weight.detach().numpy())
"""


@pytest.mark.slow
def test_models_of_latents_and_their_autoencoders_load_by_their_id(hub, tmp_path):
    made = make_pipeline()
    made.save_pretrained(tmp_path / "model")
    hub.add_folder("someone/latents", tmp_path / "model")
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", FROM_THE_HUB, str(tmp_path / "drawn.npz")]
    environment |= {"HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    drawn = np.load(tmp_path / "drawn.npz")
    assert np.array_equal(drawn["images"], made(2, generator=seeded(), output_type="np").images)
    assert np.array_equal(drawn["quant"], make_vae().quant_conv.weight.detach().numpy())
