"""Models made elsewhere draw the images that their own formulas draw."""

import collections
import json
import math
import re

import guided_unet
import numpy as np
import pytest
import torch
from conftest import make_unet
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, DiffusionPipeline, UNet2DModel
from hub_stand_in import mistakes

from diffusers_ict import ConsistencyPipeline, ICTScheduler
from diffusers_ict.commands import check_repository, convert


def f_by_formula(network, x, sigma, told):
    """c_skip x + c_out F(c_in x, told), CM Appendix C, in float64 around the network."""
    skip = 0.25 / ((sigma - 0.002) ** 2 + 0.25)
    out = (sigma - 0.002) * 0.5 / math.sqrt(sigma**2 + 0.25)
    scaled = (x.double() / math.sqrt(sigma**2 + 0.25)).float()
    output = network(scaled, torch.full((len(x),), told))
    return (skip * x.double() + out * output.double()).clip(-1, 1).float()


def images_by_formula(network, count, side, levels, *, told=lambda sigma: 250 * math.log(sigma)):
    """Algorithm 1 of CM along `levels`, in [0, 1], [n, H, W, C]; the noise is drawn as the pipelines draw it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, side, side, generator=generator) * 80
    for number, sigma in enumerate(levels):
        x = f_by_formula(network, x, sigma, told(sigma))
        if len(levels) > 1:
            noise = torch.randn(x.shape, generator=generator)
            if number + 1 < len(levels):
                x = x + noise * math.sqrt(levels[number + 1] ** 2 - 0.002**2)
    return ((x + 1) / 2).permute(0, 2, 3, 1).numpy()


def images_by_pipeline(folder, kind, count, labels, **options):
    pipeline = kind.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline(count, labels, generator=generator, output_type="np", **options).images


def converted(path, checkpoint, *flags):
    """The folder that a checkpoint saved under this path is converted into."""
    torch.save(checkpoint, path)
    folder = path.with_name(f"{path.stem}-converted")
    assert convert.main([str(path), str(folder), *flags]) == 0
    return folder


def small():
    """A checkpoint of openai/consistency_models with one level, and what its weights do not tell."""
    return guided_unet.make((32,), (True,), 1), "--resolution", "8", "--attention_head_dim", "8"


GUIDED = {
    "class-conditional, as for ImageNet 64x64": {"classes": 5, "scale_shift": True, "attends": (False, True, True)},
    "unconditional, as for LSUN": {"scale_shift": False, "attends": (False, False, True)},
    "learned resampling": {"scale_shift": True, "attends": (False, True, False), "resnet_resampling": False},
    "one level": {"widths": (32,), "attends": (True,), "scale_shift": False},
}


@pytest.mark.parametrize("name", GUIDED)
def test_a_checkpoint_of_the_consistency_models_repository_draws_the_images_of_its_formulas(
    name, tmp_path, capsys, monkeypatch
):
    options = {"widths": (32, 64, 96), "layers": 2, **GUIDED[name]}
    state = guided_unet.make(**options)
    flags = ["--resolution", "16", "--attention_head_dim", "16", "--intermediate_sigmas", "0.821", "--license", "mit"]
    folder = converted(tmp_path / "model.pt", collections.OrderedDict(state), *flags)
    assert "Converted from a checkpoint of openai/consistency_models" in capsys.readouterr().out

    labels = torch.tensor([0, 4]) if "classes" in options else None
    levels = len(options["widths"])
    resized = {"down_at": [3, 6][: levels - 1], "up_at": [2, 5][: levels - 1]}

    def network(x, t):
        return guided_unet.forward(state, x, t, labels, head_dim=16, **resized)

    for steps, path in ((1, [80.0]), (2, [80.0, 0.821])):
        expected = images_by_formula(network, 2, 16, path)
        assert expected.std() > 0.05, "a constant image proves nothing"
        for kind in (ConsistencyPipeline, DiffusionPipeline):
            drawn = images_by_pipeline(folder, kind, 2, labels, num_inference_steps=steps)
            np.testing.assert_allclose(drawn, expected, atol=2e-4)
    assert check_repository.main([str(folder)]) == 0, capsys.readouterr().out
    card = (folder / "README.md").read_text()
    assert mistakes(card) == []
    monkeypatch.chdir(tmp_path)
    for code in re.findall(r"```python\n(.*?)```", card, re.S):
        exec(code, {})


def act_checkpoint(unet: UNet2DModel, *, six: bool, compiled: bool = False) -> dict:
    """What the authors' trainer saves, around the given averaged network; `six`: its conv_out computes six channels."""
    prefix = "model_ema.unet." + ("_orig_mod." if compiled else "")
    state = {f"{prefix}{name}": tensor.clone() for name, tensor in unet.state_dict().items()}
    for name in (f"{prefix}conv_out.weight", f"{prefix}conv_out.bias") if six else ():
        state[name] = torch.cat([torch.full_like(state[name], 9.0), state[name]])
    state |= {f"model.unet.{name}": torch.zeros_like(tensor) for name, tensor in unet.state_dict().items()}
    state |= {"model._discriminator.conv_in.weight": torch.zeros(3), "fid.real_features_sum": torch.zeros(2)}
    optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"betas": (0, 0.99)}]}
    version = {"global_step": 600000, "pytorch-lightning_version": "2.1.2"}
    return {**version, "state_dict": collections.OrderedDict(state), "optimizer_states": [optimizer]}


ACT = {"in_channels": 3, "out_channels": 3, "block_out_channels": (128, 64), "norm_num_groups": 32}
ACT_FLAGS = ["--resolution", "16", "--attention_head_dim", "8", "--intermediate_sigmas", "0.821", "0.3"]


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(("six", "classes", "compiled"), [(True, None, False), (False, 4, True)])
def test_a_checkpoint_of_the_act_release_draws_the_images_of_its_formulas(six, classes, compiled, tmp_path, capsys):
    unet = make_unet(3, **ACT, num_class_embeds=classes, attention_head_dim=8).eval()
    folder = converted(tmp_path / "act.ckpt", act_checkpoint(unet, six=six, compiled=compiled), *ACT_FLAGS)
    out = capsys.readouterr().out
    assert "Converted from a checkpoint of the ACT release" in out
    assert "was trained on sigma and not on 250 ln(sigma)" in out
    for text in (out, (folder / "README.md").read_text()):
        assert ("The last 3 of them, which are the image, were kept" in text) == six
    labels = None if classes is None else torch.tensor([1, 3])

    def network(x, t):
        return unet(x, t, class_labels=labels).sample

    grid = list(ICTScheduler(intermediate_sigmas=[0.821, 0.3]).sampling_sigmas(8))
    for steps, path in ((1, [80.0]), (2, [80.0, 0.821]), (3, [80.0, 0.821, 0.3]), (8, grid)):
        expected = images_by_formula(network, 2, 16, path, told=lambda sigma: sigma)
        for kind in (ConsistencyPipeline, DiffusionPipeline) if steps <= 2 else (ConsistencyPipeline,):
            drawn = images_by_pipeline(folder, kind, 2, labels, num_inference_steps=steps)
            np.testing.assert_allclose(drawn, expected, atol=3e-4)
        wrong = images_by_formula(network, 2, 16, path)
        assert np.abs(wrong - expected).max() > 1e-2, "it makes no difference what the network is told"


@pytest.mark.slow
@torch.no_grad()
def test_a_refitted_network_agrees_with_the_original_at_levels_between_those_of_the_samplers(tmp_path, capsys):
    unet = make_unet(3, **ACT, attention_head_dim=8).eval()
    # Large weights on the way, so that the output follows the noise level as closely as that of a trained network.
    unet.time_embedding.linear_1.weight *= 4
    for name, weights in unet.named_parameters():
        if "time_emb_proj" in name or "time_embedding.linear_2" in name:
            weights *= 8
    folder = converted(tmp_path / "act.ckpt", act_checkpoint(unet, six=False), *ACT_FLAGS[:-1])
    pipeline = ConsistencyPipeline.from_pretrained(folder)
    told = (0.002 * 40000 ** torch.rand(500, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).sort()[0]

    def embedded(net, times):
        return net.time_embedding(net.time_proj(times))

    def rms(error, wanted):
        return ((error.double() ** 2).mean().sqrt() / wanted.double().std(0).square().mean().sqrt()).item()

    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(2)).expand(500, -1, -1, -1)
    wanted, got = embedded(unet, told), embedded(pipeline.unet, 250 * told.log())
    assert rms(got - wanted, wanted) < 3e-5
    # One image at all levels: only the noise level makes the outputs differ.
    wanted, got = unet(x, told).sample, pipeline.unet(x, 250 * told.log()).sample
    assert rms(wanted - wanted.mean(0), wanted) > 0.9, "the network does not look at the noise level"
    assert rms(got - wanted, wanted) < 1e-4

    stated = json.loads((folder / "conversion.json").read_text())["refit"]
    assert stated.pop("levels") == 40
    assert all(0 < error < 3e-5 for error in stated.values())
    for text in (capsys.readouterr().out, (folder / "README.md").read_text()):
        assert all(f"{error:.1e}" in text for error in stated.values())


PUBLISHED = {  # levels of the grid, index of the second step, and its level, by scripts/launch.sh of the authors
    "ct_imagenet64.pt": (201, 106, 1.913),
    "ct_bedroom256.pt": (151, 67, 3.991),
    "ct_cat256.pt": (151, 62, 5.249),
    "cd_imagenet64_lpips.pt": (40, 22, 1.382),
    "cd_bedroom256_l2.pt": (40, 18, 3.520),
    "cd_bedroom256_lpips.pt": (40, 17, 4.366),
    "cd_cat256_l2.pt": (40, 18, 3.520),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_their_published_levels(name, tmp_path, capsys):
    grid, index, level = PUBLISHED[name]
    folder = converted(tmp_path / name, *small())
    said = capsys.readouterr().out
    assert f"OpenAI's {name[:-3]}: two steps go through {level:.4g}, the published level" in said
    ours = ConsistencyPipeline.from_pretrained(folder).scheduler
    assert ours.config.num_train_timesteps == grid
    assert list(ours.config.intermediate_sigmas) == [level]
    # The published call, by the configuration of diffusers' converter.
    stock = CMStochasticIterativeScheduler(num_train_timesteps=grid)
    for scheduler in (ours, stock):
        scheduler.set_timesteps(timesteps=[index, 0])
    assert torch.equal(ours.sigmas, stock.sigmas)
    assert stock.sigmas[1].item() == pytest.approx(level, rel=3e-4)
    # Two steps, here and in the stock scheduler that was saved.
    for scheduler in (ours, CMStochasticIterativeScheduler.from_pretrained(folder, subfolder="scheduler")):
        scheduler.set_timesteps(2)
        assert scheduler.sigmas[1].item() == np.float32(level)


ASKED = ["--intermediate_sigmas", "2.5", "0.4"]


@pytest.mark.parametrize(
    ("name", "flags", "said", "levels", "grid"),
    [
        ("ct_cat256.pt", ASKED, "two steps go through 2.5, as was asked", [2.5, 0.4], 151),
        ("object256.pt", [], "stock diffusers' default: --intermediate_sigmas sets another", [], 40),
    ],
)
def test_published_levels_give_way_and_are_for_released_names_only(name, flags, said, levels, grid, tmp_path, capsys):
    scheduler = ConsistencyPipeline.from_pretrained(converted(tmp_path / name, *small(), *flags)).scheduler
    assert said in capsys.readouterr().out
    assert list(scheduler.config.intermediate_sigmas) == levels
    assert scheduler.config.num_train_timesteps == grid


@pytest.mark.slow
def test_the_released_act_networks_are_known_by_their_widths(tmp_path):
    """The CIFAR-10 one, whole: 27.50 M parameters after the three channels that are not used are gone."""
    shape = {"sample_size": 32, "in_channels": 3, "out_channels": 3, "block_out_channels": (128, 128, 256, 256)}
    down = ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D")
    up = ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    unet = UNet2DModel(**shape, layers_per_block=2, down_block_types=down, up_block_types=up)
    folder = converted(tmp_path / "cifar10_fid_6_0.ckpt", act_checkpoint(unet, six=True))
    got = ConsistencyPipeline.from_pretrained(folder).unet
    assert sum(p.numel() for p in got.parameters()) / 1e6 == pytest.approx(27.50, abs=0.01)
    for key in ("sample_size", "attention_head_dim", "norm_num_groups"):
        assert got.config[key] == unet.config[key], key
    assert (tuple(got.config.down_block_types), tuple(got.config.up_block_types)) == (down, up)
    torch.testing.assert_close(got.conv_out.weight, unet.conv_out.weight)


def test_a_stock_repository_draws_the_same_images_and_keeps_its_levels(tmp_path):
    unet = make_unet(num_class_embeds=3).eval()
    ConsistencyModelPipeline(unet, CMStochasticIterativeScheduler(201)).save_pretrained(tmp_path / "stock")
    for name, flags in (("same", []), ("other", ["--intermediate_sigmas", "1.2", "0.3"])):
        assert convert.main([str(tmp_path / "stock"), str(tmp_path / name), *flags]) == 0
    for steps in (1, 2, 3):
        call = (DiffusionPipeline, 2, [0, 1])
        drawn = [images_by_pipeline(tmp_path / n, *call, num_inference_steps=steps) for n in ("stock", "same")]
        assert np.array_equal(*drawn)
    other = ConsistencyPipeline.from_pretrained(tmp_path / "other").scheduler
    assert list(other.sampling_sigmas(3)) == [80.0, 1.2, 0.3]
    text = "".join(p.read_text() for p in tmp_path.rglob("*.json") if "stock" not in p.parts)
    assert str(tmp_path) not in text
