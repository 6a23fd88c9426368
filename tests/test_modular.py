"""The blocks of Modular Diffusers that `publish --modular` adds, from the Hub, in a process without this package."""

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_unet
from hub_client import NAME, environment_of, push
from hub_stand_in import Hub, serve

from diffusers_ict import ConsistencyInpaintPipeline, ConsistencyPipeline, ICTScheduler
from diffusers_ict.errors import UserError
from diffusers_ict.hub.card import make_card
from diffusers_ict.hub.modular import write_blocks

FOREIGN = """
import sys
import numpy as np
import torch
from diffusers import ModularPipeline

repository, folder = sys.argv[1:]
pipeline = ModularPipeline.from_pretrained(repository, trust_remote_code=True)
pipeline.load_components()
own = {"output": "images", "output_type": "np", "class_labels": [1, 3]}


def drawn(name, **options):
    np.save(f"{folder}/{name}.npy", pipeline(**own, generator=torch.Generator().manual_seed(7), **options))


given = {name: np.load(f"{folder}/{name}.npy") for name in ("image", "mask_image")}
drawn("sampled", batch_size=2, num_inference_steps=2)
drawn("levels", batch_size=2, sigmas=[80.0, 5.0, 0.3])
drawn("edited", **given, num_inference_steps=4)
drawn("painted", **given, sigmas=[6.0, 0.5])
assert "diffusers_ict" not in sys.modules
"""


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("diffusers.commands.run") is None, reason="the blocks are for diffusers 0.42 and newer"
)
def test_the_blocks_of_a_repository_draw_and_inpaint_as_this_package_does(run, tmp_path, python_without_us):
    image = np.random.default_rng(0).uniform(size=(2, 8, 8, 1)).astype(np.float32)
    mask = np.zeros((8, 8), np.float32)
    mask[:, 4:] = 1
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "mask_image.npy", mask[None, :, :, None])
    with serve(Hub()) as hub:
        done = push(hub, run, tmp_path / "home", "--modular")
        assert done.returncode == 0, done.stderr[-2000:]
        assert {"blocks.py", "modular_config.json"} <= hub.repositories[NAME].files.keys()
        card = hub.repositories[NAME].files["README.md"].decode()
        command = [python_without_us, "-I", "-c", FOREIGN, NAME, str(tmp_path)]
        variables = environment_of(hub, tmp_path / "elsewhere")
        loaded = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=300)
        assert loaded.returncode == 0, loaded.stderr[-2000:]
    assert f'ModularPipeline.from_pretrained("{NAME}", trust_remote_code=True)' in card

    def ours(kind, *given, **options):
        pipeline = kind.from_pretrained(run)
        generator = torch.Generator().manual_seed(7)
        return pipeline(*given, class_labels=[1, 3], generator=generator, output_type="np", **options).images

    expected = {
        "sampled": ours(ConsistencyPipeline, 2, num_inference_steps=2),
        "levels": ours(ConsistencyPipeline, 2, sigmas=[80.0, 5.0, 0.3]),
        "edited": ours(ConsistencyInpaintPipeline, image, mask, num_inference_steps=4),
        "painted": ours(ConsistencyInpaintPipeline, image, mask, sigmas=[6.0, 0.5]),
    }
    for name, images in expected.items():
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), images, rtol=0, atol=2e-6, err_msg=name)
    kept = expected["edited"][:, :, :4]
    np.testing.assert_allclose(kept, image[:, :, :4], rtol=0, atol=1e-6)
    assert np.abs(expected["edited"] - expected["painted"]).max() > 0.01, "the levels change nothing"


def test_blocks_stay_in_a_folder_and_are_shown_in_its_card(run):
    assert "Modular" not in make_card(run, NAME).text
    write_blocks(run)
    config = json.loads((run / "modular_config.json").read_text())
    module, name = config["auto_map"]["ModularPipelineBlocks"].split(".")
    assert re.search(rf"^class {name}\(AutoPipelineBlocks\)", (run / f"{module}.py").read_text(), re.M)
    card = make_card(run, NAME).text
    assert "As blocks of Modular Diffusers" in card
    assert 'pipeline(num_inference_steps=2, class_labels=0, output="images")[0].save("sample.png")' in card


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "vqvae").mkdir(), "this one draws latents"),
        (lambda folder: (folder / "normalization.json").write_text("{}"), "this one draws arrays"),
    ],
)
def test_models_of_other_things_than_pictures_get_no_blocks(tmp_path, spoil, message):
    ConsistencyPipeline(make_unet(), ICTScheduler()).save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        write_blocks(tmp_path)
    assert not Path(tmp_path / "blocks.py").exists()


def test_models_of_pairs_and_folders_without_a_model_get_no_blocks(tmp_path):
    with pytest.raises(UserError, match="must be the output folder of a training run or a conversion; it has no model"):
        write_blocks(tmp_path)
    ConsistencyPipeline(make_unet(in_channels=2), ICTScheduler()).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="draw from noise alone, and this model is given images"):
        write_blocks(tmp_path)
