"""The pipeline of a model of pairs: the forms of `image`, what the network makes of it, and stock diffusers."""

import shutil
import subprocess

import numpy as np
import pytest
import torch
from conftest import ROOT, make_unet, pictures
from PIL import Image

from diffusers_ict import ConsistencyEditPipeline, ConsistencyPipeline, ICTScheduler, Inpaint
from diffusers_ict.formulas.preconditioning import Condition

TEMPLATE = ROOT / "src" / "diffusers_ict" / "hub" / "templates" / "pipeline.py"


@pytest.fixture
def pipeline() -> ConsistencyPipeline:
    made = ConsistencyPipeline(make_unet(in_channels=6, out_channels=3).eval(), ICTScheduler())
    made.set_progress_bar_config(disable=True)
    return made


def draw(pipeline, image, steps: int = 2, **options) -> np.ndarray:
    generator = torch.Generator().manual_seed(5)
    return pipeline(image=image, num_inference_steps=steps, generator=generator, output_type="np", **options).images


def test_one_picture_in_any_form_gives_the_same_images(pipeline):
    images, _ = pictures(3)
    forms = {
        "PIL": [Image.fromarray(one) for one in images],
        "uint8 array": images,
        "float array": images.astype(np.float32) / 255,
        "list of arrays": list(images),
        "tensor": torch.from_numpy(images).permute(0, 3, 1, 2),
        "list of tensors": list(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255),
    }
    expected = draw(pipeline, forms["PIL"])
    assert expected.shape == (3, 8, 8, 3)
    for name, form in forms.items():
        assert np.array_equal(draw(pipeline, form), expected), name
    assert np.array_equal(draw(pipeline, forms["PIL"], batch_size=3), expected)
    larger = Image.fromarray(images[0]).resize((32, 24))
    resized = larger.resize((8, 8), Image.Resampling.LANCZOS)
    assert np.array_equal(draw(pipeline, larger), draw(pipeline, resized))
    assert np.array_equal(draw(pipeline, resized.convert("RGBA")), draw(pipeline, resized))


def test_samples_are_those_of_the_network_for_the_condition(pipeline):
    """One step by hand: f(80 z, 80) of the network's output for [c_in x, condition]."""
    images, _ = pictures(2)
    latents = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    (drawn,) = pipeline(image=images, latents=latents, output_type="latent", return_dict=False)
    condition = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 * 2 - 1
    level = torch.full((2,), 80.0, dtype=torch.float64)
    with torch.no_grad():
        f = pipeline.scheduler.consistency_function(pipeline.unet)
        expected = f(latents * 80, level, Condition(None, condition))
    assert torch.allclose(drawn, expected.clamp(-1, 1), atol=2e-5)


def test_one_image_is_for_all_of_a_batch_and_conditions_matter(pipeline):
    images, _ = pictures(2)
    several = draw(pipeline, images[0], batch_size=3)
    assert several.shape == (3, 8, 8, 3)
    assert not np.array_equal(several[0], several[1])  # variations
    assert np.array_equal(several, draw(pipeline, np.stack([images[0]] * 3)))
    assert not np.array_equal(draw(pipeline, images[0]), draw(pipeline, images[1]))


def test_calls_that_do_not_fit_are_refused(pipeline):
    images, grey = pictures(2)
    plain = ConsistencyPipeline(make_unet(in_channels=3, out_channels=3), ICTScheduler())
    for call, message in (
        (lambda: pipeline(), "give image, of 3 channels"),
        (lambda: plain(image=images), "leave image out"),
        (lambda: pipeline(batch_size=3, image=images), "as many as batch_size, got 2 and batch_size 3"),
        (
            lambda: pipeline(image=grey[..., None]),
            r"must be 8x8 of 3 channels for this model, got the shape \(1, 8, 8\)",
        ),
        (lambda: pipeline(image=images[:, :4]), r"got the shape \(3, 4, 8\): resize"),
        (lambda: pipeline(image=images.astype(np.float32)), "numbers from 0 to 1"),
        (lambda: ConsistencyEditPipeline.from_pipe(pipeline)(images, Inpaint(torch.ones(8, 8))), "call ConsistencyP"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


FOREIGN = """
import json, sys
import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
folder, out = sys.argv[1:]
pipeline = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
pictures = [Image.open(f"{out}/{number}.png") for number in range(2)]
forms = {"pictures": pictures, "tensor": torch.load(f"{out}/given.pt", weights_only=True)}
for name, image in forms.items():
    for steps in (1, 2):
        generator = torch.Generator().manual_seed(5)
        made = pipeline(image=image, num_inference_steps=steps, generator=generator, output_type="np").images
        np.save(f"{out}/{name}-{steps}.npy", made)
for wrong in ({}, {"image": pictures[0], "sigmas": [1.0, 2.0]}, {"image": pictures * 2, "batch_size": 3}):
    try:
        pipeline(**wrong)
    except ValueError as error:
        print(error)
assert "diffusers_ict" not in sys.modules
"""


@pytest.mark.slow
def test_stock_diffusers_draws_the_same_images_by_the_repositorys_own_file(tmp_path, pipeline, python_without_us):
    pipeline.save_pretrained(tmp_path / "model")
    shutil.copy(TEMPLATE, tmp_path / "model")
    images, _ = pictures(2, side=20)
    given = [Image.fromarray(one) for one in images]
    given[1].putalpha(100)
    for number, one in enumerate(given):
        one.save(tmp_path / f"{number}.png")
    tensor = torch.rand(2, 3, 8, 8)
    torch.save(tensor, tmp_path / "given.pt")
    command = [python_without_us, "-I", "-c", FOREIGN, str(tmp_path / "model"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("\n") == 3
    for name, image in (("pictures", given), ("tensor", tensor)):
        for steps in (1, 2):
            theirs = np.load(tmp_path / f"{name}-{steps}.npy")
            assert np.abs(theirs - draw(pipeline, image, steps)).max() == 0.0, (name, steps)
