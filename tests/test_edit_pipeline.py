import os
import re
import subprocess
import sys

import diffusers
import numpy as np
import pytest
import torch
from conftest import ROOT, make_unet
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from oracle import GaussianNet, gaussian_f
from PIL import Image
from test_editing import HALF, KnownRows
from test_picture_format import see_through

from diffusers_ict import (
    Colorize,
    ConsistencyColorizePipeline,
    ConsistencyDenoisePipeline,
    ConsistencyEditPipeline,
    ConsistencyImg2ImgPipeline,
    ConsistencyInpaintPipeline,
    ConsistencyPipeline,
    ConsistencyUpscalePipeline,
    Edit,
    ICTScheduler,
    Inpaint,
    SuperResolve,
    slerp,
    start_level,
)
from diffusers_ict.pipeline_base import DTYPE

DOORS = [
    ConsistencyInpaintPipeline,
    ConsistencyImg2ImgPipeline,
    ConsistencyUpscalePipeline,
    ConsistencyColorizePipeline,
    ConsistencyDenoisePipeline,
]
EDITS = [Inpaint(HALF), Colorize(), SuperResolve(2), SuperResolve(4), KnownRows()]


def make(kind=ConsistencyEditPipeline, channels=3, scheduler=None, net=None, **changes):
    net = net or make_unet(in_channels=channels, out_channels=channels, **changes).eval()
    pipeline = kind(net, scheduler or ICTScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count=2, channels=3, seed=5):
    """In [0, 1], with black and white areas, whose corrections leave the range."""
    drawn = torch.rand(count, channels, 8, 8, generator=seeded(seed))
    drawn[0, :, :, :4] = 0
    drawn[-1, :, 4:] = 1
    return drawn


@pytest.mark.parametrize("steps", [1, 2, 4, 10])
@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: type(edit).__name__)
def test_what_is_known_is_kept(edit, steps):
    y = pictures()
    for dtype, kind in zip((torch.float32, torch.float32, torch.bfloat16, torch.float16), ("latent", "pt", "pt", "pt")):
        pipeline = make(net=make_unet(in_channels=3, out_channels=3).eval().to(dtype))
        drawn = pipeline(y, edit, num_inference_steps=steps, generator=seeded(), output_type=kind).images
        given = y if kind == "pt" else 2 * y - 1
        assert (edit.project(drawn) - edit.project(given)).abs().max() <= 1e-6
        assert (drawn - given).abs().max() > 0.1


def algorithm_4(f, y, edit, sigmas, noises, sigma_min=0.002):
    """CM, Algorithm 4, as it is printed; y is known in part."""
    known = edit.project(y)
    x = known + sigmas[0] * noises[0]
    for n, sigma in enumerate(sigmas):
        if n > 0:
            x = x + (sigma**2 - sigma_min**2) ** 0.5 * noises[n]
        x = f(x, sigma)
        x = known + x - edit.project(x)
    return x


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: type(edit).__name__)
def test_the_loop_is_algorithm_4(edit, sigma_data):
    """With a network whose every pixel depends on every other; models that began as a DDPM have a sigma_data of 1."""
    pipeline = make(scheduler=ICTScheduler(sigma_data=sigma_data, clip_denoised=False))
    y, sigmas = pictures(), [80.0, 5.0, 1.0]
    noises = [torch.randn(2, 3, 8, 8, generator=g) for g in [seeded(3)] for _ in sigmas]

    def f(x, sigma):
        norm = (sigma**2 + sigma_data**2) ** 0.5
        network = pipeline.unet(x / norm, torch.tensor(250 * np.log(sigma))).sample
        skip = sigma_data**2 / ((sigma - 0.002) ** 2 + sigma_data**2)
        return skip * x + (sigma - 0.002) * sigma_data / norm * network

    with torch.no_grad():
        expected = algorithm_4(f, 2 * y - 1, edit, sigmas, noises)
    drawn = pipeline(y, edit, sigmas=sigmas, generator=seeded(3), output_type="latent").images
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("classes", [None, 5])
@pytest.mark.parametrize("how", [{"num_inference_steps": n} for n in (1, 2, 3, 10)] + [{"sigmas": [80.0, 4.0, 0.3]}])
def test_a_white_mask_draws_what_the_consistency_pipeline_draws(how, classes):
    whole = make(ConsistencyPipeline, num_class_embeds=classes)
    expected = whole(2, generator=seeded(), output_type="np", **how).images

    def drawn(kind, what):
        pipeline = kind.from_pipe(whole)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(pictures(), what, generator=seeded(), output_type="np", **how).images

    assert np.array_equal(drawn(ConsistencyInpaintPipeline, torch.ones(1, 8, 8)), expected)
    assert np.array_equal(drawn(ConsistencyImg2ImgPipeline, 1.0), expected)
    assert not np.array_equal(drawn(ConsistencyInpaintPipeline, HALF), expected)


@pytest.mark.parametrize("kind", [ConsistencyEditPipeline, *DOORS])
def test_stock_repositories_load_and_save_as_stock(kind, tmp_path):
    stock = ConsistencyModelPipeline(make_unet(), CMStochasticIterativeScheduler(sigma_data=1.0))
    stock.save_pretrained(tmp_path / "stock")
    loaded = kind.from_pretrained(tmp_path / "stock")
    assert type(loaded) is kind
    assert isinstance(loaded.scheduler, ICTScheduler)
    assert loaded.scheduler.config.sigma_data == 1.0
    loaded.save_pretrained(tmp_path / "again")
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "again")) is ConsistencyModelPipeline


@pytest.mark.parametrize("kind", [ConsistencyPipeline, ConsistencyInpaintPipeline])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_from_pipe_shares_the_unet_as_it_is(kind, dtype):
    stock = ConsistencyModelPipeline(make_unet().to(dtype), CMStochasticIterativeScheduler())
    made = kind.from_pipe(stock)
    assert made.unet is stock.unet
    assert isinstance(made.scheduler, ICTScheduler)
    assert {weight.dtype for weight in stock.unet.parameters()} == {dtype}
    assert kind.from_pipe(stock, **{DTYPE: torch.float64}).unet.dtype == torch.float64


def test_from_pipe_keeps_the_progress_bar_and_says_nothing(caplog, monkeypatch):
    monkeypatch.setattr(diffusers.utils.logging.get_logger("diffusers"), "propagate", True)
    shown, hidden = make(ConsistencyPipeline), make(ConsistencyPipeline)
    shown.set_progress_bar_config(desc="drawing")
    for pipeline, config in ((shown, {"desc": "drawing"}), (hidden, {"disable": True})):
        made = ConsistencyInpaintPipeline.from_pipe(pipeline)
        assert made._progress_bar_config == config
        made.set_progress_bar_config(leave=False)
        assert pipeline._progress_bar_config == config
    assert caplog.text == ""


LOW = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(6))


@pytest.mark.parametrize(
    ("kind", "arguments", "image", "edit", "strength"),
    [
        (ConsistencyInpaintPipeline, (pictures(), HALF), pictures(), Inpaint(HALF), 1.0),
        (ConsistencyInpaintPipeline, (pictures(), HALF, 0.4), pictures(), Inpaint(HALF), 0.4),
        (ConsistencyColorizePipeline, (pictures(),), pictures(), Colorize(), 1.0),
        (ConsistencyUpscalePipeline, (LOW,), LOW.repeat_interleave(2, 2).repeat_interleave(2, 3), SuperResolve(2), 1.0),
        (ConsistencyImg2ImgPipeline, (pictures(),), pictures(), Inpaint(torch.ones(8, 8)), 0.59),
    ],
)
def test_every_door_is_the_one_loop(kind, arguments, image, edit, strength):
    how = {"output_type": "pt", "num_inference_steps": 3}
    by_door = make(kind)(*arguments, generator=seeded(), **how).images
    assert torch.equal(by_door, make()(image, edit, strength=strength, generator=seeded(), **how).images)


def test_strength_chooses_the_first_level_and_leaves_out_those_above():
    pipeline, y = make(ConsistencyImg2ImgPipeline), pictures()
    for strength, steps in ((1.0, 10), (0.59, 10), (0.3, 4), (0.0, 10)):
        pipeline(y, strength, num_inference_steps=steps)
        start, grid = start_level(strength), pipeline.scheduler.sampling_sigmas(steps)
        levels = pipeline.scheduler.sigmas[:-1].tolist()
        assert levels == pytest.approx([start, *grid[1:][grid[1:] < start]])
        assert pipeline.num_timesteps == len(levels)
    strokes = pipeline(y, sigmas=[5.38, 2.24], generator=seeded(), output_type="latent").images
    noises = [torch.randn(2, 3, 8, 8, generator=g) for g in [seeded()] for _ in range(2)]
    f = pipeline.scheduler.consistency_function(pipeline.unet)
    with torch.no_grad():
        x = f(2 * y - 1 + 5.38 * noises[0], torch.full((2,), 5.38)).clamp(-1, 1)
        x = f(x + (2.24**2 - 0.002**2) ** 0.5 * noises[1], torch.full((2,), 2.24)).clamp(-1, 1)
    torch.testing.assert_close(strokes, x, rtol=0, atol=1e-4)


def test_noise_of_a_known_level_is_removed_as_the_exact_function_does():
    clean = 0.1 * torch.randn(200, 2, 4, 4)
    noisy = clean + 0.3 * torch.randn(200, 2, 4, 4)
    pipeline = make(ConsistencyDenoisePipeline, net=GaussianNet(variance=0.01))
    drawn = pipeline((noisy + 1) / 2, sigma=0.3, output_type="latent").images
    torch.testing.assert_close(drawn, gaussian_f(noisy, 0.3, 0.01), rtol=0, atol=1e-5)
    assert (drawn - clean).square().mean() < (noisy - clean).square().mean() / 3
    for sigma in (80.0, 0.001, float("nan")):
        with pytest.raises(ValueError, match=r"sigma must be at least 0\.002 and below 80\.0, got"):
            pipeline(clean, sigma)


def test_samples_are_interpolated_through_their_noises():
    pipeline = make(ConsistencyPipeline)
    z = torch.randn(2, 3, 8, 8)
    ends = pipeline(2, latents=z, output_type="np").images
    between = pipeline(3, latents=slerp(*z, torch.tensor([0.0, 0.5, 1.0])), output_type="np").images
    np.testing.assert_allclose(between[[0, 2]], ends, atol=1e-5)
    assert np.abs(between[1] - ends[0]).max() > 0.01


def as_pil(pixels):
    return [Image.fromarray(p) for p in (pixels.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)]


def one_step():
    return {"num_inference_steps": 1, "generator": seeded(), "output_type": "pt"}


def test_pil_numpy_and_tensors_are_the_same_images():
    y, pipeline = (pictures() * 255).round() / 255, make(ConsistencyInpaintPipeline)
    mask_pil = Image.fromarray((HALF.numpy() * 255).astype(np.uint8))
    masks = [HALF, HALF[None], HALF[None, None], HALF.numpy(), HALF.numpy()[None, ..., None], HALF.bool(), mask_pil]
    masks += [mask_pil.convert("RGB"), mask_pil.convert("1"), [HALF, HALF], [mask_pil, mask_pil], 0.2 + 0.5 * HALF]
    array, before = y.permute(0, 2, 3, 1).numpy(), y.clone()
    expected = pipeline(y, HALF, **one_step()).images
    for form in (list(y), array, list(array), as_pil(y), array.astype(np.float64), y.double()):
        torch.testing.assert_close(pipeline(form, HALF, **one_step()).images, expected, rtol=0, atol=2e-3)
    for mask in masks:
        assert torch.equal(pipeline(y, mask, **one_step()).images, expected)
    one = pipeline(y[0], HALF, **one_step()).images
    for form in (y[:1], array[0], as_pil(y)[0]):
        torch.testing.assert_close(pipeline(form, HALF, **one_step()).images, one, rtol=0, atol=2e-3)
    assert torch.equal(y, before), "given images stay as they are"


def test_integers_are_read_by_the_range_of_their_type():
    """A soft mask paints from a half up, as PIL image, as floats and as integers; so with pictures."""
    pipeline, soft = make(ConsistencyInpaintPipeline), np.linspace(0, 255, 64).round().reshape(8, 8).astype(np.uint8)
    image = as_pil(pictures())[0]
    expected = pipeline(image, Image.fromarray(soft), **one_step()).images
    masks = [soft, torch.from_numpy(soft), [soft], soft.astype(np.uint16) * 257, soft / 255, soft >= 128]
    for mask in masks:
        assert torch.equal(pipeline(image, mask, **one_step()).images, expected)
    pixels = np.asarray(image)
    for form in (pixels, torch.from_numpy(pixels.copy()).permute(2, 0, 1), pixels.astype(np.uint16) * 257):
        torch.testing.assert_close(pipeline(form, soft, **one_step()).images, expected, rtol=0, atol=1e-5)
    noisy = [make(ConsistencyDenoisePipeline)(form, 0.1, output_type="pt").images for form in (image, pixels)]
    assert torch.equal(*noisy)


def test_grey_and_coloured_pictures_become_what_the_model_draws():
    colour = as_pil(pictures())
    grey = make(ConsistencyInpaintPipeline, channels=1)
    by_colour = grey(colour, HALF, generator=seeded(), output_type="np").images
    by_grey = grey([c.convert("L") for c in colour], HALF, generator=seeded(), output_type="np").images
    assert np.array_equal(by_colour, by_grey)
    paint = make(ConsistencyColorizePipeline)
    l_image = colour[0].convert("L")
    painted = paint(l_image, generator=seeded(), output_type="pt").images
    three = torch.from_numpy(np.asarray(l_image) / 255)[None, None].expand(1, 3, 8, 8).float()
    torch.testing.assert_close(Colorize().project(painted), Colorize().project(three), rtol=0, atol=1e-6)
    rgba = make(ConsistencyInpaintPipeline, channels=4)
    y = pictures(channels=4)
    kept = rgba(y, HALF, output_type="pt").images
    assert torch.equal(kept[:, :, :4], y[:, :, :4])


def test_outputs_of_every_kind():
    pipeline, y = make(), pictures()

    def drawn(kind, **more):
        return pipeline(y, KnownRows(), generator=seeded(), output_type=kind, **more)

    pt, array, pil, latent = (drawn(kind).images for kind in ("pt", "np", "pil", "latent"))
    assert np.array_equal(pt.permute(0, 2, 3, 1).numpy(), array)
    assert np.array_equal(np.stack([np.asarray(p) for p in pil]), (array * 255).round().astype(np.uint8))
    torch.testing.assert_close(latent / 2 + 0.5, pt)
    assert torch.equal(*drawn("pt", return_dict=False), pt)


def test_one_image_has_many_masks_and_variations():
    pipeline, y = make(ConsistencyInpaintPipeline), pictures(1)
    masks = torch.stack([HALF, 1 - HALF])
    several = pipeline(y, masks, num_images_per_prompt=3, generator=seeded(), output_type="pt").images
    assert several.shape == (6, 3, 8, 8)
    for drawn, mask in zip(several, masks.repeat_interleave(3, 0)):
        assert torch.equal(drawn[:, mask == 0], y[0][:, mask == 0])
    assert len({drawn.numpy().tobytes() for drawn in several}) == 6
    alone = pipeline(y, masks[:1], generator=[seeded(7)], output_type="pt").images
    batch = pipeline(y, masks, generator=[seeded(7), seeded(8)], output_type="pt").images
    torch.testing.assert_close(batch[:1], alone, rtol=0, atol=1e-5)


def test_classes_are_of_the_given_images():
    pipeline = make(num_class_embeds=5)
    pipeline.id2label = dict(enumerate("abcde"))
    y, one = pictures(), {"output_type": "pt", "num_images_per_prompt": 2}
    drawn = pipeline(y, KnownRows(), ["b", 3], generator=seeded(), **one).images
    spread = torch.cat([y, y])[[0, 2, 1, 3]]
    again = pipeline(spread, KnownRows(), [1, 1, 3, 3], generator=seeded(), output_type="pt").images
    assert torch.equal(drawn, again)
    assert not torch.equal(drawn, pipeline(y, KnownRows(), 2, generator=seeded(), **one).images)


def test_callbacks_see_every_step_and_may_replace_the_sample():
    pipeline, seen = make(), []

    def look(pipe, step, t, tensors):
        assert pipe is pipeline
        seen.append((step, float(t), tensors["latents"].std().item()))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else {}

    options = {"sigmas": [80.0, 5.0, 0.5], "callback_on_step_end": look, "output_type": "latent"}
    drawn = pipeline(pictures(), KnownRows(), **options).images
    steps, times, spreads = zip(*seen)
    assert steps == (0, 1, 2)
    assert times == pytest.approx([250 * np.log(s) for s in (80.0, 5.0, 0.5)])
    assert spreads[0] > 4 > 1 > spreads[2], "the sample with the noise of the next level, at last without"
    assert drawn.abs().max() == 0


def test_the_last_step_is_finite_for_every_sigma_min():
    """float32 may put sigma_min^2 below itself; the root of that is no number."""
    for sigma_min in (0.00225, 0.0045):
        scheduler = ICTScheduler(sigma_min=sigma_min)
        drawn = make(ConsistencyPipeline, scheduler=scheduler)(1, num_inference_steps=2, output_type="pt").images
        assert drawn.isfinite().all()


def test_estimating_and_adding_noise_is_the_step_of_stock_diffusers():
    ours, stock = ICTScheduler(s_noise=0.9), ICTScheduler(s_noise=0.9)
    x, output = 80 * torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    for scheduler in (ours, stock):
        scheduler.set_timesteps(3)
        scheduler.scale_model_input(x, scheduler.timesteps[0])
    stepped = stock.step(output, stock.timesteps[0], x, generator=seeded()).prev_sample
    assert torch.equal(ours.renoise(ours.estimate(output, x), seeded()), stepped)
    assert ours.step_index == stock.step_index == 1


class Halved(Edit):
    def project(self, x):
        return x / 2


def every_byte(channels):
    """A picture of 16x16 with every value of a byte in each channel, in another order."""
    values = np.stack([np.random.default_rng(c).permutation(256) for c in range(channels)], -1)
    return values.reshape(16, 16, channels).astype(np.uint8)


@pytest.mark.parametrize("kind", [ConsistencyImg2ImgPipeline, ConsistencyInpaintPipeline, ConsistencyColorizePipeline])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_strength_of_0_gives_the_image_back_bit_for_bit(kind, channels):
    if kind is ConsistencyColorizePipeline and channels != 3:
        return
    pipeline, values = make(kind, channels, sample_size=16), every_byte(channels)
    what = [torch.ones(16, 16)] if kind is ConsistencyInpaintPipeline else []

    def drawn(image, output_type, strength=0):
        return pipeline(image, *what, strength=strength, generator=seeded(), output_type=output_type).images

    picture = Image.fromarray(values.squeeze(-1) if channels == 1 else values)
    (same,) = drawn(picture, "pil")
    assert (same.mode, same.tobytes()) == (picture.mode, picture.tobytes())
    floats = torch.rand(2, channels, 16, 16)
    assert torch.equal(drawn(floats, "pt", torch.tensor(0.0)), floats)
    arrays = floats.permute(0, 2, 3, 1).numpy()
    assert np.array_equal(drawn(arrays, "np", np.float32(0)), arrays)
    deep = values.astype(np.uint16) * 257 - (values > 0).astype(np.uint16)
    assert np.array_equal(drawn(deep, "np")[0], deep.astype(np.float32) / 65535)
    assert torch.equal(drawn(floats, "latent"), 2 * floats - 1)


def on_white(picture):
    """Each pixel by hand: alpha of the colour and the rest of white."""
    pixels = np.asarray(picture.convert("RGBA")).astype(int)
    shares = pixels[..., 3:]
    return Image.fromarray(((pixels[..., :3] * shares + 255 * (255 - shares) + 127) // 255).astype(np.uint8))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_transparent_pixels_are_white_as_in_training_and_what_they_hide_is_not_seen(mode):
    picture, pipeline = see_through(mode), make(ConsistencyImg2ImgPipeline)
    for form in (picture, [picture]):
        (kept,) = pipeline(form, 0, output_type="np").images
        assert (kept[:, :4] == 1).all()
        assert np.array_equal(kept, np.asarray(on_white(picture), np.float32) / 255)
    (grey,) = make(ConsistencyImg2ImgPipeline, 1)(picture, 0, output_type="np").images
    assert (grey[:, :4] == 1).all()
    (alpha,) = make(ConsistencyImg2ImgPipeline, 4)(picture, 0).images
    assert (alpha.mode, alpha.tobytes()) == ("RGBA", picture.convert("RGBA").tobytes())


def test_half_transparent_pixels_are_mixed_with_white():
    picture = Image.new("RGBA", (8, 8), (100, 0, 200, 51))
    (mixed,) = make(ConsistencyImg2ImgPipeline)(picture, 0).images
    assert np.array_equal(make(ConsistencyImg2ImgPipeline)(picture.convert("RGBa"), 0).images[0], mixed)
    assert mixed.getpixel((0, 0)) == tuple(round(0.2 * v + 0.8 * 255) for v in (100, 0, 200))


def test_opaque_masks_of_any_mode_are_the_same_mask():
    y, pipeline = pictures(), make(ConsistencyInpaintPipeline)
    grey = Image.fromarray((HALF.numpy() * 255).astype(np.uint8))
    expected = pipeline(y, HALF, **one_step()).images
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"):
        assert torch.equal(pipeline(y, grey.convert("RGB").convert(mode), **one_step()).images, expected), mode


def test_images_of_other_sizes_are_resized_as_by_diffusers():
    """As its image-to-image and inpainting pipelines do it: Lanczos for pictures, nearest for arrays and tensors."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    theirs = VaeImageProcessor(vae_scale_factor=1, do_normalize=False)
    img2img, inpaint = make(ConsistencyImg2ImgPipeline), make(ConsistencyInpaintPipeline)
    array = np.asarray(picture) / 255
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    for form in (picture, [picture, picture.resize((5, 9))], array, tensor):
        assert torch.equal(img2img(form, 0, output_type="pt").images, theirs.preprocess(form, 8, 8).float())
    mask = Image.new("L", (30, 20), 0)
    mask.paste(255, (0, 0, 15, 20))
    small = theirs.preprocess(picture, 8, 8)
    drawn = inpaint(picture, mask, output_type="pt", num_inference_steps=1).images
    torch.testing.assert_close(drawn[..., 4:], small[..., 4:], rtol=0, atol=1e-6)
    assert (drawn - small)[..., :4].abs().max() > 0.1
    wide = make(ConsistencyImg2ImgPipeline, sample_size=(4, 12))
    assert wide(picture, 0.5, output_type="pil").images[0].size == (12, 4)
    with pytest.raises(ValueError, match="images must be 12x4 for this model, got 8x8: resizing would change"):
        make(ConsistencyDenoisePipeline, sample_size=(4, 12))(torch.rand(3, 8, 8), 0.5)
    with pytest.raises(ValueError, match=r"must be 12x4 divided by a whole number from 2, got 4x2\."):
        make(ConsistencyUpscalePipeline, sample_size=(4, 12))(torch.rand(3, 2, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": torch.rand(2, 1, 8, 8)}, r"must have 3 channels, got some of the shape \(1, 8, 8\)"),
        ({"image": 2 * torch.ones(3, 8, 8)}, "numbers from 0 to 1, got 2 to 2"),
        ({"image": -torch.ones(3, 8, 8)}, "numbers from 0 to 1, got -1 to -1"),
        ({"image": torch.full((3, 8, 8), torch.nan)}, "numbers from 0 to 1, got nan"),
        ({"image": np.full((8, 8, 3), 255)}, "image must be floats from 0 to 1, uint8, uint16 or bool, got int64"),
        ({"image": "image.png"}, "must be 8-bit PIL images, or arrays or tensors of pixels with 2 to 4 axes, got str"),
        ({"image": np.zeros((0, 8, 8, 3))}, "of pixels with 2 to 4 axes, got ndarray"),
        ({"image": Image.new("I;16", (8, 8))}, "got a PIL image of mode I;16"),
        ({"image": [torch.rand(3, 8, 8), torch.rand(3, 8, 9)]}, "images of one type and size, got 2 of them"),
        ({"image": []}, "images of one type and size, got 0 of them"),
        ({"edit": "inpaint"}, r"edit must be an Edit, such as Inpaint\(mask\), got str"),
        ({"edit": Halved()}, "project of Halved must be a projector"),
        ({"edit": SuperResolve(3)}, "patches of 3 pixels do not divide images of 8x8"),
        ({"edit": Inpaint(torch.ones(4, 4))}, "does not fit images of"),
        *(
            ({"strength": wrong}, "strength must lie within 0 and 1")
            for wrong in (-0.1, True, "0.5", np.nan, [0.5], np.ones(1))
        ),
        ({"sigmas": [1.0, 2.0]}, "sigmas must descend"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt must be a positive integer, got 0"),
        ({"num_images_per_prompt": True}, "num_images_per_prompt must be a positive integer, got True"),
        ({"generator": [seeded()]}, "one for each of 2 images, got 1"),
        ({"generator": 7}, "generator must be a torch.Generator or a list of them, got 7"),
        ({"latents": torch.zeros(1, 3, 8, 8)}, r"shape \(2, 3, 8, 8\), got \(1, 3, 8, 8\)"),
        ({"class_labels": [0, 1, 2]}, "one integer or 2 of them"),
        ({"output_type": "jpeg"}, "'pil', 'np', 'pt' or 'latent', got 'jpeg'"),
    ],
)
def test_bad_arguments_get_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message) as raised:
        make(num_class_embeds=5)(**{"image": pictures(), "edit": KnownRows(), **arguments})
    assert str(raised.value).count(". ") == 0


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(3, 8, 8), "mask_image must be one mask, or one for each image, got 3 for 2 images"),
        (Image.new("RGBA", (8, 8), (255, 255, 255, 0)), "mask_image must be white.*got transparent pixels: lay it on"),
        (Image.new("LA", (8, 8), (255, 100)), "got transparent pixels"),
        (Image.new("I;16", (8, 8)), "must be 8-bit PIL images.*mode I;16"),
        (torch.ones(2, 3, 8, 8), "mask_image must have one channel"),
        (255 * HALF, "mask_image must hold numbers from 0 to 1, got 0 to 255"),
        (HALF.int(), "mask_image must be floats.* bool, got int32"),
        (HALF.byte(), "integers of 0 and 1, which are all black"),
        ("mask.png", "mask_image must be 8-bit PIL images.*got str"),
    ],
)
def test_bad_masks_get_one_sentence(mask, message):
    with pytest.raises(ValueError, match=message):
        make(ConsistencyInpaintPipeline)(pictures(), mask)


@pytest.mark.parametrize("side", [(8, 8), (3, 3), (4, 2)])
def test_bad_sizes_and_channels_get_one_sentence(side):
    with pytest.raises(ValueError, match=r"8x8 divided by a whole number from 2, got {1}x{0}".format(*side)):
        make(ConsistencyUpscalePipeline)(torch.rand(1, 3, *side))
    with pytest.raises(ValueError, match="only images with 3 channels can be colourised"):
        make(ConsistencyColorizePipeline, 1)(pictures(channels=1))


def test_models_without_a_size_take_images_of_any_that_divides():
    pipeline = make(sample_size=None)
    assert pipeline(torch.rand(3, 4, 12), KnownRows(), output_type="pt").images.shape == (1, 3, 4, 12)
    with pytest.raises(ValueError, match="multiples of 2"):
        pipeline(torch.rand(3, 7, 8), KnownRows())


@pytest.mark.parametrize(
    ("kind", "what", "unknown"),
    [(ConsistencyInpaintPipeline, HALF, {"mask": HALF}), (ConsistencyDenoisePipeline, 0.5, {"strength": 0.5})],
)
def test_doors_refuse_unknown_arguments(kind, what, unknown):
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        make(kind)(pictures(), what, **unknown)


@pytest.mark.slow
@pytest.mark.skipif("DIFFUSERS_SOURCE" not in os.environ, reason="DIFFUSERS_SOURCE names no clone of diffusers")
def test_the_pipeline_passes_diffusers_own_tests():
    """In a process of their own: they have markers and warnings that this suite does not allow."""
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "-p", "no:cacheprovider"]
    file = ROOT / "tests" / "diffusers_testers.py"
    done = subprocess.run([*command, file], cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 20
