"""What programs write is never read as data: their folders lie outside of those of the images, and are no images."""

import os
from pathlib import Path

import datasets
import pytest
from evaluated import arguments, refused
from short_run import ICT, assert_refused
from test_images import folder, solid

from diffusers_ict.commands import inspect_model
from diffusers_ict.data.load import load_images
from diffusers_ict.data.own_output import WRITTEN
from diffusers_ict.errors import UserError

OUTSIDE = "must lie outside of the data, or what is written there would be read as data"


@pytest.fixture
def pictures(tmp_path, monkeypatch) -> Path:
    """A folder of images in which we are, beside a link to it, with a link to a folder elsewhere."""
    folder(tmp_path / "images", {f"a/{i}.png": solid("L", colour=i) for i in range(8)})
    folder(tmp_path / "elsewhere", {"0.png": solid("L")})
    (tmp_path / "images" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(tmp_path / "images")
    monkeypatch.chdir(tmp_path / "images")
    return tmp_path / "images"


PLACES = ["out", ".", "../images/a/out", "../link/out", "../elsewhere/x/out", "more/out"]


@pytest.mark.parametrize("place", PLACES)
def test_a_run_does_not_write_into_its_data(pictures, capsys, place):
    flags = [*ICT, "--train_data_dir", pictures, "--output_dir", place, "--max_train_steps", "20"]
    assert_refused(pictures.parent, capsys, f"--output_dir {OUTSIDE}: got {place}, and --train_data_dir", *flags)


def test_nor_into_the_files_of_a_stream(tmp_path, capsys):
    datasets.Dataset.from_dict({"image": [b"", b""]}).to_parquet(tmp_path / "data" / "1.parquet")
    flags = [*ICT, "--streaming", "--dataset_name", tmp_path / "data", "--output_dir", tmp_path / "data" / "out"]
    assert_refused(tmp_path, capsys, OUTSIDE, *flags, "--max_train_steps", "20")


@pytest.mark.parametrize("place", PLACES)
def test_decoded_images_do_not_lie_in_the_data(pictures, place):
    with pytest.raises(UserError, match=f"`image_cache_dir` {OUTSIDE}"):
        load_images(train_data_dir=".", image_cache_dir=place)


def test_nor_do_reports_lie_there(pictures, finished, capsys):
    run = pictures.parent / "out"
    given = [*arguments(run, pictures.parent)[:1], "--train_data_dir", pictures, "--output_dir", "report"]
    refused(capsys, OUTSIDE, *given)
    refused(capsys, OUTSIDE, pictures, "--train_data_dir", run, "--output_dir", "report")
    assert inspect_model.main([*map(str, given), "--extractor", "pixels"]) == 2
    assert OUTSIDE in capsys.readouterr().err
    assert not Path("report").exists()


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("place", [".", "sub/out"])
def test_a_folder_of_images_holds_no_earlier_run(tmp_path, name, place):
    where = folder(tmp_path, {"1.png": solid("L"), f"{place}/samples/step-1.png": solid("L")})
    assert len(load_images(train_data_dir=where)) == 2
    (tmp_path / place / name).write_text("{}")
    holder = os.path.normpath(tmp_path / place)
    with pytest.raises(UserError, match=f"must not hold what a run or a model has written, and {holder} holds {name}"):
        load_images(train_data_dir=where)


def test_data_inside_the_output_folder_and_folders_beside_it_are_allowed(tmp_path):
    where = folder(tmp_path / "data" / "images", {"1.png": solid("L")})
    for beside in (tmp_path / "data", tmp_path / "data" / "images2"):
        assert len(load_images(train_data_dir=where, image_cache_dir=str(beside))) == 1
