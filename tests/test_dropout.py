"""Student and teacher drop the same units: eagerly, compiled, in half precision, with recomputed activations."""

import copy
import shutil

import pytest
import torch
from conftest import ONE_LEVEL, make_unet
from torch import nn

from diffusers_ict import ICT, ConsistencyFunction, consistency_pair, reuse_masks, share_dropout
from diffusers_ict.formulas.dropout import SharedDropout


def level_pair(f, teacher=None, x=None):
    """A pair of equal noise levels, whose halves differ by their masks alone."""
    x = torch.randn(4, 1, 8, 8) if x is None else x
    sigma = torch.full((len(x),), 1.5, dtype=torch.float64)
    return consistency_pair(f, x, torch.randn_like(x), sigma, sigma, teacher=teacher)


def test_it_drops_as_often_as_pytorchs_and_scales_alike():
    shared, stock, x = SharedDropout(0.3), nn.Dropout(0.3), torch.ones(1000, 1000)
    ours, theirs = shared(x), stock(x)
    assert torch.equal(ours.unique(), theirs.unique())
    assert (ours == 0).float().mean().item() == pytest.approx(0.3, abs=0.003)
    assert torch.equal(shared.eval()(x), x)


def test_a_separate_teacher_drops_the_same_units():
    student = make_unet(dropout=0.5).train()
    teacher = copy.deepcopy(student)
    share_dropout(student, teacher)
    pair = level_pair(ConsistencyFunction(student), ConsistencyFunction(teacher))
    assert torch.equal(pair.student, pair.target)
    with pytest.raises(ValueError, match="zip"):
        share_dropout(student, nn.Linear(1, 1))


def test_masks_are_used_again_once_and_only_where_there_are_some():
    unet = make_unet(dropout=0.5).train()
    f, x = ConsistencyFunction(unet), torch.randn(4, 1, 8, 8)
    first = level_pair(f, x=x)
    assert not torch.equal(first.student, level_pair(f, x=x).student), "every pair has the same masks"
    with reuse_masks(), pytest.raises(RuntimeError, match="prepare both networks by `share_dropout`"):
        f(x, torch.ones(4))
    f(x, torch.ones(4))
    with reuse_masks(), pytest.raises(RuntimeError, match="no dropout mask to use again"):
        f(x[:2], torch.ones(2))
    assert not torch.equal(f(x, torch.ones(4)), f(x, torch.ones(4))), "an exception left the masks in use"


@pytest.mark.parametrize(
    "module", [nn.Dropout2d(0.1), nn.MultiheadAttention(4, 1, dropout=0.1), nn.LSTM(1, 1, 2, dropout=0.1)]
)
def test_modules_that_drop_in_other_ways_are_refused(module):
    with pytest.raises(ValueError, match=r"which .* does not allow: use nn.Dropout, or a dropout of 0, got 0.1"):
        ConsistencyFunction(nn.Sequential(nn.Dropout(0.1), module))
    share_dropout(nn.Dropout2d(0), nn.MultiheadAttention(4, 1))


def test_weights_config_and_images_stay_as_they_are():
    unet, x = make_unet(dropout=0.5).eval(), torch.randn(2, 1, 8, 8)
    names, modules, expected = unet.state_dict().keys(), list(unet.modules()), unet(x, 1).sample
    share_dropout(unet)
    assert unet.state_dict().keys() == names
    assert torch.equal(unet(x, 1).sample, expected)
    assert all(a is b for a, b in zip(unet.modules(), modules, strict=True))
    assert any(isinstance(module, SharedDropout) and module.p == 0.5 for module in modules)


def test_recomputed_activations_have_the_same_masks():
    gradients = []
    for checkpointing in (False, True):
        unet = make_unet(dropout=0.5).train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        torch.manual_seed(3)
        pair = level_pair(ConsistencyFunction(unet))
        assert torch.equal(pair.student, pair.target)
        pair.student.square().sum().backward()
        gradients.append([p.grad for p in unet.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_in_half_precision_equal_levels_give_exactly_zero():
    unet = make_unet(dropout=0.5).train()
    share_dropout(unet)

    def net(*args, **kwargs):
        with torch.autocast("cpu", torch.bfloat16):
            return unet(*args, **kwargs)

    pair, other = (level_pair(ConsistencyFunction(net)) for _ in range(2))
    assert torch.equal(pair.student, pair.target)
    assert not torch.equal(pair.student, other.student)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # inductor's own
@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param("inductor", marks=pytest.mark.skipif(shutil.which("g++") is None, reason="it needs a compiler")),
    ],
)
def test_the_whole_loss_compiles_into_one_graph_with_the_same_masks(backend, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # a process that was killed may have left half a file
    f, objective = ConsistencyFunction(make_unet(dropout=0.5, **ONE_LEVEL).train()), ICT()

    def loss(x, noise, sigma, sigma_next):
        pair = consistency_pair(f, x, noise, sigma, sigma_next)
        return objective.loss(pair), pair.student, pair.target

    x, sigma = torch.randn(4, 1, 8, 8), torch.full((4,), 1.5, dtype=torch.float64)
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    _, student, target = compiled(x, torch.randn_like(x), sigma, sigma)
    _, other, _ = compiled(x, torch.randn_like(x), sigma, sigma)
    assert (student - target).abs().max() == 0
    assert not torch.equal(student, other)
    value, student, target = compiled(x, torch.randn_like(x), sigma, 1.1 * sigma)
    value.mean().backward()
    assert all(p.grad.isfinite().all() for p in f.net.parameters() if p.grad is not None)
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in f.net.parameters())
