"""Pictures that are not square: read, trained on, drawn, measured, edited."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image
from short_run import assert_refused, run

from diffusers_ict import ConsistencyPipeline
from diffusers_ict.commands import edit, evaluate, inspect_model, sample
from diffusers_ict.data.load import load_images
from diffusers_ict.data.transform import PictureFormat
from diffusers_ict.errors import UserError
from diffusers_ict.hub.check_repository import Severity, check_repository


def folder(base: Path, *sizes: tuple[int, int], classes: int = 1) -> Path:
    """Pictures of noise of these sizes, (width, height), in turn in sub-folders."""
    random = np.random.default_rng(0)
    for number, (width, height) in enumerate(sizes):
        place = base / f"class{number % classes}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(place / f"{number}.png")
    return base


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A run of a moment on pictures of 16x8, and its data beside it."""
    base = tmp_path_factory.mktemp("oblong")
    folder(base / "data", *[(20, 10)] * 40, classes=2)
    (base / "unet.json").write_text(json.dumps({**TINY, "num_class_embeds": 2, "in_channels": 3, "out_channels": 3}))
    own = ["--train_data_dir", base / "data", "--resolution", 8, "--width", 16, "--class_conditional"]
    own += ["--model_config_name_or_path", base / "unet.json", "--max_train_steps", 8, "--train_batch_size", 4]
    assert run(*own, "--num_validation_images", 4, "--output_dir", base / "run") == 0
    return base / "run"


@pytest.mark.parametrize(
    ("size", "box"),
    [((20, 10), (0, 0, 20, 10)), ((30, 10), (5, 0, 25, 10)), ((20, 30), (0, 10, 20, 20)), ((21, 27), (0, 8, 21, 18))],
)
def test_the_largest_part_of_the_shape_in_the_middle_is_taken(size, box, tmp_path):
    where = folder(tmp_path / "data", size)
    picture = Image.open(where / "class0" / "0.png")
    expected = picture.crop(box).resize((16, 8), Image.Resampling.LANCZOS)
    read = load_images(train_data_dir=str(where), resolution=8, width=16, center_crop=True, image_cache_dir=tmp_path)
    assert read.shape == (3, 8, 16)
    assert np.array_equal(read.part(torch.tensor([0]))[0][0].permute(1, 2, 0).numpy(), np.asarray(expected))


def test_other_shapes_are_refused_without_a_crop_and_a_width_needs_a_height(tmp_path):
    where = str(folder(tmp_path / "data", (20, 10), (20, 20)))
    with pytest.raises(UserError, match="it is 20x20 and must be of the shape 16x8: `center_crop` cuts out the middle"):
        load_images(train_data_dir=where, resolution=8, width=16)
    with pytest.raises(UserError, match="`width` 16 needs `resolution`, the height of the images"):
        load_images(train_data_dir=where, width=16)
    assert load_images(train_data_dir=where, resolution=8, width=16, center_crop=True).shape == (3, 8, 16)


def test_earlier_caches_and_streams_are_known_again():
    assert "width" not in PictureFormat(8).facts() | PictureFormat(8, width=8).facts()
    assert PictureFormat(8, width=16).facts()["width"] == 16


def test_it_draws_pictures_of_its_shape_and_programs_take_it(model, tmp_path):
    pipeline = ConsistencyPipeline.from_pretrained(model)
    assert pipeline(2, num_inference_steps=2).images[0].size == (16, 8)
    assert "at 16x8 pixels" in (model / "README.md").read_text()
    assert all(finding.severity is not Severity.ERROR for finding in check_repository(str(model)))
    data = ["--train_data_dir", str(model.parent / "data")]  # height and width are those of the run
    few = [*data, "--num_samples", "40", "--metrics", "kid", "pr", "--extractor", "pixels", "--steps", "1"]
    assert evaluate.main([str(model), *few, "--cache_dir", str(tmp_path / "cache")]) == 0
    assert sample.main([str(model), "--num_samples", "4", "--output", str(tmp_path / "samples.png")]) == 0
    pictures = ["--images", str(model.parent / "data" / "class0" / "0.png"), "--output", str(tmp_path / "edits.png")]
    assert edit.main([str(model), *pictures, "--num_inference_steps", "1"]) == 0
    assert inspect_model.main([str(model), *data, "--num_samples", "12", "--output_dir", str(tmp_path / "seen")]) == 0


def test_a_width_that_the_network_cannot_halve_is_refused(model, tmp_path, capsys):
    own = ["--train_data_dir", model.parent / "data", "--resolution", 8, "--width", 15, "--center_crop"]
    own += ["--model_config_name_or_path", model.parent / "unet.json", "--class_conditional", "--train_batch_size", 4]
    message = "the resolution must be a multiple of 2, such as 14 or 16, got 15"
    assert_refused(tmp_path, capsys, message, *own, "--output_dir", tmp_path / "out")


def test_pairs_are_of_one_shape(tmp_path):
    rng = np.random.default_rng(0)
    pairs = tmp_path / "pairs"
    for name, size in (("input", (32, 16)), ("target", (16, 8))):  # of the same shape: nothing is cut off
        (pairs / name).mkdir(parents=True)
        width, height = size
        for number in range(3):
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(pairs / name / f"{number}.png")
    own = {"train_data_dir": str(pairs), "conditioning_image_column": "input", "resolution": 8, "width": 16}
    images = load_images(**own, image_cache_dir=str(tmp_path / "cache"))
    assert images.shape == images.condition.shape == (3, 8, 16)
