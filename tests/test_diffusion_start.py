"""Diffusion models of diffusers, as the beginning of a consistency model."""

import copy
import json
import math

import diffusers
import guided_unet
import numpy as np
import pytest
import torch
from conftest import make_unet
from short_run import ICT, assert_refused, run
from sklearn.datasets import load_digits

from diffusers_ict import ConsistencyPipeline
from diffusers_ict.commands import check_repository, convert
from diffusers_ict.conversion import convert as to_start
from diffusers_ict.conversion.diffusion import edm_to_consistency, noise_levels, to_consistency
from diffusers_ict.formulas.time_embedding import uses_fast_columns
from diffusers_ict.training.log import read_log

LEVELS = [0.002, 0.01, 0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0, 80.0]


def clean_estimate(kind, x_t, predicted, sigma):
    """The diffusion model's estimate of the image, from what it predicts of x_t = sqrt(abar) x + sqrt(1 - abar) z."""
    signal, noise = 1 / math.sqrt(1 + sigma**2), sigma / math.sqrt(1 + sigma**2)
    if kind == "epsilon":
        return (x_t - noise * predicted) / signal
    return predicted if kind == "sample" else signal * x_t - noise * predicted


def network_output(kind, x_t, predicted, sigma):
    """F of the module's docstring."""
    if kind == "v_prediction":
        return -predicted
    root = math.sqrt(1 + sigma**2)
    return sigma * x_t - root * predicted if kind == "epsilon" else (root * predicted - x_t) / sigma


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("sigma", LEVELS)
def test_the_stock_scheduler_makes_the_diffusion_models_estimate_of_f(kind, sigma):
    """sigma_min is next to nothing here: it is what the boundary condition adds to the identity."""
    rng = torch.Generator().manual_seed(0)
    image, noise, error = (torch.randn(2, 3, 8, 8, generator=rng) for _ in range(3))
    x = image.clip(-1, 1) + sigma * noise
    stock = diffusers.CMStochasticIterativeScheduler(
        sigma_min=2**-30, sigma_max=sigma, sigma_data=1.0, clip_denoised=False
    )
    stock.set_timesteps(1)
    x_t = stock.scale_model_input(x, stock.timesteps[0])
    exact = x.double() / math.sqrt(1 + sigma**2)
    torch.testing.assert_close(x_t.double(), exact, rtol=0, atol=1e-6 * exact.abs().max().item())
    # What a model that is a little wrong predicts: its error matters as much as the truth.
    truth = {"epsilon": noise, "sample": image.clip(-1, 1)}
    truth["v_prediction"] = (noise - sigma * truth["sample"]) / math.sqrt(1 + sigma**2)
    predicted = truth[kind] + (0.1 * error if kind != "epsilon" else 0.1 * error / (1 + sigma))
    output = network_output(kind, exact, predicted.double(), sigma).float()
    found = stock.step(output, stock.timesteps[0], x).prev_sample
    expected = clean_estimate(kind, exact, predicted.double(), sigma)
    # In float32 the two terms of the sum cancel, and each is as large as x.
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6 * max(1, x.abs().max().item()))


def test_the_levels_of_betas_are_those_of_their_definition():
    linear = noise_levels(diffusers.DDPMScheduler().config)
    signal = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    np.testing.assert_allclose(linear, np.sqrt((1 - signal) / signal), rtol=1e-4)
    assert (round(linear[0].item(), 7), round(linear[-1].item(), 1)) == (0.0100013, 157.4)
    assert noise_levels(diffusers.DDIMScheduler(rescale_betas_zero_snr=True).config).isfinite().all()


DIGITS = torch.from_numpy(load_digits().images / 8 - 1).float()[:, None]


def train_tiny(loss_of):
    """A tiny UNet that has learned to use its time embedding; `loss_of` unet, images, noise and uniform numbers."""
    unet, generator = make_unet(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(unet.parameters(), 2e-3)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for _ in range(300):
        x = DIGITS[torch.randint(len(DIGITS), (64,), generator=generator)]
        loss_of(unet, x, torch.randn(x.shape, generator=generator), torch.rand(64, generator=generator)).backward()
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
    return unet


def keeps_its_error(denoised, before, after, levels):
    """`before` and `after`, told a level, are networks that `denoised` calls with images of that level."""
    images = DIGITS[::4]
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def error(network, sigma):
        return (denoised(network, images + sigma * noise, sigma) - images).square().mean().item()

    for sigma in levels:
        known = error(before(sigma), sigma)
        assert error(after(sigma), sigma) == pytest.approx(known, rel=0.01), sigma
        assert error(before(80.0), sigma) > 1.1 * known, "the time does not matter to this model"


def told(unet, time, sign=1):
    return lambda x: sign * unet(x, torch.full((len(x),), time)).sample


@pytest.mark.slow
def test_the_refit_keeps_the_denoising_error_of_a_trained_ddpm():
    scheduler = diffusers.DDPMScheduler()

    def loss_of(unet, x, noise, uniform):
        times = (1000 * uniform).long()
        return (unet(scheduler.add_noise(x, noise, times), times).sample - noise).square().mean()

    def denoised(network, noisy, sigma):
        x_t = noisy / math.sqrt(1 + sigma**2)
        return clean_estimate("epsilon", x_t, network(x_t), sigma)

    unet = train_tiny(loss_of)
    refitted = copy.deepcopy(unet)
    to_consistency(refitted, scheduler.config)
    assert not uses_fast_columns(refitted)
    times = noise_levels(scheduler.config).log()
    keeps_its_error(
        denoised,
        lambda sigma: told(unet, np.interp(math.log(sigma), times, range(1000))),
        lambda sigma: told(refitted, 250 * math.log(sigma), sign=-1),
        (0.01, 0.05, 0.2, 0.5, 1.0, 2.0, 5.0),
    )


@pytest.mark.slow
def test_the_refit_keeps_the_denoising_error_of_a_trained_edm_network():
    """EDM Table 1: ln(sigma) ~ N(-1.2, 1.2^2), c_skip and c_out of sigma_data 0.5, weight 1 / c_out^2."""

    def denoised(network, noisy, sigma):
        root = (sigma**2 + 0.25) ** 0.5
        return 0.25 / root**2 * noisy + 0.5 * sigma / root * network(noisy / root)

    def loss_of(unet, x, noise, uniform):
        sigma = (1.2 * torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6)) - 1.2).exp()[:, None, None, None]
        clean = denoised(lambda noisy: unet(noisy, 250 * sigma.log().flatten()).sample, x + sigma * noise, sigma)
        return ((clean - x).square() * (sigma**2 + 0.25) / (0.5 * sigma) ** 2).mean()

    unet = train_tiny(loss_of)
    refitted = copy.deepcopy(unet)
    edm_to_consistency(refitted)
    assert uses_fast_columns(unet)
    assert not uses_fast_columns(refitted)
    before, after = (lambda sigma, net=net: told(net, 250 * math.log(sigma)) for net in (unet, refitted))
    keeps_its_error(denoised, before, after, (0.05, 0.2, 0.5, 1.0, 2.0, 5.0))


def test_a_file_named_edm_is_a_start_that_needs_no_alignment(tmp_path, capsys):
    state = guided_unet.make(widths=(32, 64), layers=2, scale_shift=True, attends=(False, True))
    starts = {}
    for name in ("edm_cat256_ema", "ct_cat256_of_mine"):
        torch.save(state, tmp_path / f"{name}.pt")
        starts[name] = to_start(str(tmp_path / f"{name}.pt"), resolution=16, attention_head_dim=16)
    edm, other = starts.values()
    assert (edm.prediction, edm.needs_alignment, other.prediction) == ("edm", False, None)
    assert "Recognised by its name as a diffusion model (EDM)" in edm.notes[0]
    assert edm.pipeline.scheduler.config.sigma_data == 0.5
    assert not uses_fast_columns(edm.pipeline.unet)
    assert uses_fast_columns(other.pipeline.unet)
    theirs = other.pipeline.unet.state_dict()
    changed = {name for name, tensor in edm.pipeline.unet.state_dict().items() if not torch.equal(tensor, theirs[name])}
    assert changed == {f"time_embedding.linear_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")}
    start = started(tmp_path / "edm_cat256_ema.pt", "--resolution", "16", "--attention_head_dim", "16")
    assert "a start for training, not for sampling in few steps" in capsys.readouterr().out
    assert (to_start(str(start)).prediction, to_start(str(start)).needs_alignment) == ("edm", False)


def saved(folder, kind="v_prediction", pipeline=diffusers.DDPMPipeline, scheduler=diffusers.DDPMScheduler, **changes):
    """A diffusion model whose time embedding is the same at all times, so that its refit is exact."""
    unet = make_unet(**changes)
    unet.time_embedding.linear_2.weight.data.zero_()
    pipeline(unet, scheduler(prediction_type=kind)).save_pretrained(folder)
    return unet


def started(folder, *flags):
    """The folder that a model is converted into."""
    start = folder.with_name("start")
    assert convert.main([str(folder), str(start), *flags]) == 0
    return start


def one_step(folder, kind):
    pipeline = kind.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return torch.from_numpy(pipeline(4, num_inference_steps=1, generator=generator, output_type="np").images)


def test_a_converted_velocity_model_draws_its_own_estimate_in_stock_diffusers(tmp_path, capsys):
    unet = saved(tmp_path / "ddpm")
    start = started(tmp_path / "ddpm", "--license", "mit")
    assert "Converted from a diffusion model" in capsys.readouterr().out
    noise = 80 * torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x_t = noise / math.sqrt(1 + 80**2)
    with torch.no_grad():
        estimate = clean_estimate("v_prediction", x_t, unet(x_t, torch.full((4,), 929.6)).sample, 80.0)
    expected = (estimate.clip(-1, 1) / 2 + 0.5).permute(0, 2, 3, 1)
    assert expected.std() > 0.05, "a constant image proves nothing"
    stock = one_step(start, diffusers.DiffusionPipeline)
    torch.testing.assert_close(stock, expected, rtol=0, atol=1e-4)  # sigma_min takes 2.5e-5 of the network's part
    assert torch.equal(stock, one_step(start, ConsistencyPipeline))
    assert check_repository.main([str(start)]) == 0
    assert "sigma_data 1, as of a model that began as a DDPM" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("pipeline", "scheduler", "kind", "end"),
    [
        (diffusers.DDIMPipeline, diffusers.DDIMScheduler, "epsilon", "low"),
        (diffusers.DDPMPipeline, diffusers.DDPMScheduler, "sample", "high"),
        (diffusers.PNDMPipeline, diffusers.PNDMScheduler, "epsilon", "low"),
    ],
)
def test_other_predictions_begin_at_their_limit(pipeline, scheduler, kind, end, tmp_path):
    before = saved(tmp_path / "model", kind, pipeline, scheduler)
    start = started(tmp_path / "model")
    note = f"exact only at {end} noise until it is aligned"
    assert note in (start / "README.md").read_text().replace("\n", " ")
    assert "It has to be trained before it draws images in few steps." in (start / "README.md").read_text()
    after = diffusers.UNet2DModel.from_pretrained(start / "unet")
    sign = 1 if kind == "sample" else -1
    assert torch.equal(after.conv_out.weight, sign * before.conv_out.weight)
    assert torch.equal(after.conv_out.bias, sign * before.conv_out.bias)


def test_a_repository_of_2022_has_everything_in_one_folder(tmp_path):
    """Such as google/ddpm-cifar10-32: config.json, scheduler_config.json and the weights beside model_index.json."""
    folder = tmp_path / "model"
    saved(folder)
    for part in (folder / "unet", folder / "scheduler"):
        for file in part.iterdir():
            file.rename(folder / file.name)
        part.rmdir()
    one_step(started(folder), diffusers.DiffusionPipeline)


@pytest.fixture
def begun(flags):
    """Flags of a run that begins with a model, whose folder has to follow."""
    where = flags.index("--model_config_name_or_path")
    return [*flags[:where], *flags[where + 2 :], "--pretrained_model_name_or_path"]


def test_training_begins_with_a_velocity_model_and_keeps_its_sigma_data(begun, tmp_path):
    saved(tmp_path / "model")
    own = [*ICT, *begun, tmp_path / "model", "--max_train_steps", 4, "--learning_rate", 1e-9]
    assert run(*own, "--output_dir", tmp_path / "run") == 0
    config = json.loads((tmp_path / "run" / "scheduler" / "scheduler_config.json").read_text())
    assert config["sigma_data"] == 1.0
    assert "pretrained_model_name_or_path: model\n" in (tmp_path / "run" / "recipe.yaml").read_text()  # and no path
    trained, start = (
        one_step(path, diffusers.DiffusionPipeline) for path in (tmp_path / "run", started(tmp_path / "model"))
    )
    torch.testing.assert_close(trained, start, rtol=0, atol=1e-4)


def test_a_model_that_predicts_noise_is_aligned_and_by_ect_alone(begun, tmp_path, capsys):
    saved(tmp_path / "model", "epsilon")
    for start in (tmp_path / "model", started(tmp_path / "model")):
        own = [*begun, start, "--output_dir", tmp_path / "run", "--max_train_steps", 8]
        assert_refused(tmp_path, capsys, "predicts epsilon, because only ECT aligns it", *own)
        needs = "an alignment of 500 steps needs a run of more steps, got 8"
        assert_refused(tmp_path, capsys, needs, *own, "--loss", "ect")
    capsys.readouterr()
    assert run(*own, "--loss", "ect", "--objective", "align_steps=4") == 0
    assert "ect, which aligns it" not in capsys.readouterr().out, "advice to do what is being done"
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert log[0]["stage"] == -1
    assert log[-1]["stage"] >= 0
    assert run(*begun, tmp_path / "run", "--output_dir", tmp_path / "next", "--max_train_steps", 8) == 0
