"""A step asks the device for nothing, so that the host runs ahead of it; compiled networks train as eager ones do."""

import json

import pytest
import torch
from conftest import ROOT, write_npz
from guard import Guard, guarded_run
from short_run import ACT, CT, ECT, ICT, LOSSES, final_tensors, run, two_processes


@pytest.fixture
def guard(monkeypatch):
    with monkeypatch.context() as patch, Guard(patch) as guard:
        yield guard


def test_the_guard_notices_every_way_of_reading(guard):
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
        guard.active = True
        with pytest.raises(AssertionError, match="read by the host"):
            read()
        guard.active = False
        read()


@pytest.mark.parametrize("loss", LOSSES)
def test_no_step_waits_for_the_device(loss, flags, tmp_path, monkeypatch, guard):
    assert guarded_run(monkeypatch, guard, *loss, *flags, "--output_dir", tmp_path / "out") == 0


@pytest.mark.slow
@pytest.mark.parametrize("loss", [ICT, ACT], ids=["ict", "act"])
def test_no_step_of_two_processes_waits_for_the_device(loss, flags, tmp_path):
    done = two_processes(ROOT / "tests" / "guard.py", *loss, *flags, "--output_dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("loss", [ICT, ECT, CT, ACT], ids=["ict", "ect", "ct", "act"])
def test_a_compiled_run_is_an_eager_one(loss, flags, tmp_path, monkeypatch):
    """In one graph without breaks, forwards and backwards; without dropout, whose masks a compiler draws otherwise."""
    compiled, compile = [], torch.compile

    def compiling(function, **options):
        compiled.append(options)
        return compile(function, backend="aot_eager", **options)

    own = [*loss, *flags, "--dropout", 0, "--max_train_steps", 12, "--checkpointing_steps", 12]
    assert run(*own, "--output_dir", tmp_path / "eager") == 0
    monkeypatch.setattr(torch, "compile", compiling)
    assert run(*own, "--torch_compile", "--output_dir", tmp_path / "compiled") == 0
    assert compiled == [{"fullgraph": True}] * (2 if loss in (ACT, CT) else 1), "D, and CT's teacher, are networks, too"
    eager, ours = final_tensors(tmp_path / "eager"), final_tensors(tmp_path / "compiled")
    for name, value in eager.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-5, msg=name)


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
    own = [*loss, *flags, "--dataset_name", data, "--dropout", 0, "--lr_warmup_steps", 10]
    own += ["--mixed_precision", precision, "--max_train_steps", 40]
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
