"""The training script as a whole: what it leaves behind, and that it learns."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ONE_LEVEL, ROOT, TINY, files_of, make_unet, write_npz
from diffusers import ConsistencyModelPipeline, DiffusionPipeline, UNet2DModel
from PIL import Image
from safetensors.torch import load_file
from short_run import ACT, ICT, assert_bitwise_equal, final_tensors, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffusers_ict import ICT as ICT_OBJECTIVE
from diffusers_ict import ConsistencyPipeline, ICTScheduler, fast_columns
from diffusers_ict.data.dataset import Images
from diffusers_ict.training import checkpoint, log, train, unets
from diffusers_ict.training import opening as runs
from diffusers_ict.training.log import read_log
from diffusers_ict.training.samples import make_pipeline, sample_picture


def without(flags: list[str], name: str) -> list[str]:
    """The flags less one of them and its value."""
    where = flags.index(name)
    return [*flags[:where], *flags[where + 2 :]]


def test_the_output_folder_holds_what_others_need_and_names_neither_machine_nor_token(flags, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_plantedplantedplanted")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "out"
    assert run(*ICT, *flags, "--validation_steps", 12, "--output_dir", folder) == 0
    names = {p.name for p in folder.iterdir()}
    assert {"model_index.json", "unet", "scheduler", "samples", "recipe.yaml", "log.jsonl", "training.png"} <= names
    assert sorted(p.name for p in (folder / "samples").iterdir()) == ["step-0000012.png", "step-0000024.png"]
    with Image.open(folder / "training.png") as plot:
        assert plot.size[0] > 100
    for name, content in files_of(folder).items():
        for secret in ("hf_planted", str(Path.home()), str(tmp_path), str(ROOT)):
            assert secret.encode() not in content, f"{name} holds {secret}"

    newest = checkpoint.list_checkpoints(folder)[0]
    for number, variant in enumerate((None, "ema5")):
        expected = load_file(newest / f"ema_{number}.safetensors")
        unet = ConsistencyPipeline.from_pretrained(folder, variant=variant).unet
        assert all(torch.equal(p, expected[name]) for name, p in unet.named_parameters())
    for kind in (DiffusionPipeline, ConsistencyModelPipeline):
        images = kind.from_pretrained(folder)(2, num_inference_steps=2, output_type="np").images
        assert images.shape == (2, 8, 8, 1)

    entry = read_log(folder / "log.jsonl")[-1]
    assert entry["num_levels"] == 17
    assert entry["loss"] > 0
    assert entry["images_per_second"] > 0
    assert len(entry["loss_by_sigma"]) >= 1
    unet = UNet2DModel.from_pretrained(folder / "unet")
    assert (unet.time_embedding.linear_1.weight[:, fast_columns(unet)] == 0).all()


@pytest.mark.slow
def test_samples_appear_early_at_checkpoints_and_at_the_end_and_go_to_the_tracker(flags, tmp_path):
    own = [*without(flags, "--validation_steps"), "--max_train_steps", 30, "--checkpointing_steps", 13]
    assert run(*ICT, *own, "--report_to", "tensorboard", "--output_dir", tmp_path / "out") == 0
    steps = [int(path.stem.split("-")[1]) for path in sorted((tmp_path / "out" / "samples").iterdir())]
    assert steps == [1, 3, 9, 13, 26, 30]
    events = EventAccumulator(str(tmp_path / "out" / "diffusers-ict"), size_guidance={"images": 0})
    events.Reload()
    assert {event.step for tag in events.Tags()["images"] for event in events.Images(tag)} == set(steps)
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 31))
    assert "step" not in events.Tags()["scalars"], "trackers have it beside each entry"


def test_a_grid_shows_real_images_above_samples_of_the_same_classes():
    pixels = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 1, 8, 8) * 40
    images = Images(pixels, torch.tensor([1, 0, 1, 0, 2, 2]), 3, ("cat", "dog", "fox"))
    pipeline = make_pipeline(make_unet(num_class_embeds=3), ICTScheduler())
    picture = sample_picture(pipeline, images, 6, seed=0)
    zoomed = np.asarray(picture)
    left = picture.width - (6 * 64 + 5 * 2)  # names of rows
    shown = [int(zoomed[50, left + 66 * column + 32, 0]) for column in range(6)]
    assert [sorted(shown[number::3]) for number in range(3)] == [[40, 120], [0, 80], [160, 200]], "cat, dog, fox, again"
    assert left > 20
    assert (zoomed[:14, left:] < 128).any(), "no names of classes"


def test_the_rate_follows_its_schedule_through_a_resume_and_gradients_are_clipped(flags, tmp_path):
    """The rate is that of diffusers' schedules; the norm is relative to the mean weight of the stage."""
    rates, norms = [], []
    step = torch.optim.RAdam.step

    def noting(self, *args, **kwargs):
        (group,) = self.param_groups
        rates.append(group["lr"])
        norms.append(torch.stack([p.grad.norm() for p in group["params"]]).norm().item())
        return step(self, *args, **kwargs)

    own = [*ICT, *flags, "--max_train_steps", 12, "--lr_scheduler", "cosine", "--lr_warmup_steps", 4]
    own += ["--max_grad_norm", 1e-4]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.RAdam, "step", noting)
        assert run(*own, "--output_dir", tmp_path / "whole") == 0
    cosine = [0.5 * (1 + math.cos(math.pi * (k - 4) / 8)) for k in range(4, 12)]
    assert rates == pytest.approx([1e-3 * f for f in [0.0, 0.25, 0.5, 0.75, *cosine]])
    weights = [ICT_OBJECTIVE(s0=2, s1=16).mean_weight(k, 12) for k in range(12)]
    assert norms == pytest.approx([1e-4 * weight for weight in weights], rel=1e-3)
    start = tmp_path / "whole" / "checkpoint-5"
    assert run(*own, "--output_dir", tmp_path / "resumed", "--resume_from_checkpoint", start) == 0
    assert_bitwise_equal(tmp_path / "whole", tmp_path / "resumed")


@pytest.mark.parametrize("precision", ["no", pytest.param("bf16", marks=pytest.mark.slow)])
def test_training_learns(precision, flags, tmp_path):
    # One grid for the whole run and one micro batch a step: losses of different steps compare, and steps are short.
    own = ["--dropout", 0, "--objective", "s1=2", "--train_batch_size", 8, "--gradient_accumulation_steps", 1]
    own += ["--checkpointing_steps", 1000, "--mixed_precision", precision, "--max_train_steps", 120]
    assert run("--loss", "ict", *flags, *own, "--output_dir", tmp_path / "out") == 0
    assert all(v.dtype == torch.float32 for v in final_tensors(tmp_path / "out").values())
    losses = [entry["loss"] for entry in read_log(tmp_path / "out" / "log.jsonl")]
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])


def test_a_warm_start_continues_and_keeps_fast_columns_where_they_are_used(flags, tmp_path, capsys):
    before = make_unet(seed=3)
    make_pipeline(before, ICTScheduler()).save_pretrained(tmp_path / "start")
    own = [*without(flags, "--model_config_name_or_path"), "--pretrained_model_name_or_path", tmp_path / "start"]
    assert run(*ICT, *own, "--max_train_steps", 4, "--output_dir", tmp_path / "out") == 0
    assert "the given weights use fast frequencies of the time embedding: they are kept" in capsys.readouterr().out
    unet = UNet2DModel.from_pretrained(tmp_path / "out" / "unet")
    assert (unet.time_embedding.linear_1.weight[:, fast_columns(unet)] != 0).any()
    assert 0 < (unet.conv_in.weight - before.conv_in.weight).abs().max() < 0.1
    for name, content in files_of(tmp_path / "out").items():
        assert str(tmp_path).encode() not in content, f"{name} holds the path of the first weights"


def test_what_is_not_the_training_itself_warns_and_the_run_goes_on(flags, tmp_path):
    """A card that cannot be read, an inspection, and samples whose folder is a file."""
    own = [*ICT, *flags, "--max_train_steps", 12]
    assert run(*own, "--output_dir", tmp_path / "whole") == 0
    assert run(*own, "--max_train_minutes", 1e-6, "--output_dir", tmp_path / "out") == 3
    (tmp_path / "out" / "README.md").write_text("---\n[: no mapping\n---\n# Mine")
    (tmp_path / "out" / "inspection.json").write_text("{")
    shutil.rmtree(tmp_path / "out" / "samples", ignore_errors=True)
    (tmp_path / "out" / "samples").write_text("")
    with pytest.warns(UserWarning, match="could not be made, and the run goes on: ") as told:
        assert run(*own, "--output_dir", tmp_path / "out", "--resume_from_checkpoint", "latest") == 0
    warned = {str(warning.message).partition(" could")[0] for warning in told}
    assert warned == {"samples", "the model card"}
    assert (tmp_path / "out" / "README.md").read_text().endswith("# Mine")
    assert_bitwise_equal(tmp_path / "whole", tmp_path / "out")
    assert UNet2DModel.from_pretrained(tmp_path / "out" / "unet")


@pytest.mark.slow
def test_channels_last_changes_rounding_alone_and_is_saved_as_ever(flags, tmp_path, monkeypatch):
    own = [*ACT, *flags, "--max_train_steps", 8]
    assert run(*own, "--output_dir", tmp_path / "first") == 0
    opened, runs = train.open_run, []
    monkeypatch.setattr(train, "open_run", lambda *args: runs.append(opened(*args)) or runs[-1])
    assert run(*own, "--channels_last", "--output_dir", tmp_path / "last") == 0
    for network in (runs[0].networks.unet, runs[0].networks.adversary.model):
        assert network.conv_in.weight.stride() == (9, 1, 3, 1)
    first, last = final_tensors(tmp_path / "first"), final_tensors(tmp_path / "last")
    for name, value in first.items():
        torch.testing.assert_close(last[name], value, rtol=1e-3, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    assert UNet2DModel.from_pretrained(tmp_path / "last" / "unet").conv_in.weight.is_contiguous()


def test_both_networks_train_in_half_precision(flags, tmp_path):
    own = ["--mixed_precision", "bf16", "--max_train_steps", 6]
    assert run(*ACT, *flags, *own, "--output_dir", tmp_path / "out") == 0
    entries = read_log(tmp_path / "out" / "log.jsonl")
    assert all(np.isfinite(entry["discriminator_loss"]) for entry in entries)
    (penalised,) = [entry for entry in entries if "r1" in entry]
    assert penalised["r1"] > 0
    assert penalised["augment_p"] > 0
    assert penalised["augment_tau"] == 1e-6
    tensors = final_tensors(tmp_path / "out")
    assert all(v.isfinite().all() for v in tensors.values())
    assert tensors["discriminator_optimizer/logit.weight|exp_avg"].abs().max() > 0


def test_dry_run_tells_the_plan_and_touches_nothing(flags, tmp_path, capsys):
    before = files_of(tmp_path)
    own = ["--loss", "ict", *flags, "--dry_run", "--output_dir", tmp_path / "out"]
    assert run(*own, "--max_train_steps", 400) == 0
    out = capsys.readouterr().out
    count = sum(p.numel() for p in make_unet(**ONE_LEVEL).parameters())
    assert f"{count / 1e6:.2f} M" in out
    assert "400 of 8 images" in out
    assert "num_levels  4 stages: 3 from step 0, 5 from step 100, 9 from step 200, 17 from step 300" in out
    assert run(*own, "--num_train_epochs", 2.5) == 0
    out = capsys.readouterr().out
    assert "20 of 8 images, 2.5 epochs" in out
    assert "time        less than a minute here, from 3 steps measured" in out
    assert files_of(tmp_path) == before


def test_a_dry_run_measures_no_longer_than_it_should_and_advises(flags, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(log, "DRY_RUN_SECONDS", 0.0)
    monkeypatch.setattr(log, "LONG_SECONDS", 0.0)
    assert run("--loss", "ict", *flags, "--dry_run", "--output_dir", tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert "here, from 1 step measured: use fewer --max_train_steps, --config small_budget, or a GPU" in told


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (20, "less than a minute"),
        (80, "about 1 minute"),
        (7000, "about 120 minutes"),
        (40_000, "about 11 hours"),
        (41_647_080, "about 480 days"),
    ],
)
def test_an_estimate_has_the_digits_that_it_knows(seconds, told):
    assert log.rounded_time(seconds) == told


def test_a_cpu_trains_the_small_network_unless_told_otherwise_and_resumes_what_it_began(tmp_path, capsys, monkeypatch):
    """A run that a GPU began with the default network goes on with it; one of a CPU has the small one."""
    write_npz(tmp_path / "data.npz", 16, side=32)
    own = ["--dataset_name", tmp_path / "data.npz", "--train_batch_size", 2, "--output_dir", tmp_path / "out"]
    own += ["--num_validation_images", 1, "--max_train_steps", 2, "--loss", "ect", "--checkpointing_steps", 1]
    monkeypatch.setattr(unets, "default_unet_config", lambda *given: {**TINY, "sample_size": 32, "in_channels": 1})
    for module in (unets, runs):
        monkeypatch.setattr(module, "takes_small", lambda *given: False)  # as on a GPU
    assert run(*own) == 0
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "out" / "checkpoint-2")
    assert run(*own, "--resume_from_checkpoint", "latest") == 0
    assert "the small one" not in capsys.readouterr().out
    kept = json.loads((tmp_path / "out" / "unet" / "config.json").read_text())["block_out_channels"]
    assert kept == list(TINY["block_out_channels"])
    assert run(*own, "--dry_run", "--output_dir", tmp_path / "other") == 0
    out = capsys.readouterr().out
    assert "network     the small one (small_unet.json), because there is no GPU here" in out
    assert "parameters  1." in out
