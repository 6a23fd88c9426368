"""The file of real images' statistics: made once, damaged ones made again, features kept where a metric needs them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import write_npz
from evaluated import arguments, figures, refused
from safetensors.torch import load_file

from diffusers_ict.data.load import load_images
from diffusers_ict.evaluation import features, frechet_distance, make_extractor


@pytest.fixture(scope="module")
def fakes(tmp_path_factory) -> Path:
    """Images to be measured, and data beside them."""
    base = tmp_path_factory.mktemp("cached")
    write_npz(base / "data.npz", count=100)
    images = np.load(base / "data.npz")["images"]
    noisy = images + np.random.default_rng(0).integers(0, 30, images.shape)
    np.savez(base / "fakes.npz", images=noisy.clip(0, 255).astype(np.uint8))
    return base / "fakes.npz"


def flip(content: bytes) -> bytes:
    """One bit of the last tensor."""
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


DAMAGES = {
    "flipped": flip,
    "zeroed": lambda content: content[: len(content) // 2] + bytes(len(content) - len(content) // 2),
    "cut off": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "other metadata": lambda content: content.replace(b"data.npz", b"date.npz"),
}


@pytest.mark.parametrize("name", list(DAMAGES))
def test_damaged_statistics_are_told_and_made_again(fakes, tmp_path, capsys, name):
    whole = figures(fakes, tmp_path)
    (kept,) = (tmp_path / "cache").glob("reference-*.safetensors")
    content = kept.read_bytes()
    kept.write_bytes(DAMAGES[name](content))
    assert kept.read_bytes() != content
    shared = [fakes, "--reference", kept, *arguments(fakes, tmp_path)[3:]]
    refused(capsys, "is not a file of reference statistics, or a damaged one", *shared)
    with pytest.warns(UserWarning, match=rf"{kept.name} is not a file .* or a damaged one: .* It is made again"):
        assert figures(fakes, tmp_path) == whole
    assert features.read_reference(kept, make_extractor("pixels"), keep=True).count == 100


def test_features_are_kept_only_where_a_metric_needs_them(fakes, tmp_path, capsys):
    fid = figures(fakes, tmp_path, "--metrics", "fid")
    (kept,) = (tmp_path / "cache").glob("reference-*.safetensors")
    assert sorted(load_file(kept)) == ["covariance", "mean"]
    shared = [fakes, "--reference", kept, *arguments(fakes, tmp_path, "--output_dir", tmp_path / "out")[3:]]
    refused(capsys, "holds mean and covariance alone, which fid needs; for other --metrics, give", *shared)
    every = figures(fakes, tmp_path)
    assert every[0]["metrics"]["frechet"] == pytest.approx(fid[0]["metrics"]["frechet"], rel=1e-9)
    assert sorted(load_file(kept)) == ["covariance", "features", "mean"]
    written = kept.stat().st_mtime_ns
    assert figures(fakes, tmp_path, "--metrics", "fid") == fid
    assert kept.stat().st_mtime_ns == written


def test_batches_of_images_give_the_moments_of_all(fakes):
    """Images are asked for a batch at a time, and their features forgotten."""
    images, asked = load_images(dataset_name=str(fakes)), []

    def part(numbers):
        asked.append(numbers)
        return images.part(numbers)[0]

    extract = features.Extraction(make_extractor("pixels"), Accelerator(), 30, images.shape)
    got = extract(part, 100, "", keep=False)
    assert [len(numbers) for numbers in asked] == [30, 30, 30, 10]
    assert torch.equal(torch.cat(asked), torch.arange(100))
    assert got.features is got.logits is None
    whole = images.part(slice(None))[0].flatten(1).double() / 255
    assert abs(frechet_distance(got.moments, whole)) < 1e-6
