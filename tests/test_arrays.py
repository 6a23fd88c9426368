"""Arrays that are no pictures: read exactly, normalised by closed forms, and given back in their own units."""

import json
import subprocess

import datasets
import numpy as np
import pytest
import torch
from conftest import make_unet
from PIL import Image
from short_run import assert_bitwise_equal, assert_refused, run

from diffusers_ict import (
    ConsistencyColorizePipeline,
    ConsistencyDenoisePipeline,
    ConsistencyImg2ImgPipeline,
    ConsistencyInpaintPipeline,
    ConsistencyPipeline,
    ICTScheduler,
)
from diffusers_ict.array_pictures import Shades, coloured
from diffusers_ict.commands import check_repository, evaluate, export_onnx, inspect_model, sample
from diffusers_ict.data.load import load_images
from diffusers_ict.errors import UserError
from diffusers_ict.normalization import Normalization, fit, load_normalization, save_normalization
from diffusers_ict.training.unets import default_unet_config
from diffusers_ict.web.build import build_page

SHAPE = (40, 8, 16, 2)  # n, H, W, C: neither square nor 8 bits
VALUES = (np.random.default_rng(0).standard_normal(SHAPE) * [3e-3, 200] + [0, 1e3]).astype(np.float32)
LABELS = np.arange(40) % 3


@pytest.fixture
def npz(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, values=VALUES, classes=LABELS)
    return path


# ---------------------------------------------------------------- normalization


def test_min_max_fills_the_range_and_mean_std_has_the_deviation_of_the_preconditioning():
    values = torch.tensor([[1.0, 3.0], [5.0, 7.0]]).reshape(2, 1, 1, 2)
    assert fit(values, "min-max") == Normalization("min-max", (4.0,), (3.0,))
    assert fit(values, "mean-std") == Normalization("mean-std", (4.0,), (float(np.float32(2 * 5**0.5)),))  # variance 5
    assert fit(values, "none") == Normalization("none", (0.0,), (1.0,))
    assert fit(values, "min-max").apply(values).flatten().tolist() == pytest.approx([-1, -1 / 3, 1 / 3, 1])
    assert [fit(values, kind).bounded for kind in ("min-max", "mean-std", "none")] == [True, False, False]


@pytest.mark.parametrize("kind", ["min-max", "mean-std", "none"])
def test_values_come_back_up_to_the_rounding_of_float32(kind):
    values = torch.from_numpy(VALUES).permute(0, 3, 1, 2)
    normalization = fit(values, kind)
    x = normalization.apply(values)
    for channel in range(2):
        back = normalization.undo(x)[:, channel]
        span = normalization.scale[channel] * x[:, channel].abs().max() + abs(normalization.offset[channel])
        assert (back - values[:, channel]).abs().max() <= 2 * torch.finfo(torch.float32).eps * span
    if kind == "none":
        assert torch.equal(normalization.undo(x), values)
    if kind == "mean-std":  # of the population, by NumPy
        expected = VALUES.astype(np.float64).std((0, 1, 2)) / 0.5
        np.testing.assert_array_equal(normalization.scale, expected.astype(np.float32))
        assert x.double().std(unbiased=False).item() == pytest.approx(0.5, rel=1e-5)


def test_a_constant_channel_and_impossible_constants_are_refused(tmp_path):
    with pytest.raises(UserError, match="channel 1 is 7 everywhere"):
        fit(torch.stack([torch.randn(3, 4, 4), torch.full((3, 4, 4), 7.0)], 1), "mean-std")
    for wrong in (("other", (0.0,), (1.0,)), ("none", (0.0,), (0.0,)), ("none", (float("nan"),), (1.0,))):
        with pytest.raises(ValueError, match=r"kind must be|each channel needs"):
            Normalization(*wrong)
    with pytest.raises(ValueError, match="must have 1 channels, got 2"):
        Normalization("none", (0.0,), (1.0,)).apply(torch.zeros(2, 4, 4))
    (tmp_path / "normalization.json").write_text('{"kind": "none"}')
    with pytest.raises(UserError, match=r'must hold \{"kind"'):
        load_normalization(tmp_path, {})


def test_normalization_json_is_kept_and_removed(tmp_path):
    normalization = fit(torch.from_numpy(VALUES).permute(0, 3, 1, 2), "mean-std")
    save_normalization(tmp_path, normalization)
    assert load_normalization(tmp_path, {}) == normalization
    save_normalization(tmp_path, None)
    assert load_normalization(tmp_path, {}) is None


# ---------------------------------------------------------------- reading


def stored_forms(folder, dtype):
    """The same arrays in each form that is read, by name: settings of `load_images`."""
    values = VALUES.astype(dtype) if np.dtype(dtype).kind == "f" else np.abs(VALUES / 20).astype(dtype)
    np.savez(folder / "a.npz", values=values, classes=LABELS)
    np.save(folder / "a.npy", values)
    np.save(folder / "first.npy", values.transpose(0, 3, 1, 2))
    np.savez(folder / "swapped.npz", values=values.astype(values.dtype.newbyteorder(">")))
    kind = datasets.Array3D(SHAPE[1:], str(np.dtype(dtype)))
    data = datasets.Dataset.from_dict(
        {"values": list(values), "label": LABELS},
        features=datasets.Features({"values": kind, "label": datasets.ClassLabel(3)}),
    )
    data.save_to_disk(folder / "saved")
    data.to_parquet(folder / "a.parquet")
    named = {name: str(folder / name) for name in ("a.npz", "a.npy", "swapped.npz", "saved", "a.parquet")}
    forms = {name: {"dataset_name": path} for name, path in named.items()}
    forms["first"] = {"dataset_name": str(folder / "first.npy"), "channels_first": True}
    forms["opened"] = {"dataset": data}
    return values, forms


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "uint16", "int8"])
def test_every_source_gives_the_same_numbers_as_they_are(tmp_path, dtype, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    values, forms = stored_forms(tmp_path, dtype)
    expected = torch.from_numpy(values.astype(np.float32)).permute(0, 3, 1, 2)
    for name, form in forms.items():
        labelled = name in ("a.npz", "saved", "a.parquet", "opened")
        with pytest.warns(UserWarning, match="has a standard deviation of"):
            images = load_images(**form, normalize="none", class_conditional=labelled)
        assert torch.equal(images.pixels, expected), name
        assert images.shape == (2, 8, 16)
        assert (images.labels.tolist() == LABELS.tolist()) if labelled else images.labels is None
        assert images.originals == {(16, 8, np.dtype(dtype).name): 40}


def test_arrays_without_an_axis_of_channels_have_one(tmp_path):
    np.save(tmp_path / "grey.npy", VALUES[..., 0])
    images = load_images(dataset_name=str(tmp_path / "grey.npy"), normalize="min-max")
    assert images.shape == (1, 8, 16)
    assert (images.pixels.min().item(), images.pixels.max().item()) == (-1, 1)


def test_data_are_scaled_by_the_normalization_of_a_model_where_there_is_one(npz):
    known = Normalization("mean-std", (1.0, 2.0), (4.0, 5.0))
    images = load_images(dataset_name=str(npz), normalization=known)
    expected = (VALUES.astype(np.float64) - [1, 2]) / [4, 5]
    np.testing.assert_array_equal(images.pixels.permute(0, 2, 3, 1).numpy(), expected.astype(np.float32))
    with pytest.raises(UserError, match="was trained with `normalize` mean-std, got none"):
        load_images(dataset_name=str(npz), normalize="none", normalization=known)
    with pytest.raises(UserError, match="draws 1 channels, and the data has 2"):
        load_images(dataset_name=str(npz), normalization=Normalization("none", (0.0,), (1.0,)))


REFUSED = {
    "an_image_setting": (("--resolution", 8), "--resolution means nothing for data with --normalize"),
    "a_stream": (("--streaming",), "leave --streaming out"),
    "an_unknown_kind": (("--normalize", "max"), "--normalize"),
    "no_such_array": (("--image_column", "other"), "--image_column must name one of values (float32 [40, 8, 16, 2])"),
    "channels_where_they_are_not": (("--channels_first", "--train_batch_size", 4), "from 8 to 256 pixels, got 2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_do_not_fit_are_refused(npz, tmp_path, capsys, case):
    given, message = REFUSED[case]
    flags = ["--dataset_name", npz, "--normalize", "mean-std", "--max_train_steps", 8, "--output_dir", tmp_path / "out"]
    assert_refused(tmp_path, capsys, message, *flags, *given)


WRONG = {
    "not finite": (np.where(np.arange(SHAPE[0])[:, None, None, None] == 7, np.nan, VALUES), "number 7 does not"),
    "too large": (VALUES.astype(np.float64) * 1e40, "number 0 does not"),
    "complex": (VALUES + 1j, "got complex64"),
    "integers that float32 rounds": (VALUES.astype(np.int64), "got int64"),
    "two axes": (VALUES[0, :, :, 0], "arrays must be [n, H, W] or [n, H, W, C], got [8, 16]"),
    "none": (VALUES[:0], "got [0, 8, 16, 2]"),
}


@pytest.mark.parametrize("case", WRONG)
def test_arrays_that_cannot_be_trained_are_refused(tmp_path, case):
    values, message = WRONG[case]
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(UserError) as refused:
        load_images(dataset_name=str(tmp_path / "a.npy"), normalize="mean-std")
    assert message in str(refused.value)


def test_damaged_and_ragged_data_and_folders_are_refused(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY but no array")
    ragged = datasets.Dataset.from_dict({"values": [[[1.0, 2.0]], [[3.0]]]})
    texts = datasets.Dataset.from_dict({"text": ["a"]})
    structures = datasets.Dataset.from_list([{"values": [{"of": 1.0}]}])
    for form, message in (
        ({"dataset_name": str(tmp_path / "a.npy")}, "cannot be read as .npy"),
        ({"dataset_name": str(tmp_path / "b.npz")}, "there is no file"),
        ({"train_data_dir": str(tmp_path)}, "is for pictures"),
        ({"dataset": ragged}, "one shape"),
        ({"dataset": texts}, "must name a column of arrays"),
        ({"dataset": structures}, "must hold arrays of numbers, got"),
    ):
        with pytest.raises(UserError, match=message):
            load_images(**form, normalize="none")
    with pytest.raises(UserError, match="`channels_first` means nothing for pictures"):
        load_images(dataset_name=str(tmp_path / "a.npz"), channels_first=True)
    np.savez(tmp_path / "floats.npz", images=np.full((3, 8, 8), 2.0))
    with pytest.raises(UserError, match="unless `normalize`"):
        load_images(dataset_name=str(tmp_path / "floats.npz"))


# ---------------------------------------------------------------- a model of such data


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a run on arrays by class, and its data beside it."""
    base = tmp_path_factory.mktemp("arrays")
    np.savez(base / "data.npz", values=VALUES, classes=LABELS)
    assert run(*flags_of(base), "--output_dir", base / "model") == 0
    return base


def flags_of(base):
    config = {**default_unet_config(8, 2, 3, 16), "block_out_channels": (16, 32), "norm_num_groups": 8}
    (base / "unet.json").write_text(json.dumps(config))
    own = ["--dataset_name", base / "data.npz", "--normalize", "mean-std", "--class_conditional", "--random_flip"]
    own += ["--model_config_name_or_path", base / "unet.json", "--train_batch_size", 4, "--max_train_steps", 8]
    return [*own, "--num_validation_images", 6, "--checkpointing_steps", 4, "--ema_decays", 0.9]


def test_a_run_keeps_what_is_needed_to_give_its_units_back(base):
    pipeline = ConsistencyPipeline.from_pretrained(base / "model")
    normalization = fit(torch.from_numpy(VALUES).permute(0, 3, 1, 2), "mean-std")
    assert pipeline.normalization == normalization
    assert pipeline.scheduler.config.clip_denoised is False
    assert pipeline.unet.config.sample_size == [8, 16]
    drawn = [
        pipeline(3, 1, output_type=kind, denormalize=units, generator=torch.Generator().manual_seed(0)).images
        for kind, units in (("latent", False), ("pt", True), ("np", True))
    ]
    assert torch.equal(drawn[1], normalization.undo(drawn[0]))
    np.testing.assert_array_equal(drawn[2], drawn[1].permute(0, 2, 3, 1).numpy())
    assert drawn[2].shape == (3, 8, 16, 2)
    assert ConsistencyPipeline.from_pipe(pipeline).normalization == normalization


def test_a_run_goes_on_bit_for_bit(base, tmp_path):
    own = [*flags_of(base), "--output_dir", tmp_path / "out"]
    assert run(*own, "--max_train_minutes", 1e-9) != 0
    assert run(*own, "--resume_from_checkpoint", "latest") == 0
    assert_bitwise_equal(base / "model", tmp_path / "out")


def test_the_smallest_noise_level_gives_arrays_back_in_their_units(base):
    """f(x, sigma_min) = x whatever the network, so what comes out is what went in, but for rounding."""
    pipeline = ConsistencyDenoisePipeline.from_pretrained(base / "model")
    (same,) = pipeline(VALUES, 0.002, 0, output_type="np", denormalize=True, return_dict=False)
    span = np.abs(VALUES).max((0, 1, 2))
    assert (np.abs(same - VALUES).max((0, 1, 2)) <= 4 * np.finfo(np.float32).eps * span).all()
    again = ConsistencyImg2ImgPipeline.from_pipe(pipeline)
    (same,) = again(VALUES, 0.0, class_labels=0, output_type="np", denormalize=True, return_dict=False)
    assert (np.abs(same - VALUES).max((0, 1, 2)) <= 2 * np.finfo(np.float32).eps * span).all()


def test_what_is_known_of_an_array_stays(base):
    pipeline = ConsistencyInpaintPipeline.from_pretrained(base / "model")
    mask = np.zeros((8, 16), np.uint8)
    mask[:, 8:] = 255
    options = {"class_labels": 0, "num_inference_steps": 2, "output_type": "np", "denormalize": True}
    drawn = pipeline(VALUES[:2], mask, **options).images
    np.testing.assert_allclose(drawn[:, :, :8], VALUES[:2, :, :8], rtol=1e-5, atol=1e-5)
    assert (drawn[:, :, 8:] != VALUES[:2, :, 8:]).any()
    with pytest.raises(ValueError, match="must be 16x8, got 8x8"):
        pipeline(VALUES[:2, :, :8], mask, **options)
    with pytest.raises(ValueError, match="must be arrays"):
        pipeline([Image.new("L", (16, 8))], mask, **options)
    with pytest.raises(ValueError, match="have no luminance"):
        ConsistencyColorizePipeline.from_pipe(pipeline)(VALUES[:2])


def test_units_that_are_not_there_are_refused(base):
    pipeline = ConsistencyPipeline(make_unet(), ICTScheduler())
    with pytest.raises(ValueError, match="leave denormalize out"):
        pipeline(denormalize=True, output_type="np")
    with pytest.raises(ValueError, match="choose output_type 'np' or 'pt'"):
        ConsistencyPipeline.from_pretrained(base / "model")(denormalize=True, output_type="pil")


def test_programs_take_such_a_model(base, tmp_path, capsys):
    model, data = str(base / "model"), ["--dataset_name", str(base / "data.npz")]
    assert evaluate.main([model, *data, "--num_samples", "40", "--metrics", "pr", "--steps", "1"]) == 0
    report = json.loads((base / "model" / "evaluation.json").read_text())
    assert report["extractor"] == "normalised values"
    assert evaluate.main([model, *data, "--num_samples", "20", "--extractor", "inception"]) == 2
    assert "made for pictures" in capsys.readouterr().err
    assert inspect_model.main([model, *data, "--output_dir", str(tmp_path / "seen"), "--num_samples", "12"]) == 0
    for name in ("along_sigma.png", "neighbours.png"):
        with Image.open(tmp_path / "seen" / name) as picture:
            assert picture.width > 0
    assert sample.main([model, "--num_samples", "6", "--output", str(tmp_path / "s.npy")]) == 0
    drawn = np.load(tmp_path / "s.npy")
    assert drawn.shape == (6, 8, 16, 2)
    assert np.abs(drawn[..., 1] - 1e3).max() < 1e4
    assert sample.main([model, "--num_samples", "6", "--output", str(tmp_path / "s.png")]) == 0
    capsys.readouterr()
    assert check_repository.main([model]) == 0
    assert "draws square images only" in capsys.readouterr().out
    card = (base / "model" / "README.md").read_text()
    assert "arrays of 2 channels" in card
    assert "denormalize=True" in card
    with pytest.raises(UserError, match="the model draws arrays"):
        build_page(model, tmp_path / "page")


@pytest.mark.slow
def test_an_onnx_file_of_arrays_is_their_f(base, tmp_path):
    import onnxruntime

    assert export_onnx.main([str(base / "model"), "--output_dir", str(tmp_path)]) == 0
    session = onnxruntime.InferenceSession((tmp_path / "model.onnx").read_bytes(), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[1:] == [2, 8, 16]


@pytest.mark.slow
def test_the_file_of_the_repository_draws_the_same_without_this_package(base, python_without_us):
    code = (
        "import torch, sys; from diffusers import DiffusionPipeline as D; m = sys.argv[1];"
        "p = D.from_pretrained(m, custom_pipeline=m, trust_remote_code=True); g = torch.Generator().manual_seed(0);"
        "x = p(2, class_labels=[0, 1], generator=g, output_type='latent', sigmas=[80.0, 0.821]).images;"
        "torch.save(x, m + '/x')"
    )
    subprocess.run([python_without_us, "-c", code, str(base / "model")], check=True, capture_output=True, timeout=600)
    theirs = torch.load(base / "model" / "x", weights_only=True)
    pipeline = ConsistencyPipeline.from_pretrained(base / "model")
    generator = torch.Generator().manual_seed(0)
    ours = pipeline(2, [0, 1], generator=generator, output_type="latent", sigmas=[80.0, 0.821]).images
    assert torch.equal(ours, theirs)
    (base / "model" / "x").unlink()


def test_min_max_is_clipped_to_the_range_of_the_data(base, tmp_path):
    own = [*flags_of(base), "--normalize", "min-max", "--output_dir", tmp_path / "out"]
    assert run(*own) == 0
    pipeline = ConsistencyPipeline.from_pretrained(tmp_path / "out")
    assert pipeline.scheduler.config.clip_denoised is True
    drawn = pipeline(20, output_type="np", denormalize=True).images.reshape(-1, 2)
    slack = 1e-5 * np.abs(VALUES).max((0, 1, 2))
    assert (drawn >= VALUES.min((0, 1, 2)) - slack).all()
    assert (drawn <= VALUES.max((0, 1, 2)) + slack).all()


# ---------------------------------------------------------------- pictures of arrays


def test_colours_span_the_values_of_each_channel():
    values = torch.tensor([0.0, 1.0, 2.0, 4.0]).reshape(4, 1, 1, 1).expand(4, 1, 2, 2)
    shades = Shades.of(values)
    assert (shades.low, shades.high) == ((0.0,), (4.0,))
    rows = shades.rows({"real": values})
    np.testing.assert_array_equal(rows["real"][:, 0, 0], coloured(np.array([[[0, 0.25, 0.5, 1]]]))[0, 0])
    bar = shades.with_bar(Image.new("RGB", (50, 20)))
    assert bar.height > 20
    ramp = np.asarray(bar)[24:36, 0:50]
    np.testing.assert_array_equal(ramp[0, [0, -1]], (coloured(np.array([[[0, 1.0]]]))[0, 0] * 255).round())


def test_three_channels_are_one_picture_and_others_a_row_each():
    for channels, names in (
        (3, ["a"]),
        (2, ["a, channel 0", "a, channel 1"]),
        (5, [f"a, channel {c}" for c in range(5)]),
    ):
        values = torch.randn(6, channels, 4, 8)
        rows = Shades.of(values).rows({"a": values})
        assert list(rows) == names
        assert all(row.shape == (6, 4, 8, 3) and 0 <= row.min() <= row.max() <= 1 for row in rows.values())


# ---------------------------------------------------------------- shapes


def test_the_default_network_follows_the_shorter_side():
    config = default_unet_config(16, 1, None, 64)
    square = default_unet_config(16, 1)
    assert config["block_out_channels"] == square["block_out_channels"]
    assert config["down_block_types"] == ("DownBlock2D", "AttnDownBlock2D"), "8 x 32 values are as many as 16 x 16"


def test_sides_that_cannot_be_halved_name_the_nearest_that_can(tmp_path, capsys):
    np.save(tmp_path / "odd.npy", np.random.default_rng(0).standard_normal((8, 12, 17)).astype(np.float32))
    flags = ["--dataset_name", tmp_path / "odd.npy", "--normalize", "min-max", "--train_batch_size", 4]
    assert_refused(tmp_path, capsys, "such as 16 or 18, got 17", *flags, "--output_dir", tmp_path / "out")
