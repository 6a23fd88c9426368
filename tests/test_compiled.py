"""Compiled networks train as eager ones do, and nothing of a step needs the host."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from conftest import make_unet
from short_run import ACT, CT, ECT, ICT, final_tensors, run
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffusers_ict import ICT as ICTObjective
from diffusers_ict import ICTScheduler, consistency_pair, hold_fast_columns, share_dropout
from diffusers_ict.data.batches import Batch
from diffusers_ict.discriminator import ConsistencyDiscriminator
from diffusers_ict.formulas.augmentation import NUM_UNIFORM
from diffusers_ict.objectives.act import ACT as ACTObjective
from diffusers_ict.training.adversary import Adversary
from diffusers_ict.training.optimization import make_optimizer
from diffusers_ict.training.unets import discriminator_config


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


class NoNewTensors(TorchFunctionMode):
    """Refuses tensors made of numbers of the host."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        made_of_numbers = (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy)
        assert function not in made_of_numbers, f"{function} copies from the host"
        return function(*args, **(kwargs or {}))


class NoCopies(TorchDispatchMode):
    """Refuses every kernel that brings numbers from the host to the device, where there are none that could be read."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        before, after = (
            {leaf.device.type for leaf in tree_leaves(tensors) if isinstance(leaf, torch.Tensor)}
            for tensors in ((args, kwargs), out)
        )
        assert not ("cpu" in before and "meta" in before | after), f"{function} copies from the host"
        return out


@contextmanager
def on_one_device():
    with NoNewTensors(), NoCopies():
        yield


META = torch.device("meta")


def batch_on_meta(count: int = 4) -> Batch:
    def number(*shape, dtype=torch.float32):
        return torch.empty(*shape, dtype=dtype, device=META)

    image, level = (count, 3, 8, 8), number(count, dtype=torch.float64)
    labels = number(count, dtype=torch.int64)
    return Batch(number(*image), labels, number(*image), level, level, number(count, NUM_UNIFORM), 0)


@pytest.fixture
def on_meta(monkeypatch):
    """A device that has no numbers: whatever reads one fails. RAdam takes it for one that graphs can be captured on."""
    import torch.optim.radam as radam

    devices = radam._get_capturable_supported_devices
    monkeypatch.setattr(radam, "_get_capturable_supported_devices", lambda *a, **k: [*devices(*a, **k), "meta"])
    unet = make_unet(in_channels=3, out_channels=3, num_class_embeds=4, dropout=0.3).to(META).train()
    hold_fast_columns(unet)
    share_dropout(unet)
    return unet, ICTScheduler().consistency_function


def test_a_guard_of_the_device_notices_what_it_is_there_for():
    on_device = torch.empty(3, device=META)
    for copy in (
        lambda: torch.ones(3).to(META),
        lambda: torch.tensor([1.0, 2, 3], device=META),
        lambda: on_device + torch.ones(()),
    ):
        with on_one_device(), pytest.raises(AssertionError, match="copies from the host"):
            copy()
    for read in (on_device.cpu, lambda: bool(on_device.sum()), lambda: on_device[on_device > 0], on_device.sum().item):
        with on_one_device(), pytest.raises(RuntimeError, match="meta"):
            read()


@pytest.mark.filterwarnings("ignore:step.. was called with capturable=True:UserWarning")
def test_a_step_neither_reads_the_device_nor_copies_to_it(on_meta):
    unet, around = on_meta
    f, objective, batch = around(unet), ICTObjective(), batch_on_meta()
    optimizer = make_optimizer(unet, 1e-3, (0.9, 0.999))
    optimizer.param_groups[0].update(capturable=True, lr=torch.empty((), device=META))  # as on CUDA
    for guarded in (False, True):  # the first step makes the moments, and moves masks of gradients
        with on_one_device() if guarded else torch.enable_grad():
            pair = consistency_pair(f, batch.x, batch.noise, batch.sigma, batch.sigma_next, batch.labels)
            objective.loss(pair).mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)


@pytest.mark.filterwarnings("ignore:step.. was called with capturable=True:UserWarning")
def test_the_discriminator_neither_reads_the_device_nor_copies_to_it(on_meta):
    unet, around = on_meta
    critic = ConsistencyDiscriminator.from_config(discriminator_config(dict(unet.config))).to(META)
    hold_fast_columns(critic)
    accelerator = SimpleNamespace(
        device=META, mixed_precision="no", num_processes=1, prepare=lambda own: own, backward=torch.Tensor.backward
    )
    act = ACTObjective(consistency=ICTObjective(), augment=True)
    adversary = Adversary(accelerator, act, critic)
    f, fakes, reals = around(unet), batch_on_meta(), batch_on_meta()
    for guarded in (False, True):
        with on_one_device() if guarded else torch.enable_grad():
            losses, _ = adversary.losses(f, fakes, reals)
            (losses + adversary.penalty(reals)).mean().backward()
            with adversary.judging():
                pair = consistency_pair(f, fakes.x, fakes.noise, fakes.sigma, fakes.sigma_next, fakes.labels)
                adversary.generator_loss(pair, fakes).mean().backward()
