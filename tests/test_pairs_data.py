"""The data of pairs: conditions from files, columns and folders, and what does not fit."""

import datasets
import numpy as np
import pytest
import torch
from conftest import pictures
from PIL import Image

from diffusers_ict.data.load import load_images
from diffusers_ict.data.map_dataset import MapDataset
from diffusers_ict.errors import UserError
from diffusers_ict.training.recipe import Recipe


def test_files_parquet_and_folders_give_the_same_pairs(tmp_path, pairs):
    images, grey = pictures()
    colour, negative = ([Image.fromarray(one) for one in each] for each in (images, grey))
    features = datasets.Features({"grey": datasets.Image(), "picture": datasets.Image()})
    rows = datasets.Dataset.from_dict({"grey": negative, "picture": colour}, features=features)
    rows.to_parquet(tmp_path / "pairs.parquet")
    folder = tmp_path / "folder"
    for number in range(len(images)):
        for name, one in (("input", negative[number]), ("target", colour[number])):
            (folder / name / f"{number % 3}").mkdir(parents=True, exist_ok=True)
            one.save(folder / name / f"{number % 3}" / f"{number:03}.{'png' if number % 2 else 'tiff'}")
    order = sorted(range(len(images)), key=lambda n: (n % 3, f"{n:03}"))
    column = {"conditioning_image_column": "grey"}
    read = {
        "npz": load_images(dataset_name=str(pairs), image_column="image", class_conditional=True, **column),
        "parquet": load_images(dataset_name=str(tmp_path / "pairs.parquet"), **column),  # the other column is meant
        "open": load_images(dataset=rows, **column),
        "folder": load_images(train_data_dir=str(folder), conditioning_image_column="input", class_conditional=True),
    }
    for name, found in read.items():
        rows_of = torch.tensor(order if name == "folder" else range(len(images)))
        assert found.shape == (3, 8, 8), name
        assert found.condition_channels == 1, name
        assert torch.equal(found.pixels, torch.from_numpy(images).permute(0, 3, 1, 2)[rows_of]), name
        assert torch.equal(found.condition.pixels[:, 0], torch.from_numpy(grey)[rows_of]), name
    assert read["folder"].labels.tolist() == [number % 3 for number in order]
    item, batch = read["npz"][5], read["npz"].__getitems__([5, 6])
    assert item["label"] == 5 % 3
    assert torch.equal(item["condition"], batch["condition"][0])
    assert read["npz"].overview()["conditions"] == "1x8x8, of 8x8, 64 uint8"
    assert (
        read["parquet"].fingerprint()
        == read["open"].fingerprint()
        != load_images(dataset_name=str(tmp_path / "pairs.parquet"), image_column="picture").fingerprint()
    )


def test_small_conditions_are_enlarged_by_lanczos_and_modes_are_their_own(tmp_path):
    images, _ = pictures()
    small = images[:, ::2, ::2]
    np.savez(tmp_path / "small.npz", image=images, small=small)
    settings = {"dataset_name": str(tmp_path / "small.npz"), "image_column": "image"}
    found = load_images(**settings, conditioning_image_column="small", conditioning_image_mode="L")
    assert found.shape == (3, 8, 8)
    for stored, condition in zip(small, found.condition.pixels):
        expected = Image.fromarray(stored).convert("L").resize((8, 8), Image.Resampling.LANCZOS)
        assert np.array_equal(condition[0].numpy(), np.asarray(expected))
    itself = load_images(**settings, conditioning_image_column="image", conditioning_image_mode="L", resolution=4)
    assert itself.condition.shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"input": ["a.png"], "target": ["a.jpg", "b.png"]}, "the image b has no partner"),
        ({"input": ["a.png", "c/d.png"], "target": ["a.png"]}, "the condition c/d has no partner"),
        ({"input": ["a.png", "a.jpg"], "target": ["a.png"]}, "have one name"),
        ({"wrong": ["a.png"], "target": ["a.png"]}, "has target, wrong, not input"),
        ({"input": ["a.png"]}, "has input, not target"),
    ],
)
def test_a_folder_of_pairs_that_does_not_fit_is_refused(tmp_path, names, message):
    for folder, files in names.items():
        for name in files:
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8)).save(tmp_path / folder / name)
    with pytest.raises(UserError, match=r"conditioning_image_column|sub-folder") as refusal:
        load_images(train_data_dir=str(tmp_path), conditioning_image_column="input")
    assert message in str(refusal.value)


def test_conditions_that_do_not_fit_are_refused(tmp_path, pairs):
    images, grey = pictures()
    np.savez(tmp_path / "fewer.npz", image=images, grey=grey[:-1])
    name = {"dataset_name": str(tmp_path / "fewer.npz"), "image_column": "image"}
    with pytest.raises(UserError, match="one for each of 64 images, got 63"):
        load_images(**name, conditioning_image_column="grey")
    with pytest.raises(UserError, match="must name one of"):
        load_images(**name, conditioning_image_column="blue")
    with pytest.raises(UserError, match="`conditioning_image_mode` is for pairs"):
        Recipe(**name, conditioning_image_mode="L")
    with pytest.raises(UserError, match="`conditioning_image_column` means nothing for data with `normalize`"):
        load_images(**name, conditioning_image_column="grey", normalize="none")
    mixed = [Image.new("RGB" if number else "L", (8, 8)) for number in range(2)]
    features = datasets.Features({"mixed": datasets.Image(), "image": datasets.Image()})
    rows = datasets.Dataset.from_dict({"mixed": mixed, "image": mixed[1:] * 2}, features=features)
    with pytest.raises(UserError, match=r"^the conditions .*give `resolution` and `conditioning_image_mode`\.$"):
        load_images(dataset=rows, conditioning_image_column="mixed")
    sides = [Image.new("L", (8, 10)), Image.new("L", (8, 8))]
    rows = datasets.Dataset.from_dict({"mixed": sides, "image": sides[::-1]}, features=features)
    assert len(load_images(dataset=rows, conditioning_image_column="mixed", center_crop=True)) == 2
    rows = datasets.Dataset.from_dict({"mixed": sides, "image": sides[1:] * 2}, features=features)
    with pytest.raises(UserError, match=r"`center_crop` needs an image and its condition of one size .* 8x10"):
        load_images(dataset=rows, conditioning_image_column="mixed", center_crop=True)


class Items(torch.utils.data.Dataset):
    """A data set of a caller's own: items as they are handed over."""

    def __init__(self, items: list[dict]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        return self.items[index]


def test_a_data_set_of_ones_own_may_have_conditions():
    x, condition = torch.rand(3, 8, 4) * 2 - 1, torch.rand(2, 8, 4)
    own = MapDataset(Items([{"x": x, "condition": condition}] * 3))
    assert (own.shape, own.condition_channels) == ((3, 8, 4), 2)
    assert own.fingerprint() != MapDataset(Items([{"x": x, "condition": condition / 2}] * 3)).fingerprint()
    for wrong in ([{"x": x, "condition": condition}, {"x": x}], [{"x": x, "condition": condition[:, :4]}] * 2):
        with pytest.raises(UserError, match='all items or none must have a "condition"'):
            MapDataset(Items(wrong))
    with pytest.raises(UserError, match="within -1 and 1"):
        MapDataset(Items([{"x": x, "condition": condition * 3 + 1}]))
