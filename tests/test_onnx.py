"""An ONNX file is the pipeline's f, tells nothing of the machine, and is not written if it is anything else."""

import importlib.util
import json
from unittest.mock import Mock

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import ROOT
from exported import export_once, make_pipeline

from diffusers_ict import ConsistencyPipeline
from diffusers_ict.commands import export_onnx as command
from diffusers_ict.errors import UserError
from diffusers_ict.web import onnx as web_onnx
from diffusers_ict.web.onnx import Exported, make_onnx

LEVELS = [80.0, 3.3, 0.821, 0.1, 0.002]


@pytest.fixture(scope="module", params=["conditional", pytest.param("unconditional", marks=pytest.mark.slow)])
def made(request, tmp_path_factory) -> tuple[ConsistencyPipeline, Exported]:
    """A pipeline and its ONNX file."""
    return make_pipeline(request.param), export_once(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def conditional(tmp_path_factory) -> Exported:
    """A good export of the conditional model, for tests of bad ones."""
    return export_once("conditional", tmp_path_factory)


def run(content: bytes, **inputs) -> np.ndarray:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (image,) = session.run(["image"], {name: np.asarray(value) for name, value in inputs.items() if value is not None})
    return image


def published_f(pipeline, x, sigma, labels):
    """CM's f, written out: c_skip x + c_out F(c_in x, 250 ln sigma), in float64 outside the network."""
    constants = pipeline.scheduler.config
    s, d, low = sigma.double().reshape(-1, 1, 1, 1), constants.sigma_data, constants.sigma_min
    with torch.no_grad():
        output = pipeline.unet(
            (x / (s**2 + d**2).sqrt()).float(), 250 * sigma.double().log(), class_labels=labels
        ).sample
    return (d**2 / ((s - low) ** 2 + d**2) * x + (s - low) * d / (s**2 + d**2).sqrt() * output).numpy()


@pytest.mark.parametrize("batch", [1, 3, 10])
def test_the_file_is_f_at_any_noise_level_and_batch_size(made, batch, generator):
    pipeline, exported = made
    sigma = torch.tensor([LEVELS[i % len(LEVELS)] for i in range(batch)])
    x = torch.randn(batch, 1, 8, 8, generator=generator) * sigma.reshape(-1, 1, 1, 1)
    labels = torch.arange(batch) % 4 if pipeline.unet.config.num_class_embeds else None
    image = run(exported.content, x=x, sigma=sigma, class_labels=labels)
    assert np.abs(image - published_f(pipeline, x, sigma, labels)).max() < 2e-5
    assert (image[sigma == 0.002] == x[sigma == 0.002].numpy()).all(), "f(x, sigma_min) is x"
    assert exported.difference < 2e-5
    drawn = pipeline(1, labels[:1] if labels is not None else None, latents=x[:1] / 80, output_type="latent").images
    assert np.abs(image[:1].clip(-1, 1) - drawn.numpy()).max() < 1e-5, "one step is the image of the pipeline"


def test_the_file_describes_itself_and_tells_nothing_of_this_machine(made):
    pipeline, exported = made
    model = onnx.load_from_string(exported.content)
    onnx.checker.check_model(model, full_check=True)
    classes = pipeline.unet.config.num_class_embeds
    assert [item.name for item in model.graph.input] == ["x", "sigma"] + ["class_labels"] * bool(classes)
    assert [item.name for item in model.graph.output] == ["image"]
    shapes = {item.name: [d.dim_value for d in item.type.tensor_type.shape.dim] for item in model.graph.input}
    assert shapes["x"] == [0, 1, 8, 8], "the batch is free"
    assert {item.key: item.value for item in model.metadata_props} == {
        **{"name": "little", "sigma_min": "0.002", "sigma_max": "80", "rho": "7", "weights": "fp32"},
        "sigma_data": "1" if classes else "0.5",
        "intermediate_sigmas": "0.9 0.3" if classes else "0.821",
    }
    for word in (".py", "File ", "torch/", str(ROOT), "/site-packages", "Traceback"):
        assert word.encode() not in exported.content, word


@pytest.fixture
def altered(conditional, monkeypatch):
    """altered(shift): a model whose exported bias is off by `shift`, as it would be by a fault of the exporter."""

    def plant(shift: float) -> ConsistencyPipeline:
        model = onnx.load_from_string(conditional.content)
        (bias,) = [tensor for tensor in model.graph.initializer if tensor.name == "unet.conv_out.bias"]
        values = onnx.numpy_helper.to_array(bias) + np.float32(shift)
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        monkeypatch.setattr(web_onnx, "_translated", lambda function, inputs: model)
        return make_pipeline("conditional")

    return plant


@pytest.mark.parametrize("shift", [1e-3, float("nan")])
@pytest.mark.parametrize("weights", ["fp32", "fp16"])
def test_a_file_that_disagrees_is_not_written(altered, tmp_path, capsys, shift, weights):
    altered(shift).save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    assert command.main([str(tmp_path / "model"), "--output_dir", str(out), "--weights", weights]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert "must agree with the pipeline to 0.0001, and differs by" in err
    assert not out.exists()


def test_the_program_writes_one_file_and_its_difference(altered, tmp_path, capsys):
    pipeline = altered(0)
    pipeline.save_pretrained(tmp_path / "model")
    assert command.main([str(tmp_path / "model"), "--output_dir", str(tmp_path / "out")]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.onnx"]
    assert "It differs from the pipeline by at most " in capsys.readouterr().out
    x, sigma, labels = torch.ones(1, 1, 8, 8), torch.ones(1), torch.tensor([2])
    image = run((tmp_path / "out" / "model.onnx").read_bytes(), x=x, sigma=sigma, class_labels=labels)
    expected = published_f(pipeline, x, sigma, labels)
    assert np.abs(image - expected).max() < 2e-5


def test_half_the_weights_are_nearly_half_the_file_and_still_f(altered, conditional, generator):
    pipeline, whole = altered(0), conditional
    exported = make_onnx(pipeline, "fp16")
    assert len(exported.content) < 0.75 * len(whole.content)  # the graph is most of the rest
    assert whole.difference < exported.difference < 1 / 255
    x, sigma, labels = 80 * torch.randn(4, 1, 8, 8, generator=generator), torch.full((4,), 80.0), torch.arange(4)
    image = run(exported.content, x=x, sigma=sigma, class_labels=labels)
    pipeline.unet.load_state_dict(
        {name: p.half().float() if p.ndim > 1 else p for name, p in pipeline.unet.state_dict().items()}
    )
    expected = published_f(pipeline, x, sigma, labels)
    assert np.abs(image - expected).max() < 2e-5, "rounding of matrices is the only difference"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ((torch.onnx, "export"), Mock(side_effect=RuntimeError("no\nmore")), "torch cannot export .* to ONNX: no$"),
        ((web_onnx, "LARGEST_BYTES"), 1000, "holds at most 1,000 bytes of weights"),
        ((importlib.util, "find_spec"), lambda name: None, "need onnx, onnxscript, onnxruntime: pip install"),
    ],
    ids=["exporter", "size", "packages"],
)
def test_what_cannot_be_exported_is_refused_in_one_sentence(monkeypatch, place, value, message):
    monkeypatch.setattr(*place, value)
    with pytest.raises(UserError, match=message):
        make_onnx(make_pipeline("unconditional"))


def test_weights_sizes_and_folders_that_no_file_has_are_refused(tmp_path, capsys):
    pipeline = make_pipeline("unconditional")
    with pytest.raises(UserError, match="`weights` must be one of fp32, fp16, got int4"):
        make_onnx(pipeline, "int4")
    pipeline.unet.register_to_config(sample_size=None)
    with pytest.raises(UserError, match="this model has no sample_size"):
        make_onnx(pipeline)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "Other"}))
    assert command.main([str(tmp_path), "--output_dir", str(tmp_path / "out")]) == 2
    assert "no consistency pipeline could be loaded from" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
