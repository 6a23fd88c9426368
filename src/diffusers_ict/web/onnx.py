"""A consistency model as one ONNX file: f(x, sigma) with its preconditioning, held to the pipeline's own f.

Inputs: `x` float32 [B, C, H, W], `sigma` float32 [B] and, for class-conditional models, `class_labels` int64 [B].
Output: `image` float32 [B, C, H, W], f(x, sigma), not clamped. B is free.
"""

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError, first_line
from ..pipeline_consistency import ConsistencyPipeline
from ..progress import told
from ..version import __version__

# The largest difference from the pipeline's f that is accepted, for images in [-1, 1]. That of fp16 is half of a grey
# level of 256.
LIMITS = {"fp32": 1e-4, "fp16": 1 / 255}
BATCHES = (1, 2, 5)  # that the file is tried with
LARGEST_BYTES = 2**31 - 2**20  # of weights, because a protocol buffer holds less than 2 GiB
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Exported:
    """An ONNX file that agrees with the pipeline.

    Attributes:
        content: the bytes of the file.
        difference: the largest one from the pipeline's f that was seen, for images in [-1, 1].
    """

    content: bytes
    difference: float


class Function(nn.Module):
    """f(x, sigma, class_labels) of a pipeline as a module: what is exported, and what the file is held to."""

    def __init__(self, pipeline: ConsistencyPipeline) -> None:
        super().__init__()
        self.unet = pipeline.unet
        self.function = pipeline.scheduler.consistency_function(pipeline.unet)

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        return self.function(x, sigma, class_labels)


def make_onnx(pipeline: ConsistencyPipeline, dtype: str = "fp32", name: str = "model") -> Exported:
    """The ONNX file of a pipeline's f, compared with it at several batch sizes and noise levels.

    Args:
        pipeline: in float32 on the CPU.
        dtype: how weights are stored, "fp32" or "fp16"; the file computes in float32 with either.
        name: of the model, in the metadata of the file.

    Raises:
        UserError: a package is missing, the model cannot be exported, or the file disagrees with the pipeline by more
            than `LIMITS`.
    """
    _check(pipeline, dtype)
    function = Function(pipeline).eval()
    with told("translating the network into ONNX"):
        model = _translated(function, _inputs(pipeline, [pipeline.scheduler.config.sigma_max] * 2))
    _describe(model, pipeline, dtype, name)
    with told("comparing the ONNX file with the pipeline"):
        exported = _compared(model, function, pipeline, "fp32")
        if dtype == "fp16":
            _halve(model)
            exported = _compared(model, function, pipeline, "fp16")
    return exported


def _check(pipeline: ConsistencyPipeline, dtype: str) -> None:
    """Raise UserError for what can be known before the export."""
    check_pixels(pipeline, "an ONNX file")
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"ONNX files need {', '.join(missing)}: pip install {' '.join(missing)}.")
    if dtype not in LIMITS:
        raise UserError(f"`weights` must be one of {', '.join(LIMITS)}, got {dtype}.")
    if pipeline.condition_channels:
        raise UserError(
            "an ONNX file takes noise, levels and classes alone, and this model is given images: use another."
        )
    if pipeline.unet.config.sample_size is None:
        raise UserError("an ONNX file has one image size, and this model has no sample_size in its config; add it.")
    size = 4 * sum(p.numel() for p in pipeline.unet.parameters())
    if size > LARGEST_BYTES:
        raise UserError(
            f"an ONNX file holds at most {LARGEST_BYTES:,} bytes of weights and this model has {size:,}; "
            "export a smaller model."
        )


def check_pixels(pipeline: ConsistencyPipeline, what: str) -> None:
    """Refuse, by a UserError, to make something of a model of latents."""
    if pipeline.vqvae is not None:
        raise UserError(f"{what} is made of models that draw pixels, and this one draws latents: use diffusers for it.")


def _inputs(pipeline: ConsistencyPipeline, levels: list[float]) -> tuple[Tensor, ...]:
    """Inputs at noise levels, one for each image: noise of the variance of noisy data, and each class in turn."""
    unet, scheduler = pipeline.unet.config, pipeline.scheduler.config
    size = unet.sample_size if isinstance(unet.sample_size, (tuple, list)) else (unet.sample_size, unet.sample_size)
    sigma = torch.tensor(levels)
    noise = torch.randn(len(levels), unet.in_channels, *size, generator=torch.Generator().manual_seed(0))
    x = noise * (sigma**2 + scheduler.sigma_data**2).sqrt().reshape(-1, 1, 1, 1)
    labels = () if unet.num_class_embeds is None else (torch.arange(len(levels)) % unet.num_class_embeds,)
    return x, sigma, *labels


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what torch's exporter says about its own code and packages; it raises what fails."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _translated(function: Function, inputs: tuple[Tensor, ...]) -> Any:
    """The function as an onnx.ModelProto without what tells of this machine."""
    names = ["x", "sigma", "class_labels"][: len(inputs)]
    try:
        with _quiet():
            program = torch.onnx.export(
                function,
                inputs,
                dynamo=True,
                verbose=False,
                input_names=names,
                output_names=["image"],
                dynamic_shapes=tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs),
            )
            assert program is not None  # as it is with dynamo
            model = program.model_proto
    except Exception as error:  # the exporter raises what it meets
        raise UserError(f"torch cannot export this model to ONNX: {first_line(error)}") from error
    graph = model.graph
    # The stack traces of nodes name the files and folders of this machine.
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return model


def _describe(model: Any, pipeline: ConsistencyPipeline, dtype: str, name: str) -> None:
    """Write down the constants that a sampler needs, as text."""
    from onnx.helper import set_model_props

    config = pipeline.scheduler.config
    known = {key: f"{config[key]:g}" for key in ("sigma_min", "sigma_max", "sigma_data", "rho")}
    levels = " ".join(f"{level:g}" for level in intermediate_sigmas(pipeline))
    set_model_props(model, {"name": name, **known, "intermediate_sigmas": levels, "weights": dtype})
    model.producer_name, model.producer_version = "diffusers-ict", __version__


def intermediate_sigmas(pipeline: ConsistencyPipeline) -> list[float]:
    """The noise levels between steps, in the order in which steps are added: at least that of two steps."""
    scheduler = pipeline.scheduler
    return list(scheduler.config.intermediate_sigmas) or scheduler.sampling_sigmas(2)[1:].tolist()


def _halve(model: Any) -> None:
    """Store matrices in float16, each with a Cast to float32; vectors stay, they are few and their errors add up."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or sum(side > 1 for side in tensor.dims) < 2:
            continue
        name = tensor.name
        half = numpy_helper.to_array(tensor).astype("float16")
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.fp16"))
        casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)


def _compared(model: Any, function: Function, pipeline: ConsistencyPipeline, dtype: str) -> Exported:
    """The bytes of a model whose outputs are those of `function`, over batches and noise levels, also mixed ones.

    Raises:
        UserError: they differ by more than `LIMITS`.
    """
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # what people export is their own affair
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    config = pipeline.scheduler.config
    levels = [config.sigma_max, *intermediate_sigmas(pipeline), config.sigma_min]
    differences = []
    for batch in [[level] * size for size in BATCHES for level in levels] + [levels]:
        inputs = _inputs(pipeline, batch)
        (image,) = session.run(None, {name: value.numpy() for name, value in zip(names, inputs)})
        with torch.no_grad():
            differences.append((torch.from_numpy(image) - function(*inputs)).abs().max())
    difference = torch.stack(differences).max().item()  # unlike Python's max, it keeps what is not a number
    if not difference <= LIMITS[dtype]:
        raise UserError(
            f"the ONNX file with {dtype} weights must agree with the pipeline to {LIMITS[dtype]:.2g}, and differs by "
            f"{difference:.2g}; nothing was written."
        )
    return Exported(content, difference)
