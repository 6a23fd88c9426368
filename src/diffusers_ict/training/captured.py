"""Parts of a step as CUDA graphs: the GPU replays their kernels without waiting for Python to launch each of them."""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor
from torch.utils import _pytree as pytree

from .recipe import Recipe

WARM_UP = 3


def can_capture(recipe: Recipe, accelerator: Accelerator) -> bool:
    """Whether a run with `torch_compile` replays its steps: on one CUDA device, unless it scales its loss for fp16.

    The loss scale is read by the host, and messages between processes are not part of a graph.
    """
    alone = accelerator.num_processes == 1 and accelerator.device.type == "cuda"
    return recipe.torch_compile and alone and accelerator.scaler is None


class Captured:
    """A function on a CUDA device, run as it is a few times, then captured as a CUDA graph and replayed from there on.

    What it computes must depend on tensors alone: on its arguments, which are copied into those of the capture, and on
    others that stay where they are, such as weights, gradients and moments. What it draws follows from the seed that
    the device's generator has when it is called, as it does without a graph.

    Args:
        function: takes tensors, dataclasses of tensors, or None; returns tensors, which are copied out.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Any] = []
        self.outputs: Any = None

    def __call__(self, *arguments: Any) -> Any:
        """The function's result for these arguments, whose shapes never change."""
        self.calls += 1
        if self.calls <= WARM_UP:
            return self._warm_up(arguments)
        graph = self.graph or self._capture(arguments)
        for kept, new in zip(self.inputs, _tensors(arguments), strict=True):
            kept.copy_(new)
        graph.replay()
        return pytree.tree_map_only(Tensor, torch.clone, self.outputs)

    def _warm_up(self, arguments: tuple) -> Any:
        # On another stream than the default one, as the capture will be: libraries choose their workspaces by stream.
        stream, _ = _shared()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            result = self.function(*arguments)
        torch.cuda.current_stream().wait_stream(stream)
        return result

    def _capture(self, arguments: tuple) -> torch.cuda.CUDAGraph:
        kept = tuple(_map_tensors(torch.clone, argument) for argument in arguments)
        self.inputs = _tensors(kept)
        self.graph = torch.cuda.CUDAGraph()
        stream, pool = _shared()
        with torch.cuda.graph(self.graph, pool=pool, stream=stream):
            self.outputs = self.function(*kept)
        return self.graph


@cache
def _shared() -> tuple[torch.cuda.Stream, Any]:
    """The stream and the memory of all graphs: each replay is over, and its results are copied, before the next."""
    return torch.cuda.Stream(), torch.cuda.graph_pool_handle()


def captured_step(optimizer: AcceleratedOptimizer) -> Captured:
    """The step of an optimizer, compiled first: a capturable one has thousands of small kernels otherwise."""
    own = optimizer.optimizer

    def step() -> None:
        own.step()

    return Captured(torch.compile(step))


def _map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
        return dataclasses.replace(value, **{name: _map_tensors(function, own) for name, own in changes.items()})
    return value


def _tensors(arguments: tuple) -> list[Tensor]:
    """All tensors of the arguments, in order."""
    tensors: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    for argument in arguments:
        _map_tensors(note, argument)
    return tensors
