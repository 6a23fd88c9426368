"""Latents as data: encoded once, scaled by one number, drawn from (seed, step), and what is refused at the door."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from autoencoders import make_tiny, make_vae
from conftest import ONE_LEVEL, ROOT, TINY, write_npz
from diffusers import AutoencoderKL
from PIL import Image
from short_run import assert_bitwise_equal, assert_refused, final_tensors, run, two_processes

from diffusers_ict import ECT, ICT, Pair, pseudo_huber
from diffusers_ict.data import latents
from diffusers_ict.data.draw import REFERENCES, Draw
from diffusers_ict.data.latents import encode_images
from diffusers_ict.data.load import load_images
from diffusers_ict.data.references import References
from diffusers_ict.data.settings import DataSettings
from diffusers_ict.data.transform import to_unit
from diffusers_ict.errors import UserError
from diffusers_ict.loading import load_vae
from diffusers_ict.training.recipe import Recipe
from diffusers_ict.training.train import train

LATEST = ["--resume_from_checkpoint", "latest"]


@pytest.fixture
def settings(tmp_path) -> DataSettings:
    path = write_npz(tmp_path / "data.npz", side=16)
    return DataSettings(dataset_name=str(path), image_cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def images(settings):
    return load_images(settings, class_conditional=True)


def all_of(data, flips: bool | None = None, seed: int = 0, step: int = 0) -> torch.Tensor:
    """What a step learns of the whole data set, all or none of it mirrored."""
    draw, count = Draw(seed, step, len(data), "cpu"), len(data)
    return data.transform(data.pixels, None if flips is None else torch.full((count,), flips), draw, range(count))


@pytest.mark.parametrize("make", [make_vae, make_tiny])
def test_latents_are_those_of_the_autoencoder_and_have_the_deviation_of_the_preconditioning(images, settings, make):
    vae = make()
    data = encode_images(images, vae, settings)
    assert data.shape == (4, 8, 8)
    x = all_of(data)
    assert x.std(correction=0).item() == pytest.approx(0.5, abs=1e-6)
    with torch.no_grad():
        encoded = vae.encode(to_unit(images.pixels, None, "cpu"))
    raw = encoded.latent_dist.mode() if make is make_vae else encoded.latents
    torch.testing.assert_close(x, raw * vae.config.scaling_factor, rtol=1e-4, atol=1e-5)
    assert vae.config.get("shift_factor") is None, "which LDMPipeline would leave out"
    assert (data.labels == images.labels).all()
    assert data.examples is images


def test_drawn_latents_follow_from_seed_and_step_and_have_the_moments_of_the_posterior(images, settings):
    vae = make_vae()
    data = encode_images(images, vae, settings, sampled=True)
    assert torch.equal(all_of(data, step=3), all_of(data, step=3))
    steps = torch.stack([all_of(data, step=step) for step in range(400)])
    assert len({step.sum().item() for step in steps}) == 400
    with torch.no_grad():
        posterior = vae.encode(to_unit(images.pixels, None, "cpu")).latent_dist
    mean, std = posterior.mean * vae.config.scaling_factor, posterior.std * vae.config.scaling_factor
    z = (steps.mean(0) - mean) / (std / 20)  # standard normal, 16,384 of them
    assert z.abs().max() < 5.5
    assert z.std().item() == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(steps.std(0) / std, torch.ones_like(std), rtol=0, atol=0.2)
    assert steps.std().item() == pytest.approx(0.5, abs=2e-3), "of drawn latents, not of their means"


def test_drawn_latents_do_not_depend_on_the_division_of_a_batch(images, settings):
    data = encode_images(images, make_vae(), settings, sampled=True)
    rows = data.pixels
    whole = all_of(data, seed=5, step=7)
    draw = Draw(5, 7, len(data), "cpu")
    parts = [data.transform(rows[k : k + 6], None, draw, range(k, min(k + 6, 64))) for k in range(0, 64, 6)]
    assert torch.equal(torch.cat(parts), whole)
    again = Draw(5, 7, len(data), "cpu")
    assert not torch.equal(again.posterior_noise((4, 8, 8), range(64)), again.noise((4, 8, 8))), "streams of their own"


def test_the_noise_of_runs_is_what_it_was():
    """Streams are never renumbered: a resumed run of an earlier version goes on as it began."""
    draw = Draw(1, 2, 20, "cpu")
    seed = np.random.SeedSequence((1, 3, 2, 0)).generate_state(1, np.uint64).tolist()[0]  # of stream 3
    generator = torch.Generator().manual_seed(seed)
    assert torch.equal(draw.noise((3,))[:16], torch.empty(16, 3).normal_(generator=generator))


def test_a_mirrored_image_has_a_latent_of_its_own(images, settings):
    vae = make_vae()
    data = encode_images(images, vae, settings, mirrored=True)
    with torch.no_grad():
        mirrored = vae.encode(to_unit(images.pixels, None, "cpu").flip(-1)).latent_dist.mode()
    x = all_of(data, flips=True)
    torch.testing.assert_close(x, mirrored * vae.config.scaling_factor, rtol=1e-4, atol=1e-5)
    plain = all_of(data, flips=False)
    assert torch.equal(plain, all_of(data)), "no flips are no mirrored images"
    assert (x - plain.flip(-1)).abs().max() > 1e-3, "a mirrored latent is another one"
    alone = encode_images(images, make_vae(), settings)
    assert torch.equal(all_of(alone), plain), "the scale does not depend on them"


def test_references_are_drawn_apart_from_the_batch(images, settings):
    data = encode_images(images, make_vae(), settings, sampled=True)
    draw = Draw(0, 4, 8, "cpu")
    rows = data.pixels[:8]
    x, _ = References(iter([{"x": rows}]), 8, transform=data.transform).step(draw)
    own = Draw(0, 4, 8, "cpu", REFERENCES)
    assert torch.equal(x, data.transform(rows, None, own, range(8)))
    assert not torch.equal(x, data.transform(rows, None, draw, range(8)))


def test_images_are_encoded_once_for_each_autoencoder_and_kind(images, settings, monkeypatch):
    encoded = []
    monkeypatch.setattr(
        latents, "encode", lambda vae, x, encode=latents.encode: encoded.append(len(x)) or encode(vae, x)
    )
    first = encode_images(images, make_vae(), settings)
    assert sum(encoded) == 64
    again = encode_images(images, make_vae(scaling_factor=3.0), settings)
    assert sum(encoded) == 64, "weights are what counts, and the file is read"
    assert torch.equal(all_of(first), all_of(again))
    encode_images(images, make_vae(1), settings)
    assert sum(encoded) == 128, "other weights"
    encode_images(images, make_vae(), settings, sampled=True)
    assert sum(encoded) == 192, "means hold no deviations"
    encode_images(images, make_vae(), settings, mirrored=True)
    assert sum(encoded) == 256, "the mirrored ones alone"


@pytest.mark.parametrize("damage", [b"", b"no tensors", slice(0, 300)])
def test_a_damaged_file_is_passed_over_and_made_again(images, settings, tmp_path, damage):
    before = all_of(encode_images(images, make_vae(), settings))
    (file,) = (tmp_path / "cache").glob("latents-*.safetensors")
    content = file.read_bytes()
    file.write_bytes(content[damage] if isinstance(damage, slice) else damage)
    with pytest.warns(UserWarning, match="is not as it was written, so the images are encoded again"):
        assert torch.equal(all_of(encode_images(images, make_vae(), settings)), before)
    assert file.read_bytes() == content


def test_what_an_autoencoder_does_not_take_is_refused(images, settings):
    with pytest.raises(UserError, match="takes images of 3 channels, and these have 1: convert them with `image_mode`"):
        encode_images(images, make_vae(in_channels=3, out_channels=3), settings)
    with pytest.raises(UserError, match="`vae_sample` needs a posterior, which AutoencoderTiny has not"):
        encode_images(images, make_tiny(), settings, sampled=True)
    constant = make_vae()
    for weight in constant.quant_conv.parameters():
        torch.nn.init.zeros_(weight)
    with pytest.raises(UserError, match="gives all images the same latents"):
        encode_images(images, constant, settings)


def test_the_cauchy_distance_is_an_option_of_ict_and_ect():
    generator = torch.Generator().manual_seed(0)
    student, target, x = torch.randn(3, 5, 4, 8, 8, generator=generator).unbind()
    sigma = torch.tensor([0.5] * 5)
    pair = Pair(student, target, sigma, 2 * sigma, x)
    squares = (student - target).square().flatten(1).sum(1)
    for kind in (ICT, ECT):
        chosen = kind.from_settings(metric="cauchy", cauchy_c=3.0)
        torch.testing.assert_close(chosen.distance(pair), torch.log(1 + squares / 18))
        torch.testing.assert_close(chosen.loss(pair), torch.log(1 + squares / 18) / 0.5)
        assert kind.from_settings(**chosen.settings()) == chosen
        default = kind.from_settings(metric="cauchy")
        torch.testing.assert_close(default.distance(pair), torch.log(1 + squares / (2 * 0.00054**2 * 256)))
        plain = kind()
        assert not {"metric", "cauchy_c"} & plain.settings().keys(), "as in checkpoints of before"
        assert torch.equal(plain.distance(pair), pseudo_huber(student, target, plain.huber_c))
        for wrong in ({"metric": "l1"}, {"metric": "cauchy", "cauchy_c": 0.0}):
            with pytest.raises((UserError, ValueError), match=r"`metric` must be|`cauchy_c` must be"):
                kind.from_settings(**wrong)
    adaptive = ECT.from_settings(metric="cauchy", cauchy_c=3.0, adaptive_weight=True)
    weight = 1 / (torch.log(1 + (target - x).square().flatten(1).sum(1) / 18) + 1e-3)
    torch.testing.assert_close(adaptive.loss(pair), weight * torch.log(1 + squares / 18))


@pytest.fixture
def latent_flags(flags, tmp_path) -> list[str]:
    """Flags of a run on latents, whose settings are those of the short runs."""
    make_vae().save_pretrained(tmp_path / "vae")
    write_npz(tmp_path / "data.npz", side=16)
    unet = {**TINY, **ONE_LEVEL, "in_channels": 4, "out_channels": 4, "_class_name": "UNet2DModel"}
    (tmp_path / "unet.json").write_text(json.dumps(unet))
    return [*flags, "--pretrained_vae_name_or_path", str(tmp_path / "vae"), "--max_train_steps", "6"]


def test_a_run_that_is_stopped_and_resumed_repeats_the_uninterrupted_one_bit_for_bit(latent_flags, tmp_path):
    own = [*latent_flags, "--vae_sample", "--objective", "metric=cauchy", "--reference_batch_size", 6]
    assert run(*own, "--output_dir", tmp_path / "whole") == 0
    for _ in range(2):
        assert run(*own, "--output_dir", tmp_path / "parts", "--max_train_minutes", 1e-6, *LATEST) == 3
    assert run(*own, "--output_dir", tmp_path / "parts", *LATEST) == 0
    assert_bitwise_equal(tmp_path / "whole", tmp_path / "parts")


def test_a_run_goes_on_with_its_own_autoencoder_alone(latent_flags, tmp_path, capsys):
    own = [*latent_flags, "--output_dir", tmp_path / "out"]
    assert run(*own, "--max_train_minutes", 1e-6) == 3
    make_vae(1).save_pretrained(tmp_path / "other")
    other = [*own, *LATEST, "--pretrained_vae_name_or_path", tmp_path / "other"]
    assert_refused(tmp_path, capsys, "the checkpoint was made with autoencoder weights ", *other)
    drawn = [*own, *LATEST, "--vae_sample"]
    assert_refused(tmp_path, capsys, "made with autoencoder latents means and this run has drawn", *drawn)
    (tmp_path / "vae").rename(tmp_path / "elsewhere")
    moved = [*own, *LATEST, "--pretrained_vae_name_or_path", tmp_path / "elsewhere"]
    assert run(*moved) == 0


def test_what_cannot_be_is_refused_at_the_door_in_one_sentence(latent_flags, tmp_path, capsys):
    make_vae(in_channels=3, out_channels=3).save_pretrained(tmp_path / "colour")
    make_tiny().save_pretrained(tmp_path / "tiny")
    (tmp_path / "empty").mkdir()
    unet = tmp_path / "network"
    unet.mkdir()
    (unet / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    grey = tmp_path / "grey.json"
    grey.write_text(json.dumps({**TINY, **ONE_LEVEL}))
    vae = "--pretrained_vae_name_or_path"
    for message, flags in (
        ("there is no such folder, and an id on the Hub is user/name", [vae, tmp_path / "missing"]),
        ("no autoencoder could be loaded from", [vae, tmp_path / "empty"]),
        ("must be an AutoencoderKL or AutoencoderTiny, and", [vae, unet]),
        (
            "takes images of 3 channels, and these have 1: convert them with --image_mode",
            [vae, tmp_path / "colour"],
        ),
        ("needs a posterior, which AutoencoderTiny has not", [vae, tmp_path / "tiny", "--vae_sample"]),
        ("the resolution must be a multiple of it, got 15x15", ["--resolution", 15]),
        ("an autoencoder encodes pictures: leave --normalize", ["--normalize", "min-max"]),
        ("latents are encoded once, before the first step: leave --streaming out", ["--streaming"]),
        ("the latents have 4 channels, so the UNet needs 4 in and out", ["--model_config_name_or_path", grey]),
        ("a model of latents begins afresh", ["--pretrained_model_name_or_path", tmp_path / "start"]),
    ):
        assert_refused(tmp_path, capsys, message, *latent_flags, *flags, "--output_dir", tmp_path / "out")
    without = [*latent_flags[: latent_flags.index(vae)], "--output_dir", tmp_path / "out", "--vae_sample"]
    assert_refused(tmp_path, capsys, "name an autoencoder as --pretrained_vae_name_or_path", *without)


def test_an_autoencoder_is_found_in_the_folder_of_a_pipeline(tmp_path):
    for subfolder in ("vae", "vqvae"):
        make_vae(2).save_pretrained(tmp_path / subfolder / subfolder)
        found = load_vae(str(tmp_path / subfolder))
        assert isinstance(found, AutoencoderKL)
        assert torch.equal(found.quant_conv.weight, make_vae(2).quant_conv.weight)


def test_a_dry_run_names_the_autoencoder_and_the_latents(latent_flags, tmp_path, capsys):
    assert run(*latent_flags, "--dry_run", "--output_dir", tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert "images      64 of 1x16x16" in told
    assert "latents     4x8x8, means, of AutoencoderKL (2 times smaller, scaled by " in told
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_example_of_the_documentation_runs(tmp_path, monkeypatch):
    section = (ROOT / "docs" / "other_data.md").read_text().split("## Latents")[1].split("\n## ")[0]
    make, draw = re.findall(r"```python\n(.*?)```", section, re.S)
    (command,) = re.findall(r"```bash\n(.*?)```", section, re.S)
    monkeypatch.chdir(tmp_path)
    exec(make.replace("range(300)", "range(2)"), {})
    program, train, *words = command.split()
    assert (program, train) == ("diffusers-ict", "train")
    shorter = ["--max_train_steps", "3", "--train_batch_size", "4", "--objective", "s0=2", "s1=4"]
    assert run(*words, *shorter, "--num_validation_images", "2") == 0
    exec(draw, {})
    with Image.open("sample.png") as drawn:
        assert drawn.size == (16, 16)


@pytest.mark.slow
def test_two_processes_encode_once_and_learn_what_one_learns(latent_flags, tmp_path):
    own = [*latent_flags, "--vae_sample", "--dropout", 0, "--image_cache_dir", tmp_path / "cache"]
    done = two_processes("train_ict.py", *own, "--gradient_accumulation_steps", 1, "--output_dir", tmp_path / "two")
    assert done.returncode == 0, done.stderr[-2000:]
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("latents-*")}
    assert len(files) == 2, "of images and of mirrored images"
    assert run(*own, "--gradient_accumulation_steps", 2, "--output_dir", tmp_path / "one") == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("latents-*")} == files
    one, two = (final_tensors(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-3, atol=1e-4, msg=name)


def test_latents_are_given_to_train_from_python(images, settings, tmp_path):
    unet = {**TINY, **ONE_LEVEL, "in_channels": 4, "out_channels": 4, "num_class_embeds": 4}
    (tmp_path / "unet.json").write_text(json.dumps(unet))
    recipe = Recipe(
        model_config_name_or_path=str(tmp_path / "unet.json"),
        train_batch_size=4,
        max_train_steps=2,
        objective={"s0": 2, "s1": 4},
        num_validation_images=2,
        class_conditional=True,
        random_flip=True,
        output_dir=str(tmp_path / "out"),
    )
    with pytest.raises(UserError, match="`random_flip` needs latents of mirrored images"):
        train(recipe, dataset=encode_images(images, make_vae(), settings))
    train(recipe, dataset=encode_images(images, make_vae(), settings, mirrored=True))
    assert json.loads((tmp_path / "out" / "model_index.json").read_text())["_class_name"] == "LDMPipeline"
    assert json.loads((tmp_path / "out" / "run.json").read_text())["autoencoder"] == "an autoencoder of its own"
    named = replace(recipe, pretrained_vae_name_or_path="vae")
    with pytest.raises(UserError, match="`pretrained_vae_name_or_path` means nothing where"):
        train(named, dataset=encode_images(images, make_vae(), settings, mirrored=True))
