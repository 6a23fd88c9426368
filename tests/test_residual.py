"""Pairs of which the difference is learned: its formulas, what a run learns and keeps, and what its pipelines draw."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from conftest import ROOT, make_unet, pictures
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from short_run import assert_bitwise_equal, assert_refused, run
from test_lpips import weights as lpips_weights

from diffusers_ict import ConsistencyPipeline, ICTScheduler
from diffusers_ict.commands import inspect_model
from diffusers_ict.data.batches import Batches
from diffusers_ict.data.draw import Draw
from diffusers_ict.errors import UserError
from diffusers_ict.formulas.residual import from_residual, residual_scale, to_residual
from diffusers_ict.hub.check_repository import Severity, check_repository
from diffusers_ict.normalization import Normalization
from diffusers_ict.stock_key import STOCK_KEY
from diffusers_ict.training.recipe import Recipe
from diffusers_ict.training.train import train

TEMPLATE = ROOT / "src" / "diffusers_ict" / "hub" / "templates" / "pipeline.py"


def test_residuals_by_hand():
    x, condition = torch.tensor([[[[0.5, -0.25]], [[1.0, 0.0]]]]), torch.tensor([[[[0.25, 0.25]]]])
    r = to_residual(x, condition, 0.5)  # [1, 2, 1, 2], the condition has one channel
    assert torch.equal(r, torch.tensor([[[[0.5, -1.0]], [[1.5, -0.5]]]]))
    assert torch.equal(from_residual(r, condition, 0.5), x)
    # squares of the differences: 1/16, 1/4, 9/16, 1/16, whose mean is 15/64
    assert residual_scale([(x, condition)]) == pytest.approx((15 / 64) ** 0.5 / 0.5, rel=1e-6)
    assert residual_scale([(x, condition), (x, condition)]) == residual_scale([(x, condition)])
    assert residual_scale([(x, x)]) == 0
    noise = torch.randn(50, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    scale = residual_scale((one[None], torch.zeros(1, 1, 8, 8)) for one in noise)
    assert to_residual(noise, torch.zeros(50, 1, 8, 8), scale).square().mean().sqrt().item() == pytest.approx(0.5)


def test_a_step_learns_the_residuals_of_mirrored_pairs():
    images, grey = pictures(8)
    x, condition = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(grey)[:, None]
    draw = Draw(3, 7, 8, "cpu")
    batches = Batches(iter([{"x": x, "condition": condition}]), 8, 8, random_flip=True, residual_scale=0.3)
    (batch,) = batches.step(draw, torch.full((8,), 0.1), torch.full((8,), 0.2))
    assert 0 < draw.flips().sum() < 8
    for row, flip in enumerate(draw.flips()):
        one, given = (part[row].flip(-1) if flip else part[row] for part in (x, condition))
        expected = ((one.float() / 127.5 - 1) - (given.float() / 127.5 - 1)) / 0.3
        assert torch.allclose(batch.x[row], expected, atol=1e-5)
        assert torch.equal(batch.condition[row], given.float() / 127.5 - 1)


def test_a_run_keeps_its_scale_and_all_pipelines_draw_from_the_condition(tmp_path, pair_flags, capsys):
    flags = [*pair_flags, "--learn_residual", "--objective", "s0=2", "s1=4"]
    assert run(*flags, "--output_dir", tmp_path / "out") == 0
    with np.load(next(word for word in map(str, pair_flags) if word.endswith(".npz"))) as data:
        x, given = data["image"] / 127.5 - 1, data["grey"][..., None] / 127.5 - 1
    scale = np.sqrt(np.mean((x - given) ** 2)) / 0.5
    config = json.loads((tmp_path / "out/scheduler/scheduler_config.json").read_text())
    assert config[STOCK_KEY]["residual_scale"] == pytest.approx(scale, rel=1e-5)
    assert config["clip_denoised"] is False

    pipeline = ConsistencyPipeline.from_pretrained(tmp_path / "out")
    stock = DiffusionPipeline.from_pretrained(tmp_path / "out", custom_pipeline=str(TEMPLATE), trust_remote_code=True)
    grey = torch.from_numpy(pictures(2)[1])[:, None]
    for made in (pipeline, stock):
        made.set_progress_bar_config(disable=True)
    for steps in (1, 2):

        def draw(made, kind, steps=steps):
            options = {"image": grey.float() / 255, "num_inference_steps": steps, "output_type": kind}
            return made(generator=torch.Generator().manual_seed(0), return_dict=False, **options)[0]

        r, images = draw(pipeline, "latent"), draw(pipeline, "pt")
        expected = (grey.float() / 255 * 2 - 1) + config[STOCK_KEY]["residual_scale"] * r
        assert torch.allclose(images, (expected / 2 + 0.5).clamp(0, 1), atol=1e-6)
        assert torch.equal(draw(stock, "pt"), images)
        assert torch.equal(draw(stock, "latent"), r)
    assert "draws how the image differs from it" in (tmp_path / "out/README.md").read_text()
    found = check_repository(str(tmp_path / "out"))
    assert [finding.text for finding in found if finding.severity is Severity.ERROR] == []
    data = [str(word) for word in pair_flags[: pair_flags.index("--model_config_name_or_path")]]
    words = [*data, "--extractor", "pixels", "--num_samples", "12", "--output_dir", str(tmp_path / "inspected")]
    assert inspect_model.main([str(tmp_path / "out"), *words]) == 0


def test_a_resumed_run_learns_the_same_residuals_and_no_others(tmp_path, pair_flags, capsys):
    flags = [*pair_flags, "--learn_residual", "--objective", "s0=2", "s1=16"]
    assert run(*flags, "--output_dir", tmp_path / "whole") == 0
    assert run(*flags, "--output_dir", tmp_path / "parts") == 0
    newest = max((tmp_path / "parts").glob("checkpoint-*"))
    for file in sorted(newest.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    newest.rmdir()
    again = ["--output_dir", tmp_path / "parts", "--resume_from_checkpoint", "latest"]
    assert run(*flags, *again) == 0
    assert_bitwise_equal(tmp_path / "whole", tmp_path / "parts")
    without = [flag for flag in flags if flag != "--learn_residual"]
    capsys.readouterr()
    assert run(*without, *again) == 2
    assert "learn_residual" in capsys.readouterr().err


def test_what_has_no_residual_is_refused(tmp_path, pair_flags, capsys):
    images, grey = pictures()
    np.savez(tmp_path / "same.npz", image=images, same=images, clear=np.concatenate([images, grey[..., None]], -1))
    own = ["--dataset_name", tmp_path / "same.npz", "--image_column", "image", "--output_dir", tmp_path / "out"]
    own += ["--model_config_name_or_path", pair_flags[pair_flags.index("--model_config_name_or_path") + 1]]
    for more, message in (
        ([], "is for pairs: leave it out, or set --conditioning_image_column"),
        (["--conditioning_image_column", "clear"], "1 channel or of the 3 of the images, got 4"),
        (["--conditioning_image_column", "same"], "where each image is its own condition: leave it out"),
    ):
        assert_refused(tmp_path, capsys, message, *own, *more, "--learn_residual")
    for wrong in (0, -1, float("nan"), "half"):
        with pytest.raises(ValueError, match="residual_scale must be a positive number, or None, got"):
            ICTScheduler(residual_scale=wrong)


@pytest.mark.parametrize(
    ("scale", "more", "message"), [(0.3, [], "set it"), (None, ["--learn_residual"], "leave it out")]
)
def test_a_start_that_learned_something_else_is_refused(tmp_path, pair_flags, capsys, scale, more, message):
    scheduler = ICTScheduler(residual_scale=scale, clip_denoised=scale is None)
    ConsistencyPipeline(make_unet(in_channels=4, out_channels=3), scheduler).save_pretrained(tmp_path / "start")
    at = pair_flags.index("--model_config_name_or_path")
    flags = [*pair_flags[:at], *pair_flags[at + 2 :], "--pretrained_model_name_or_path", tmp_path / "start", *more]
    assert_refused(tmp_path, capsys, message, *flags, "--output_dir", tmp_path / "out")
    if scale is not None:
        assert run(*flags, "--learn_residual", "--dry_run", "--output_dir", tmp_path / "out") == 0


def test_a_run_of_near_pairs_is_told_of_residuals(tmp_path, pair_flags, capsys):
    images, _ = pictures()
    np.savez(tmp_path / "near.npz", image=images, near=images // 4 * 3 + 32, far=255 - images, same=images)
    flags = [*pair_flags, "--dataset_name", tmp_path / "near.npz", "--dry_run", "--objective", "s0=2", "s1=4"]
    told = []
    for column, *more in (("near",), ("near", "--learn_residual"), ("far",), ("same",)):
        assert run(*flags, "--conditioning_image_column", column, *more, "--output_dir", tmp_path / "out") == 0
        told.append("--learn_residual learns the difference" in capsys.readouterr().out)
    assert told == [True, False, False, False]


class Values(torch.utils.data.Dataset):
    """Pairs of arrays, with a normalization or a value that is no number."""

    def __init__(self, value: float, normalization: Normalization | None) -> None:
        self.x = torch.full((3, 8, 8), value)
        self.normalization = normalization

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": self.x, "condition": torch.zeros(1, 8, 8)}


@pytest.mark.parametrize(
    ("value", "normalization", "message"),
    [
        (float("nan"), None, "needs images and conditions of finite numbers"),
        (0.5, Normalization("none", (0.0,) * 3, (1.0,) * 3), "the data have a normalization: leave it out"),
    ],
)
def test_values_that_have_no_residual_are_refused(tmp_path, pair_config, value, normalization, message):
    recipe = Recipe(
        learn_residual=True, model_config_name_or_path=str(pair_config), max_train_steps=4, train_batch_size=4,
        objective={"s0": 2, "s1": 4}, output_dir=str(tmp_path / "out"),
    )  # fmt: skip
    with pytest.raises(UserError, match=message):
        train(recipe, dataset=Values(value, normalization))


def test_residuals_are_no_pictures_for_lpips(tmp_path, pair_flags, capsys):
    save_file(lpips_weights(), tmp_path / "lpips.safetensors")
    metric = ["--loss", "ct", "--objective", "metric=lpips", f"lpips_weights={tmp_path / 'lpips.safetensors'}"]
    flags = [*pair_flags, "--learn_residual", *metric, "--output_dir", tmp_path / "out"]
    assert_refused(tmp_path, capsys, "lpips compares pictures, and the network draws residuals", *flags)


def test_a_check_finds_residuals_that_are_cut_or_belong_to_no_image(tmp_path):
    for channels, clip, fault in ((4, True, "clip_denoised would cut them"), (3, False, "no given image")):
        scheduler = ICTScheduler(residual_scale=0.3, clip_denoised=clip)
        made = ConsistencyPipeline(make_unet(in_channels=channels, out_channels=3).eval(), scheduler)
        made.save_pretrained(tmp_path / str(channels))
        errors = [one.text for one in check_repository(str(tmp_path / str(channels))) if one.severity is Severity.ERROR]
        assert any(fault in text for text in errors), errors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_published_pipeline_adds_the_given_image_in_float32(dtype):
    spec = importlib.util.spec_from_file_location("published", TEMPLATE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    unet = make_unet(in_channels=4, out_channels=3).eval().to(dtype)
    given = torch.rand(1, 1, *[unet.config.sample_size] * 2)
    for scheduler in (ICTScheduler(residual_scale=1e-6, clip_denoised=False), None):
        scheduler = scheduler or ICTScheduler(residual_scale=1e-6, clip_denoised=False).to_stock()
        made = module.ConsistencySigmasPipeline(unet, scheduler)
        made.set_progress_bar_config(disable=True)
        (drawn,) = made(image=given, output_type="pt", return_dict=False)
        assert torch.allclose(drawn.float(), given.expand_as(drawn), atol=1e-4)


def test_the_scale_is_kept_through_the_stock_scheduler_and_saved_only_where_there_is_one():
    scheduler = ICTScheduler(residual_scale=0.25, clip_denoised=False)
    assert ICTScheduler.from_stock(scheduler.to_stock()).config.residual_scale == 0.25
    assert "residual_scale" not in ICTScheduler().to_stock().config[STOCK_KEY]
    made = ConsistencyPipeline(make_unet(in_channels=4, out_channels=3).eval(), scheduler)
    assert made.scheduler.config.residual_scale == 0.25
