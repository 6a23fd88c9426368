"""What is special to UNet2DModel and to 8-bit squares is not in the way of other networks, data and losses."""

import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from safetensors.torch import load_file
from short_run import final_tensors
from torch import Tensor, nn
from torch.utils.data import Dataset

from diffusers_ict import ACT, ICT, ConsistencyPipeline, ICTScheduler
from diffusers_ict.data.transform import to_unit
from diffusers_ict.errors import UserError
from diffusers_ict.training.log import read_log
from diffusers_ict.training.recipe import Recipe
from diffusers_ict.training.train import train

SHAPE = (5, 16, 24)


class Fields(Dataset):
    """Smooth fields of five quantities, drawn on the spot: float32, not square, not between -1 and 1."""

    num_classes = 3

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> dict:
        rng = np.random.default_rng(index)
        waves = np.sin(np.linspace(0, 3, 24)[None] * rng.uniform(1, 3) + np.linspace(0, 2, 16)[:, None])
        scale = rng.uniform(0.5, 1.5, (5, 1, 1))
        return {"x": torch.from_numpy((scale * waves).astype(np.float32)), "label": index % 3}


class Mixer(nn.Module):
    """A network that is no UNet2DModel: two convolutions between an embedding of the level and of the class."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            sample_size=SHAPE[1:], in_channels=5, out_channels=5, num_class_embeds=3, width=width
        )
        self.enter = nn.Conv2d(5, width, 3, padding=1)
        self.level = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.classes = nn.Embedding(3, width)
        self.drop = nn.Dropout(0.2)
        self.leave = nn.Conv2d(width, 5, 3, padding=1)

    def forward(
        self, x: Tensor, timestep: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> tuple[Tensor]:
        level = self.level(timestep.float().reshape(-1, 1).expand(len(x), 1) / 1000)
        condition = level + self.classes(class_labels)
        hidden = torch.relu(self.enter(x) + condition[..., None, None])
        return (self.leave(self.drop(hidden)),)


def mixer() -> Mixer:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return Mixer()


def recipe(folder, **settings) -> Recipe:
    return Recipe(**{"train_batch_size": 4, "gradient_accumulation_steps": 2, "max_train_steps": 12,
                     "learning_rate": 1e-3, "ema_decays": [0.9, 0.5], "checkpointing_steps": 5, "logging_steps": 1,
                     "checkpoints_total_limit": 9,
                     "num_validation_images": 3, "validation_steps": 6, "random_flip": True, **settings},
                  output_dir=str(folder))  # fmt: skip


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_network_of_ones_own_trains_on_float_data_resumes_bit_for_bit_and_is_sampled(workers, tmp_path):
    objective = ICT(s0=2, s1=16)
    train(recipe(tmp_path / "whole"), model=mixer(), dataset=Fields(), objective=objective)
    again = recipe(tmp_path / "other", resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"),
                   dataloader_num_workers=workers)  # fmt: skip
    train(again, model=mixer(), dataset=Fields(), objective=objective)
    whole, other = final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "other")
    assert whole.keys() == other.keys()
    assert all(torch.equal(whole[name], other[name]) for name in whole)
    assert any(not torch.equal(value, mixer().state_dict()[name]) for name, value in load(tmp_path / "whole").items())

    net = mixer()
    net.load_state_dict(load(tmp_path / "whole"))
    pipeline = ConsistencyPipeline(net.eval(), ICTScheduler(clip_denoised=False))
    noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    (sampled,) = pipeline(2, [0, 2], latents=noise, output_type="latent", return_dict=False)
    f = ICTScheduler().consistency_function(net)
    with torch.no_grad():
        exact = f(80 * noise, torch.full((2,), 80.0), torch.tensor([0, 2]))
    torch.testing.assert_close(sampled, exact, rtol=1e-5, atol=1e-5)
    samples = pipeline(3, num_inference_steps=2, output_type="np").images
    assert samples.shape == (3, 16, 24, 5)


def load(folder) -> dict[str, Tensor]:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def test_a_network_of_ones_own_learns_float_data(tmp_path):
    settings = {"max_train_steps": 80, "gradient_accumulation_steps": 1, "train_batch_size": 16, "learning_rate": 5e-3}
    train(recipe(tmp_path / "out", **settings), model=mixer(), dataset=Fields(), objective=ICT(s0=2, s1=2))
    losses = [entry["loss"] for entry in read_log(tmp_path / "out" / "log.jsonl")]
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])


def test_what_a_run_cannot_use_is_told(tmp_path):
    class Wrong(Fields):
        def __getitem__(self, index: int) -> dict:
            return {"x": super().__getitem__(index)["x"].long()}

    with pytest.raises(UserError, match=r'must be \{"x": tensor .*number 0 is torch.int64 \[5, 16, 24\]'):
        train(recipe(tmp_path / "out"), model=mixer(), dataset=Wrong())
    with pytest.raises(UserError, match="the discriminator of ACT is made for a UNet2DModel, got Mixer"):
        train(recipe(tmp_path / "out"), model=mixer(), dataset=Fields(), objective=ACT())
    with pytest.raises(UserError, match=r"`push_to_hub` needs a model of diffusers, .* got Mixer"):
        train(recipe(tmp_path / "o", push_to_hub=True, hub_model_id="a/b"), model=mixer(), dataset=Fields())
    assert not (tmp_path / "out").exists()


LOSS = '''
from dataclasses import dataclass
from typing import ClassVar

from ..formulas.distances import squared_l2
from .base import bounded
from .ict import ICT


@dataclass(frozen=True)
class Squared(ICT):
    """iCT with the squared distance."""

    method: ClassVar[str] = "iCT squared"
    paper: ClassVar[str] = "https://example.org/squared"
    citation: ClassVar[str] = "A. Author. Squared."
    dropout: ClassVar[float] = 0.1
    scale: float = bounded(2.0, above=0)

    def distance(self, pair):
        return self.scale * squared_l2(pair.student, pair.target)
'''


def test_a_new_loss_is_one_file_and_one_line(flags, tmp_path):
    """In a copy of the package, whose program trains with it, shows it in --help, and cites it in the card."""
    package = shutil.copytree(ROOT / "src" / "diffusers_ict", tmp_path / "src" / "diffusers_ict")
    (package / "objectives" / "squared.py").write_text(LOSS)
    listing = package / "objectives" / "__init__.py"
    listing.write_text(listing.read_text().replace('"act": "ACT"', '"act": "ACT", "squared": "Squared"'))
    program = "import sys; from diffusers_ict.commands.train import main; sys.exit(main(sys.argv[1:]))"
    own = [*flags, "--loss", "squared", "--objective", "scale=3", "--max_train_steps", "5"]

    def call(*words) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", program, *map(str, words)]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)

    assert "squared" in call("--help").stdout
    assert (
        "--objective scale must be greater than 0, got -1"
        in call(*own, "--objective", "scale=-1", "--output_dir", tmp_path / "o").stderr
    )
    done = call(*own, "--output_dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "0.1, published for iCT squared" in done.stdout
    assert "scale: 3.0" in (tmp_path / "out" / "recipe.yaml").read_text()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "[iCT squared](https://example.org/squared)" in card
    assert "A. Author. Squared." in card


def test_what_the_caller_gives_and_what_the_recipe_says_must_not_be_at_odds(tmp_path):
    class Unlabelled(Fields):
        def __getitem__(self, index: int) -> dict:
            return {"x": super().__getitem__(index)["x"]}

    class TooFew(Fields):
        num_classes = 2

    net, data, out = mixer(), Fields(), tmp_path / "out"
    for settings, given, message in (
        ({"dropout": 0.1}, {"model": net, "dataset": data}, "`dropout` means nothing where train.* is given model"),
        ({"train_data_dir": "x"}, {"model": net, "dataset": data}, "`train_data_dir` means nothing .* dataset"),
        ({"objective": {"s1": 5}}, {"objective": ICT()}, "`objective` means nothing where train.* is given objective"),
        ({"class_conditional": True}, {"model": net, "dataset": Unlabelled()}, "needs labels"),
        ({}, {"model": net, "dataset": TooFew()}, r"needs the attribute `num_classes`, above its labels \(0 to 2"),
        ({}, {"model": nn.Conv2d(5, 5, 1), "dataset": data}, "must have in_channels, num_class_embeds, out_channels"),
    ):
        with pytest.raises(UserError, match=message):
            train(recipe(out, **settings), **given)
    assert not out.exists()


def test_a_built_in_objective_is_recorded_as_a_recipe_that_repeats_the_run(tmp_path):
    settings = {"max_train_steps": 5, "gradient_accumulation_steps": 1}
    for name, objective in (("ict", ICT(s0=2, s1=8)), ("own", ICT(s0=2, s1=8, sigma_max=40.0))):
        train(recipe(tmp_path / name, **settings), model=mixer(), dataset=Fields(), objective=objective)
    written = yaml.safe_load((tmp_path / "ict" / "recipe.yaml").read_text())
    assert (written["loss"], written["objective"]) == ("ict", {**ICT().settings(), "s0": 2, "s1": 8})
    assert "--objective s0=2 s1=8" in (tmp_path / "ict" / "run.json").read_text()
    assert yaml.safe_load((tmp_path / "own" / "recipe.yaml").read_text())["objective"] == {}


class Tied(Mixer):
    """A network with tied weights and a mask of -inf, whose config has a value that JSON does not have."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.config.dtype = torch.float32
        self.register_buffer("mask", torch.full((1,), float("-inf")))
        self.tied = self.level[2]


class Mine(ICT):
    """An objective whose description would hold an address."""

    def __repr__(self) -> str:
        return object.__repr__(self)


def test_unusual_networks_and_objectives_are_saved_and_resumed(tmp_path):
    def run(folder, **settings):
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            net = Tied()
        train(recipe(folder, max_train_steps=6, **settings), model=net, dataset=Fields(), objective=Mine(s0=2, s1=8))

    run(tmp_path / "whole")
    run(tmp_path / "other", resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    whole, other = final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "other")
    assert all(torch.equal(whole[name], other[name]) for name in whole)
    assert "0x" not in (tmp_path / "whole" / "run.json").read_text()


def test_half_precision_data_are_trained_in_float32():
    x = to_unit(torch.full((1, 1, 2, 2), 0.3, dtype=torch.float16), None, "cpu")
    assert x.dtype == torch.float32
