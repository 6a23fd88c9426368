"""A step asks the device for nothing: the host may run ahead of it, and a graph can hold it."""

import json
from contextlib import contextmanager, nullcontext

import pytest
import torch
from conftest import write_npz
from short_run import ACT, CT, ECT, ICT, final_tensors, run
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_ict.training.log import Metrics
from diffusers_ict.training.run import Run

READS = ("item", "cpu", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__")


class NoReads(TorchDispatchMode):
    """Refuses the kernel by which PyTorch itself reads a number of a tensor."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten._local_scalar_dense.default, "a kernel's result is read by the host"
        return function(*args, **(kwargs or {}))


@contextmanager
def no_reads(patch):
    def read(*args, **kwargs):
        raise AssertionError("a tensor is read by the host")

    with patch.context() as inside, NoReads():
        for name in READS:
            inside.setattr(torch.Tensor, name, read)
        yield


def test_the_guard_notices_every_way_of_reading(monkeypatch):
    x = torch.ones(2)
    for read in (
        lambda: x.sum().item(),
        lambda: bool(x.sum() > 0),
        lambda: float(x.sum()),
        lambda: x.cpu(),
        lambda: x.tolist(),
        lambda: x[x > 0.5].numpy(),
        lambda: torch.ops.aten._local_scalar_dense(x.sum()),
    ):
        with no_reads(monkeypatch), pytest.raises(AssertionError, match="read by the host"):
            read()
    assert x.sum().item() == 2


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(ICT, id="ict"),
        pytest.param(ECT, id="ect", marks=pytest.mark.slow),
        pytest.param(CT, id="ct"),
        pytest.param(ACT, id="act"),
    ],
)
def test_no_step_waits_for_the_device(loss, flags, tmp_path, monkeypatch):
    """On CPUs, RAdam reads its step counts; on CUDA it is capturable and does not."""
    guarded, step = [], torch.optim.RAdam.step
    draw, count = Run.micro_batches, Metrics.count_step
    guard = nullcontext()

    def drawing(self, role, number):
        nonlocal guard
        if number == 7 and not guarded:  # the eighth step, which has a gradient penalty
            guarded.append(number)
            guard = no_reads(monkeypatch)
            guard.__enter__()
        return draw(self, role, number)

    def unguarded(function):
        def call(self, *args, **kwargs):
            nonlocal guard
            was_guarded = not isinstance(guard, nullcontext)
            guard.__exit__(None, None, None)
            function(self, *args, **kwargs)
            if was_guarded:
                guard = no_reads(monkeypatch)
                guard.__enter__()

        return call

    def counting(self, images):
        nonlocal guard
        guard.__exit__(None, None, None)
        guard = nullcontext()
        count(self, images)

    monkeypatch.setattr(Run, "micro_batches", drawing)
    monkeypatch.setattr(torch.optim.RAdam, "step", unguarded(step))
    monkeypatch.setattr(Metrics, "count_step", counting)
    own = ["--logging_steps", 12, "--max_train_steps", 12, "--checkpointing_steps", 12]
    assert run(*loss, *flags, *own, "--output_dir", tmp_path / "out") == 0
    assert guarded == [7]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # inductor's own
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")  # inductor's advice
@pytest.mark.filterwarnings("ignore:.*capturable=True:UserWarning")  # of the steps before the capture
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("loss", [ICT, ECT, CT, ACT], ids=["ict", "ect", "ct", "act"])
def test_a_captured_run_agrees_with_an_eager_one_and_resumes_bit_for_bit(loss, precision, flags, config, tmp_path):
    """Without dropout, whose masks a compiler draws otherwise; the learning rate changes, and images have colours."""
    data = write_npz(tmp_path / "colours.npz", channels=3)
    unet = json.loads(config.read_text())
    config.write_text(json.dumps({**unet, "in_channels": 3, "out_channels": 3}))
    own = [
        *loss,
        *flags,
        "--dataset_name",
        data,
        "--dropout",
        0,
        "--lr_warmup_steps",
        10,
        "--mixed_precision",
        precision,
    ]
    own = [*own, "--max_train_steps", 40]
    assert run(*own, "--output_dir", tmp_path / "eager") == 0
    own.append("--torch_compile")
    assert run(*own, "--output_dir", tmp_path / "whole") == 0
    start = tmp_path / "whole" / "checkpoint-35"
    assert run(*own, "--resume_from_checkpoint", start, "--output_dir", tmp_path / "resumed") == 0
    eager, whole, resumed = (final_tensors(tmp_path / name) for name in ("eager", "whole", "resumed"))
    close = {"rtol": 1e-2, "atol": 1e-3} if precision == "no" else {"rtol": 0.1, "atol": 0.05}
    for name, value in whole.items():
        if loss is not ACT:  # whose augmentation adds gradients in no fixed order
            assert torch.equal(value, resumed[name]), name
        torch.testing.assert_close(value, eager[name], **close, msg=name)
